"""The forms behind the pages, without a browser."""

import re

import pytest

from stripe_identity_sandbox.checks import LAST_ERRORS

from .conftest import Api


def path_of(session: dict[str, str]) -> str:
    return re.sub(r"^http://[^/]+", "", session["url"])


@pytest.mark.parametrize("code", LAST_ERRORS)
def test_each_error_code_can_be_chosen(api: Api, code: str) -> None:
    session = api.create()
    answer = api.client.post(path_of(session), data={"outcome": code})
    assert answer.status_code == 200
    error = api.world.sessions[session["id"]].last_error
    assert error
    assert error["code"] == code


def test_after_ten_seconds(api: Api) -> None:
    session = api.create()
    api.client.post(path_of(session), data={"outcome": "verified", "when": "soon"})
    assert api.world.sessions[session["id"]].status == "processing"
    api.control("clock", advance=10)
    assert api.world.sessions[session["id"]].status == "verified"


def test_the_user_returns_where_the_app_said(api: Api) -> None:
    for choice in ("verified", "leave"):
        session = api.create("type=document&return_url=https://app.example/back?x=1")
        answer = api.client.post(path_of(session), data={"outcome": choice})
        assert answer.status_code == 303
        assert answer.headers["Location"] == "https://app.example/back?x=1"


def test_bad_forms(api: Api) -> None:
    session = api.create()
    assert api.client.post(path_of(session), data={"outcome": "nonsense"}).status_code == 400
    assert api.client.post("/start/test_x", data={"outcome": "verified"}).status_code == 404
    assert api.client.get("/start/test_x").status_code == 404
    assert api.client.get("/_sandbox/sessions/vs_x").status_code == 404
    assert api.client.post("/_sandbox/", data={"action": "nonsense"}).status_code == 400
    for back in ("https://evil.example", "/_sandbox/\r\nx: y"):
        elsewhere = {"action": "advance", "seconds": "1", "back": back}
        assert api.client.post("/_sandbox/", data=elsewhere).status_code == 400


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e12", "-1", "x"])
def test_seconds_that_no_clock_can_move_by(api: Api, seconds: str) -> None:
    answer = api.client.post("/_sandbox/", data={"action": "advance", "seconds": seconds})
    assert "message=" in answer.headers["Location"]
    assert api.world.journal.offset == 0
    fault = {"kind": "delay", "seconds": seconds}
    assert api.client.post("/_sandbox/faults", data=fault).status_code == 400
    assert api.client.get("/_sandbox/faults").json == []


def test_a_refused_button_says_why(api: Api) -> None:
    session = api.create()["id"]
    back = f"/_sandbox/sessions/{session}"
    api.control(f"sessions/{session}/submit", hold=True)
    answer = api.client.post(
        "/_sandbox/",
        data={"action": "cancel", "session": session, "back": back},
        follow_redirects=True,
    )
    assert "You cannot cancel this VerificationSession" in answer.text


def test_what_a_user_typed_is_escaped(api: Api) -> None:
    session = api.create("type=document&metadata[a]=<script>x</script>")["id"]
    page = api.client.get(f"/_sandbox/sessions/{session}").text
    assert "<script>x" not in page
    assert "&lt;script&gt;" in page


def test_every_button(api: Api) -> None:
    def press(action: str, **fields: str) -> str:
        answer = api.client.post("/_sandbox/", data={"action": action, **fields})
        assert answer.status_code == 303
        return answer.headers["Location"]

    page = press("create", type="document", selfie="on", id_number="on")
    session = page.rpartition("/")[2]
    assert press("open", session=session).startswith("/start/test_")
    press("cancel", session=session)
    press("redact", session=session)
    press("complete", session=session)
    assert api.world.sessions[session].redaction == "redacted"
    press("advance", seconds="60")
    assert api.world.journal.offset == 60
    press("resend", event=next(iter(api.world.events.by_id)))
    press("add_fault", kind="drop", next="2")
    assert "drop" in api.client.get("/_sandbox/setup").text
    assert session in api.client.get("/_sandbox/").text
    (fault,) = api.client.get("/_sandbox/faults").json or ()
    press("clear_fault", fault=fault["id"])
    assert api.client.get("/_sandbox/faults").json == []
    assert "redacted" in api.client.get(page).text
    assert "message=" in press("add_fault", kind="nonsense")


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "create", "type": "passport"},
        {"action": "override", "to": "unverified"},
        {"action": "override"},
        {"action": "advance", "seconds": "soon"},
        {"action": "open", "session": "vs_x"},
    ],
    ids=str,
)
def test_a_choice_that_no_page_offers_is_none(api: Api, fields: dict[str, str]) -> None:
    session = api.create()["id"]
    api.control(f"sessions/{session}/submit")
    before = api.world.version
    answer = api.client.post("/_sandbox/", data={"session": session, **fields})
    assert "?message=" in answer.headers["Location"]
    assert api.world.version == before


def test_a_time_that_the_hosted_page_does_not_offer(api: Api) -> None:
    session = api.create()
    path = session["url"].removeprefix("http://127.0.0.1:12111")
    refused = api.client.post(path, data={"outcome": "verified", "when": "later"})
    assert refused.status_code == 400
    assert api.world.sessions[session["id"]].status == "requires_input"
    assert api.client.post(path, data={"outcome": "verified"}).status_code == 200


def test_override_and_pages_of_the_list(api: Api) -> None:
    session = api.create()["id"]
    api.control(f"sessions/{session}/submit", outcome="document_expired")
    page = f"/_sandbox/sessions/{session}"
    for to, status in (("verified", "verified"), ("requires_input", "requires_input")):
        assert f'value="{to}"' in api.client.get(page).text
        data = {"action": "override", "session": session, "to": to}
        api.client.post("/_sandbox/", data=data)
        assert api.world.sessions[session].status == status
    for _ in range(30):
        api.create()
    first, second = (api.client.get(f"/_sandbox/?page={n}").text for n in (1, 2))
    assert first.count("<tr>") == 25 + 1
    assert session in second
    assert session not in first


def test_every_address_that_a_browser_may_open_says_something(api: Api) -> None:
    front = api.client.get("/")
    assert (front.status_code, front.headers["Location"]) == (302, "/_sandbox/")
    assert "There is no such session" in api.client.get("/_sandbox/sessions/vs_1").text
    assert "does not work any more" in api.client.get("/start/test_1").text
    session = api.create()["id"]
    for page in ("0", "-5", "2", "9" * 30, "x", ""):
        assert session in api.client.get(f"/_sandbox/?page={page}").text, page


def test_changes_are_told_once(api: Api) -> None:
    before = api.world.version
    api.create()
    told = api.client.get(f"/_sandbox/changes?since={before}").text
    assert f"data: {api.world.version}" in told
