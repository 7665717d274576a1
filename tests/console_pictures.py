"""Pictures of the console for docs/console.md: `make console-pictures` (needs Chromium)."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import stripe
from playwright.sync_api import Page, sync_playwright

from dev.local import API_KEY, LOOPBACK, ROOT, everything, free_port
from service import connection
from service.console import people
from service.inbox import Filter, Inbox
from service.settings import Settings

IMAGES = ROOT / "docs" / "images"
PASSWORD = "correct horse battery"
LIVES = (
    *("verified", "document_expired", "verified", "verified", "selfie_face_mismatch"),
    *("verified", "document_unverified_other", "verified", "under_supported_age", "verified"),
)
"""How each verification ends, one after the other."""


def main() -> None:
    """Run the whole service with a handler that fails at first, and take each page."""
    ports = {"web": free_port(), "sandbox": free_port(), "redis": free_port()}
    with tempfile.TemporaryDirectory(prefix="identity-webhooks-") as home:
        mended = Path(home, "mended")
        os.environ |= {
            "CONSOLE_PASSWORD_HASH": people.entry("ann", PASSWORD, may_act=True),
            "HANDLERS": "mending",
            "PYTHONPATH": str(ROOT / "tests/data/handlers"),
            "MENDED": str(mended),
        }
        os.environ.pop("REDIS_URL", None)
        with everything(Path(home), ports):
            session = fill(f"http://{LOOPBACK}:{ports['sandbox']}", mended)
            time.sleep(6)  # every process has said by then what it has counted
            picture(f"http://{LOOPBACK}:{ports['web']}/console", session)


def fill(sandbox: str, mended: Path) -> str:
    """Make verifications, of which the first half die of the handler; the session of one."""
    client = stripe.StripeClient(API_KEY, base_addresses={"api": sandbox})
    sessions = client.v1.identity.verification_sessions
    inbox = Inbox(connection.connect(Settings.load("tool")))
    options = {"document": {"require_matching_selfie": True}}
    shown = ""
    for place, outcome in enumerate(LIVES):
        if place == len(LIVES) // 2:
            mended.touch()
        session = sessions.create({"type": "document", "options": options})
        # Who fails first tries again: that one has been everywhere.
        for each in ("document_expired", "verified") if place == 0 else (outcome,):
            client.raw_request("post", f"/_sandbox/sessions/{session.id}/submit", outcome=each)
        shown = shown or session.id
        settle(inbox, 3 * (place + 1))
    return shown


def settle(inbox: Inbox, events: int) -> None:
    """Wait until so many events are through, in either form."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = list(inbox.search.all(Filter()))
        if len(found) >= events and all(record.state != "pending" for record in found):
            return
        time.sleep(0.1)
    raise SystemExit("the events are not handled")


def picture(url: str, session: str) -> None:
    """Write the pictures of the console at this address."""
    pages = {
        "overview": "/",
        "events": "/events?state=dead",
        "session": f"/sessions/{session}",
        "handlers": "/handlers",
        "outcomes": "/outcomes",
    }
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (390, 1280):
            page = browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme="dark" if width == 390 else "light",
            )
            log_in(page, url)
            for name, path in pages.items():
                page.goto(url + path)
                page.screenshot(path=IMAGES / f"console-{name}-{width}.png")
            page.close()
        browser.close()


def log_in(page: Page, url: str) -> None:
    """Log in."""
    page.goto(f"{url}/login")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{url}/")


if __name__ == "__main__":
    main()
