"""The pages in a real browser, at phone and desktop width: without JavaScript, and live with it."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

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
AXE = "axe-core@4.11.0"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium on this machine"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(params=[pytest.param(390, marks=pytest.mark.walk), 1280], ids=["phone", "desktop"])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page without JavaScript."""
    context = browser.new_context(
        viewport={"width": request.param, "height": 844}, java_script_enabled=False
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    yield page
    context.close()


@pytest.fixture
def live(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 844})
    page = context.new_page()
    page.set_default_timeout(120_000)
    yield page
    context.close()


def create(sandbox: Any, **params: Any) -> Any:
    return sandbox.client().v1.identity.verification_sessions.create({"type": "document", **params})


def status(sandbox: Any, session: Any) -> tuple[str, str | None]:
    now = sandbox.client().v1.identity.verification_sessions.retrieve(session.id)
    return now.status, now.last_error.code if now.last_error else None


def choose(page: Page, outcome: str) -> None:
    page.get_by_label("What the checks will find").select_option(outcome)
    page.get_by_role("button", name="Submit", exact=True).click()


def test_a_user_is_verified_and_returns(sandbox: Any, page: Page) -> None:
    session = create(sandbox, return_url=f"{sandbox.url}/_sandbox/clock?back")
    page.goto(session.url)
    expect(page.get_by_role("complementary")).to_contain_text("Sandbox")
    expect(page.get_by_role("heading", name="Verify your identity")).to_be_visible()
    choose(page, "verified")
    expect(page).to_have_url(f"{sandbox.url}/_sandbox/clock?back")
    assert status(sandbox, session) == ("verified", None)
    page.goto(session.url)
    expect(page.get_by_role("heading")).to_have_text("This link does not work any more")


def test_a_user_fails_and_tries_again(sandbox: Any, page: Page) -> None:
    session = create(sandbox)
    page.goto(session.url)
    choose(page, "selfie_face_mismatch")
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
    expect(page.locator("#pills")).to_contain_text("canceled")
    assert status(sandbox, session) == ("canceled", None)


def test_processing_can_be_held_and_finished(sandbox: Any, page: Page) -> None:
    session = create(sandbox)
    page.goto(session.url)
    page.get_by_label("Stay in processing").check()
    choose(page, "verified")
    assert status(sandbox, session) == ("processing", None)
    page.goto(f"{sandbox.url}/_sandbox/sessions/{session.id}")
    page.get_by_role("button", name="Finish processing").click()
    assert status(sandbox, session) == ("verified", None)
    page.get_by_role("button", name="Override to unverified").click()
    assert status(sandbox, session) == ("requires_input", "document_unverified_other")


def test_the_page_says_what_each_error_means_and_whose_it_is(sandbox: Any, page: Page) -> None:
    page.goto(create(sandbox).url)
    select = page.get_by_label("What the checks will find")
    offered = select.locator("optgroup option").all_inner_texts()
    assert len(set(offered)) == 19, "as many as the API has"
    assert all(text.partition(": ")[2].endswith(".") for text in offered)
    groups = [group.get_attribute("label") for group in select.locator("optgroup").all()]
    assert "The document check" in groups
    assert "The selfie check, which this session does not ask for" in groups


def test_the_console_shows_and_does(sandbox: Any, page: Page) -> None:
    page.goto(f"{sandbox.url}/_sandbox/")
    page.get_by_label("selfie").check()
    page.get_by_role("button", name="New session").click()
    expect(page.locator("#pills")).to_contain_text("requires_input")
    id_ = page.url.rpartition("/")[2]
    page.get_by_role("button", name="Redact").click()
    page.get_by_role("button", name="Finish redaction").click()
    expect(page.locator("#pills")).to_contain_text("redaction: redacted")
    page.get_by_role("button", name="Send again").first.click()
    page.get_by_role("link", name="Sessions").click()
    expect(page.get_by_role("link", name=id_)).to_be_visible()
    page.get_by_role("link", name="Set-up").click()
    page.get_by_role("button", name="+ 1 minute").click()
    expect(page.locator("#clock-here")).to_contain_text("ahead of this machine")
    page.get_by_label("What goes wrong").select_option("oversized")
    page.get_by_role("button", name="Add fault").click()
    page.get_by_role("button", name="Remove oversized").click()
    expect(page.get_by_text("None: everything works.")).to_be_visible()


