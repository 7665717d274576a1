"""The console in a real browser: with JavaScript and without, by keyboard, on phone and desk."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Page, expect

AXE = "axe-core@4.11.0"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 844}
PAGES = ("", "events", "events?state=dead", "events?session=x", "handlers", "outcomes")


@pytest.fixture(params=[pytest.param(PHONE, marks=pytest.mark.walk), DESK], ids=["phone", "desk"])
def plain(open_page, request) -> Page:
    """A page without JavaScript."""
    return open_page(viewport=request.param, java_script_enabled=False)


def test_a_wrong_password_is_refused_and_a_right_one_is_not(console, plain, log_in) -> None:
    plain.goto(f"{console.url}/console/events?state=dead")
    expect(plain.get_by_role("heading", name="Console")).to_be_visible()
    log_in(plain, console, password="wrong")
    expect(plain.get_by_role("alert")).to_have_text("Name and password do not fit.")
    log_in(plain, console)
    expect(plain).to_have_url(f"{console.url}/console/")
    with plain.expect_navigation():
        plain.get_by_role("button", name="Log out").click()
    plain.goto(f"{console.url}/console/")
    expect(plain.get_by_role("button", name="Log in")).to_be_visible()


def test_every_page_shows_what_there_is(console, plain, log_in) -> None:
    log_in(plain, console)
    expect(plain.get_by_role("heading", name="DeadEvents")).to_be_visible()
    plain.get_by_role("link", name="The dead events").click()
    plain.get_by_role("link", name="failed KeyError").click()
    expect(plain).to_have_url(re.compile("state=dead&handler=mending.save"))
    plain.get_by_role("link", name=re.compile("^evt_")).click()
    expect(plain.locator(".timeline")).to_contain_text("mending.save: dead at attempt 1")
    plain.get_by_role("link", name=re.compile("^vs_")).click()
    expect(plain.locator(".machine .reached")).to_have_count(3)
    plain.get_by_role("link", name="Handlers").click()
    failing = plain.get_by_role("article").filter(has_text="mending.save")
    expect(failing).to_contain_text("1: failed KeyError")
    expect(failing).to_contain_text(re.compile(r"KeyError at .*mending\.py:\d+"))
    expect(failing).to_contain_text("1 dead")
    plain.get_by_role("link", name="Outcomes").click()
    expect(plain.get_by_role("row", name=re.compile("document_expired"))).to_be_visible()


def test_nothing_is_wider_than_the_screen(console, open_page, log_in) -> None:
    page = open_page()
    log_in(page, console)
    for path in [*PAGES, *linked(page, console)]:
        page.goto(f"{console.url}/console/{path}")
        for width in (320, 390, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)


def linked(page: Page, console: Any) -> list[str]:
    """Return the paths of an event and a session."""
    page.goto(f"{console.url}/console/events?state=dead")
    paths = [link.get_attribute("href") for link in page.locator("table a").all()[:2]]
    return [str(path).removeprefix("/console/") for path in paths]


@pytest.mark.sample(1)
@pytest.mark.parametrize(("scheme", "size"), [("light", PHONE), ("dark", DESK)])
def test_axe_finds_nothing(
    console, open_page, log_in, node_package: Callable[[str], Path], scheme, size
) -> None:
    axe = (node_package(AXE) / "node_modules/axe-core/axe.min.js").read_text()
    page = open_page(color_scheme=scheme, viewport=size)
    page.goto(f"{console.url}/console/login")
    look(page, axe)
    log_in(page, console)
    for path in [*PAGES, *linked(page, console)]:
        page.goto(f"{console.url}/console/{path}")
        look(page, axe)
    page.goto(f"{console.url}/console/events?state=dead")
    page.get_by_role("button", name="Discard…").click()
    expect(page.get_by_role("heading")).to_have_text("Discard 1 event?")
    look(page, axe)


def look(page: Page, axe: str) -> None:
    page.evaluate(axe)  # a script tag is what the policy of the pages refuses
    found = page.evaluate("axe.run()")["violations"]
    assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found], page.url


def test_a_filter_by_keyboard(console, open_page, log_in) -> None:
    page = open_page()
    log_in(page, console)
    page.goto(f"{console.url}/console/events")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("State")).to_be_focused()
    page.keyboard.type("done")
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type("document_expired")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("state=done.*reason=document_expired"))
    expect(page.locator("tbody tr")).to_have_count(1)


def test_who_may_only_look_has_no_button(console, open_page, log_in) -> None:
    page = open_page()
    log_in(page, console, "guest")
    for path in [*PAGES, *linked(page, console)]:
        page.goto(f"{console.url}/console/{path}")
        names = page.get_by_role("button").all_inner_texts()
        assert set(names) <= {"Log out", "Filter"}, path


def test_a_form_whose_proof_is_not_ours_does_nothing(console, open_page, log_in) -> None:
    page = open_page()
    log_in(page, console)
    page.goto(f"{console.url}/console/events?state=dead")
    page.evaluate("document.querySelectorAll('[name=proof]').forEach(e => e.value = 'x')")
    page.get_by_role("button", name="Discard…").click()
    expect(page.get_by_role("heading")).to_have_text("Refused")
    assert console.dead() == 1


def test_it_is_replayed_to_success(console, open_page, log_in) -> None:
    page = open_page()
    log_in(page, console)
    page.goto(f"{console.url}/console/events?state=dead")
    page.get_by_role("link", name=re.compile("^evt_")).first.click()
    page.get_by_role("button", name="Replay…").click()
    console.mend()
    page.get_by_role("button", name="Replay 1 event").click()
    expect(page.get_by_role("status")).to_have_text("Done.")
    page.get_by_role("link", name="Back to the event").click()
    for _ in range(100):
        if page.locator("h1 .pill.done").count():
            break
        page.reload()
    timeline = page.locator(".timeline")
    expect(timeline).to_contain_text("replay dead, by ann")
    expect(timeline).to_contain_text("done: verified")
    page.goto(f"{console.url}/console/")
    acts = page.locator("section").filter(has_text="What people had done")
    expect(acts).to_contain_text("ann")


def test_many_are_discarded_and_a_reload_goes_on(alone, open_page, log_in) -> None:
    assert {alone.take(number) for number in range(130)} == {200}
    page = open_page(java_script_enabled=False)
    log_in(page, alone)
    page.goto(f"{alone.url}/console/events?state=pending")
    page.get_by_role("button", name="Discard…").click()
    expect(page.get_by_role("heading")).to_have_text("Discard 130 events?")
    page.get_by_role("button", name="Discard 130 events").click()
    heading = page.get_by_role("heading")
    expect(heading).to_have_text("Discard: 50 of 130")
    page.reload()
    expect(heading).to_have_text("Discard: 50 of 130")
    there = page.url

    # With JavaScript it goes on by itself, wherever it is looked at.
    live = open_page()
    log_in(live, alone)
    live.goto(there)
    expect(live.get_by_role("status")).to_have_text("Done.")
    expect(live.get_by_role("heading")).to_have_text("Discard: 130 of 130")
    live.get_by_role("link", name="Back to the events").click()
    expect(live.get_by_text("No event is like that.")).to_be_visible()


def test_the_overview_looks_again_by_itself(alone, open_page, log_in) -> None:
    page = open_page()
    log_in(page, alone)
    expect(page.locator("#to-pending")).to_have_text("0")
    assert alone.deliver(1).status_code == 200
    expect(page.locator("#to-pending")).to_have_text("1")


def test_deliveries_are_answered_while_pages_load(alone, clock) -> None:
    """Four readers at once load the largest page again and again."""
    for number in range(200):
        alone.deliver(number)
    session = requests.Session()
    page = session.get(f"{alone.url}/console/login", timeout=120).text
    proof = re.search(r'name="proof" value="(\w+)"', page)
    assert proof
    fields = {"name": "ann", "password": "correct horse battery", "proof": proof[1]}
    assert session.post(f"{alone.url}/console/login", fields, timeout=120).status_code == 200
    stop, statuses = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            answer = requests.get(
                f"{alone.url}/console/events", cookies=session.cookies, timeout=120
            )
            statuses.append(answer.status_code)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        took = []
        for number in range(1000, 1060):
            status = 503
            # A busy machine may take the 1.5 s that Redis has for it; Stripe sends it again.
            while status == 503:
                began = clock(alone.web)
                status = alone.deliver(number).status_code
                took.append(clock(alone.web) - began)
            assert status == 200
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert set(statuses) == {200}
    # The machine may stand still for some; pages that hold a delivery hold nearly all.
    nine_in_ten = sorted(took)[len(took) * 9 // 10]
    assert nine_in_ten < 2, f"as promised; {len(statuses)} pages"
    assert max(took) < 10


def test_it_is_off_unless_it_is_set(processes, new_server, wait_until, free_port) -> None:
    port = free_port()
    processes.python(
        *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", "1"),
        *("--bind", f"127.0.0.1:{port}", "service.app:create_app()"),
        env={
            "REDIS_URL": new_server().url,
            "STRIPE_WEBHOOK_SECRET": "whsec_QmFzZTY0VGVzdFNlY3JldDEyMzQ1Njc4",
            "STRIPE_LIVEMODE": "0",
        },
    )

    def status(path: str) -> int:
        try:
            return requests.get(f"http://127.0.0.1:{port}{path}", timeout=120).status_code
        except requests.ConnectionError:
            return 0

    wait_until(lambda: status("/readyz") == 200)
    for path in ("/console", "/console/", "/console/login", "/console/static/console.css"):
        assert status(path) == 404
