"""Pictures of the pages for docs/sandbox.md: `make sandbox-pictures` (needs Chromium)."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import stripe
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[3] / "docs" / "images"
LIVES = ("verified", "document_expired", None, "verified", "selfie_face_mismatch", "verified", None)


def main() -> None:
    """Start a sandbox, fill it, and take every page at the width of a phone and of a desk."""
    serve = ["-m", "stripe_identity_sandbox", "serve", "--port", "0", "--json", "--in-order"]
    deliver = ["--deliver-to", "http://127.0.0.1:9/webhooks/stripe", "--secret", "whsec_x"]
    deliver += ["--retry-after-scale", "1"]  # no second try while the pictures are taken
    with subprocess.Popen(
        [sys.executable, *serve, *deliver], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            picture(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


def picture(url: str) -> None:
    """Write the pictures of the sandbox at this address."""
    client = stripe.StripeClient("sk_test_pictures", base_addresses={"api": url})
    sessions = client.v1.identity.verification_sessions
    helpers = "/v1/test_helpers/identity/verification_sessions"
    for outcome in LIVES:
        session = sessions.create(
            {"type": "document", "options": {"document": {"require_matching_selfie": True}}}
        )
        if outcome == "verified":
            client.raw_request("post", f"{helpers}/{session.id}/verify")
        elif outcome:
            path = f"{helpers}/{session.id}/require_input"
            client.raw_request("post", path, error_code=outcome)
            failed = session.id
    again = sessions.retrieve(failed)
    pages = {
        "sessions": f"{url}/_sandbox/",
        "session": f"{url}/_sandbox/sessions/{failed}",
        "requests": f"{url}/_sandbox/log",
        "setup": f"{url}/_sandbox/setup",
        "hosted": again.url,
    }
    client.raw_request("post", "/_sandbox/faults", kind="duplicate", rate=0.2)
    time.sleep(1)  # the first tries of the deliveries
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (390, 1280):
            for name, address in pages.items():
                page = browser.new_page(viewport={"width": width, "height": 900})
                page.goto(str(address))
                path = IMAGES / f"sandbox-{name}-{width}.png"
                page.screenshot(path=path, full_page=name == "hosted")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