def test_a_failed_delivery_says_why(run: Any, page: Page, wait_until: Any) -> None:
    sandbox = run("--deliver-to", "http://127.0.0.1:9/nobody", "--secret", "whsec_x")
    session = create(sandbox)
    wait_until(lambda: sandbox.control("GET", "deliveries")[0]["attempts"])
    page.goto(f"{sandbox.url}/_sandbox/sessions/{session.id}")
    expect(page.get_by_text("Connection refused").first).to_be_visible()
    page.goto(f"{sandbox.url}/_sandbox/")
    expect(page.locator("#list")).to_contain_text(re.compile("retrying|failed"))


# -- by keyboard alone -------------------------------------------------------------------------


def focused(page: Page) -> str:
    return str(
        page.evaluate(
            "(e => e.getAttribute('aria-label') || (e.tagName !== 'BUTTON' && e.name)"
            " || e.innerText)(document.activeElement)"
        )
    )


def tab_to(page: Page, wanted: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if focused(page).strip() == wanted:
            return
    raise AssertionError(f"the Tab key does not reach {wanted}")


def press(page: Page, button: str) -> None:
    tab_to(page, button)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def test_enter_submits_nothing_that_was_not_chosen(sandbox: Any, live: Page) -> None:
    session = create(sandbox)
    live.goto(session.url)
    tab_to(live, "when")
    live.keyboard.press("Enter")
    assert live.url == session.url
    assert status(sandbox, session) == ("requires_input", None)


def test_every_action_of_the_hosted_page_by_keyboard(sandbox: Any, live: Page) -> None:
    session = create(sandbox)
    live.goto(session.url)
    tab_to(live, "outcome")
    live.keyboard.type("document_exp")
    tab_to(live, "when")
    live.keyboard.press("ArrowDown")
    live.keyboard.press("ArrowDown")
    press(live, "Submit")
    expect(live.get_by_role("heading")).to_have_text("Thank you")
    assert status(sandbox, session) == ("processing", None)
    live.goto(f"{sandbox.url}/_sandbox/sessions/{session.id}")
    press(live, "Finish processing")
    expect(live.locator("#pills")).to_contain_text("document_expired")
    again = sandbox.client().v1.identity.verification_sessions.retrieve(session.id)
    live.goto(again.url)
    press(live, "Walk away without submitting")
    expect(live.get_by_role("heading")).to_have_text("You walked away")


def offered(page: Page) -> set[str]:
    """Return the actions that the page has buttons for."""
    actions = page.locator("input[name=action]").all()
    return {str(action.get_attribute("value")) for action in actions}


def test_every_action_of_the_console_by_keyboard(run: Any, live: Page) -> None:
    sandbox = run()
    done: set[str] = set()
    seen: set[str] = set()

    def posted(request: Request) -> None:
        done.update(parse_qs(request.post_data or "").get("action", ()))

    def push(button: str) -> None:
        seen.update(offered(live))
        press(live, button)

    live.on("request", posted)
    live.goto(f"{sandbox.url}/_sandbox/")
    tab_to(live, "Type")
    live.keyboard.type("id_n")
    tab_to(live, "id_number")
    live.keyboard.press("Space")
    tab_to(live, "New session")
    live.keyboard.press("Shift+Tab")
    live.keyboard.press("Shift+Tab")
    live.keyboard.press("Space")
    push("New session")
    shown = live.locator("#json")
    for text in ('"require_matching_selfie": true', '"require_id_number": true', '"id_number": {'):
        expect(shown).to_contain_text(text)
    page, id_ = live.url, live.url.rpartition("/")[2]
    push("Hosted page")
    expect(live.get_by_role("heading", name="Verify your identity")).to_be_visible()
    sandbox.submit(id_, hold=True)
    live.goto(page)
    for action, pill in (
        ("Finish processing", "verified"),
        ("Override to unverified", "requires_input"),
        ("Override to verified", "verified"),
        ("Redact", "redaction: processing"),
        ("Finish redaction", "redaction: redacted"),
    ):
        live.reload()
        push(action)
        expect(live.locator("#pills")).to_contain_text(pill)
    push("Send again: created")
    live.goto(f"{sandbox.url}/_sandbox/sessions/{create(sandbox).id}")
    push("Cancel")
    expect(live.locator("#pills")).to_contain_text("canceled")
    push("Set-up")
    live.wait_for_url("**/setup")
    push("+ 4 days")
    expect(live.locator("#clock-here")).to_contain_text("4 d")
    tab_to(live, "What goes wrong")
    live.keyboard.type("drop")
    tab_to(live, "next")
    live.keyboard.press("ArrowUp")
    push("Add fault")
    expect(live.locator("#faults-set")).to_contain_text("next 2")
    push("Remove drop")
    expect(live.get_by_text("None: everything works.")).to_be_visible()
    assert done == seen, "every action that a page offers was reached"


def test_lists_and_details_by_keyboard(run: Any, live: Page) -> None:
    sandbox = run()
    oldest, *_ = [create(sandbox) for _ in range(26)]
    live.goto(f"{sandbox.url}/_sandbox/")
    press(live, "Older")
    press(live, oldest.id)
    live.goto(f"{sandbox.url}/_sandbox/?page=2")
    press(live, "Newer")
    press(live, "Requests")
    live.wait_for_url("**/log")
    detail = live.locator("#log details").first
    for _ in range(60):
        live.keyboard.press("Tab")
        if live.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    live.keyboard.press("Enter")
    expect(detail).to_have_attribute("open", "")
    expect(detail).to_contain_text('"type": "document"')


# -- live --------------------------------------------------------------------------------------


def test_changes_show_by_themselves(run: Any, live: Page) -> None:
    sandbox = run()
    live.goto(f"{sandbox.url}/_sandbox/")
    session = create(sandbox)
    link = live.get_by_role("link", name=session.id)
    expect(link).to_be_visible()
    link.click()
    summary = live.locator("#json-session summary")
    summary.click()
    sandbox.submit(session.id, "document_expired")
    expect(live.locator("#pills")).to_contain_text("document_expired")
    expect(live.locator("#events")).to_contain_text("processing")
    live.locator("#state").click()  # the focus leaves the part that has waited
    expect(live.locator("#json")).to_contain_text("Report")
    expect(live.locator("#json-session")).not_to_have_attribute("open", "")


# -- for everybody -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def axe(node_package: Callable[[str], Path]) -> Path:
    return node_package(AXE) / "node_modules" / "axe-core" / "axe.min.js"


PAGES = ("sessions", "session", "log", "setup", "start", "gone")


@pytest.fixture(scope="module")
def addresses(start: Any) -> Iterator[dict[str, str]]:
    """Every page, with something on it."""
    sandbox = start("--deliver-to", "http://127.0.0.1:9/nobody", "--secret", "whsec_x")
    sandbox.control("POST", "faults", kind="slow", route="GET /nothing")
    session = create(sandbox, metadata={"a_long_name_of_a_key": "x" * 200})
    sandbox.submit(session.id, "document_expired")
    url = sandbox.client().v1.identity.verification_sessions.retrieve(session.id).url
    yield {
        "sessions": f"{sandbox.url}/_sandbox/",
        "session": f"{sandbox.url}/_sandbox/sessions/{session.id}",
        "log": f"{sandbox.url}/_sandbox/log",
        "setup": f"{sandbox.url}/_sandbox/setup",
        "start": url,
        "gone": f"{sandbox.url}/start/test_nothing",
    }
    sandbox.stop()


@pytest.mark.sample(1)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(
    browser: Browser, addresses: dict[str, str], axe: Path, name: str, scheme: Any
) -> None:
    for width in (390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.goto(addresses[name])
        page.add_script_tag(path=axe)
        found = page.evaluate("axe.run()")["violations"]
        page.close()
        assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_screen(
    browser: Browser, addresses: dict[str, str], name: str
) -> None:
    for width in (320, 390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(addresses[name])
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


@pytest.mark.walk
def test_a_list_of_many_sessions_stays_short(run: Any, browser: Browser) -> None:
    sandbox = run()
    for _ in range(26):
        create(sandbox)
    for width, limit in ((390, 2200), (1280, 1400)):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(f"{sandbox.url}/_sandbox/")
        assert page.evaluate("document.documentElement.scrollHeight") < limit
        box = page.get_by_role("button", name="New session").bounding_box()
        assert box
        assert box["y"] < 400
        page.close()
