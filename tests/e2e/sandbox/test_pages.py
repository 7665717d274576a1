"""The pages in a real browser, without JavaScript, at phone and desktop width."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium on this machine"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(params=[390, 1280], ids=["phone", "desktop"])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": request.param, "height": 844}, java_script_enabled=False
    )
    page = context.new_page()
    page.set_default_timeout(5000)
    yield page
    context.close()


def create(sandbox: Any, **params: Any) -> Any:
    return sandbox.client().v1.identity.verification_sessions.create({"type": "document", **params})


def status(sandbox: Any, session: Any) -> tuple[str, str | None]:
    now = sandbox.client().v1.identity.verification_sessions.retrieve(session.id)
    return now.status, now.last_error.code if now.last_error else None


def test_a_user_is_verified_and_returns(sandbox: Any, page: Page) -> None:
    session = create(sandbox, return_url=f"{sandbox.url}/_sandbox/clock?back")
    page.goto(session.url)
    expect(page.get_by_role("note")).to_contain_text("Sandbox")
    expect(page.get_by_role("heading", name="Verify your identity")).to_be_visible()
    page.get_by_role("button", name="Succeed").click()
    expect(page).to_have_url(f"{sandbox.url}/_sandbox/clock?back")
    assert status(sandbox, session) == ("verified", None)
    page.goto(session.url)
    expect(page.get_by_role("heading")).to_have_text("This link does not work any more")


def test_a_user_fails_and_tries_again(sandbox: Any, page: Page) -> None:
    session = create(sandbox)
    page.goto(session.url)
    page.get_by_label("Fail with this error").select_option("selfie_face_mismatch")
    page.get_by_role("button", name="Fail").click()
    expect(page.get_by_role("heading")).to_have_text("Thank you")
    assert status(sandbox, session) == ("requires_input", "selfie_face_mismatch")
    page.get_by_role("link", name="See it in the sandbox").click()
    page.get_by_role("button", name="Hosted page").click()
    expect(page.get_by_text("The last attempt failed")).to_be_visible()


def test_a_user_walks_away_and_the_session_is_canceled(sandbox: Any, page: Page) -> None:
    session = create(sandbox)
    page.goto(session.url)
    page.get_by_role("button", name="Walk away").click()
    expect(page.get_by_role("heading")).to_have_text("You walked away")
    assert status(sandbox, session) == ("requires_input", None)
    page.get_by_role("link", name="See it in the sandbox").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#state + .bar")).to_contain_text("canceled")
    assert status(sandbox, session) == ("canceled", None)


def test_processing_can_be_held_and_finished(sandbox: Any, page: Page) -> None:
    session = create(sandbox)
    page.goto(session.url)
    page.get_by_label("Stay in processing").check()
    page.get_by_role("button", name="Succeed").click()
    assert status(sandbox, session) == ("processing", None)
    page.goto(f"{sandbox.url}/_sandbox/sessions/{session.id}")
    page.get_by_role("button", name="Finish processing").click()
    assert status(sandbox, session) == ("verified", None)


def test_the_page_offers_every_error_code(sandbox: Any, page: Page) -> None:
    page.goto(create(sandbox).url)
    offered = page.get_by_label("Fail with this error").locator("option").all_inner_texts()
    assert len(set(offered)) == 19, "as many as the API has"


def test_the_overview_shows_and_does(sandbox: Any, page: Page) -> None:
    page.goto(f"{sandbox.url}/_sandbox/")
    page.get_by_label("with a selfie").check()
    page.get_by_role("button", name="Create").click()
    expect(page.locator("#state + .bar")).to_contain_text("requires_input")
    id_ = page.url.rpartition("/")[2]
    page.get_by_role("button", name="Redact").click()
    page.get_by_role("button", name="Finish redaction").click()
    expect(page.locator("#state + .bar")).to_contain_text("redaction: redacted")
    page.get_by_role("link", name="All sessions").click()
    expect(page.get_by_role("link", name=id_).first).to_be_visible()
    page.get_by_role("button", name="+ 1 minute").click()
    expect(page.get_by_text("ahead of this machine")).to_be_visible()
    page.get_by_label("What goes wrong").select_option("oversized")
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("None: everything works.")).to_be_visible()
    page.get_by_role("button", name="Send again").first.click()
    assert page.url == f"{sandbox.url}/_sandbox/"


@pytest.mark.parametrize("path", ["/_sandbox/", "session", "start", "/start/test_nothing"])
def test_nothing_is_wider_than_the_screen(sandbox: Any, browser: Browser, path: str) -> None:
    session = create(sandbox, metadata={"a_long_name_of_a_key": "x" * 200})
    named = {
        "session": f"/_sandbox/sessions/{session.id}",
        "start": session.url[len(sandbox.url) :],
    }
    for width in (320, 390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(sandbox.url + named.get(path, path))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
