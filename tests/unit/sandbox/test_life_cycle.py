"""What each operation does in each status, and what each outcome leaves behind."""

from pathlib import Path
from typing import Any

import pytest

from stripe_identity_sandbox.checks import LAST_ERRORS, PARTS, failed_part
from stripe_identity_sandbox.journal import Changes
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.store import Store

from .conftest import REPORTS, SESSIONS, Api

DAY = 24 * 3600
MASKED_ADDRESS = dict.fromkeys(("line1", "line2", "city", "state", "postal_code"), "[redacted]") | {
    "country": "US"
}


def in_status(api: Api, status: str) -> str:
    """Bring a new session into a status; return its id."""
    id_: str = api.create("type=document&metadata[user]=u1")["id"]
    steps: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "requires_input": [],
        "processing": [("submit", {"hold": True})],
        "verified": [("submit", {})],
        "failed": [("submit", {"outcome": "document_expired"})],
        "canceled": [],
        "redacting": [("submit", {}), ("redact", {})],
        "redacted": [("submit", {}), ("redact", {}), ("complete", {})],
    }
    for step, body in steps[status]:
        assert api.control(f"sessions/{id_}/{step}", **body).status_code == 200
    if status == "canceled":
        api.post(f"{SESSIONS}/{id_}/cancel")
    return id_


ILLEGAL = {
    (verb, status): (
        f'You cannot {verb} this VerificationSession because it has a status of "{status}".'
        f' Only a VerificationSession in "requires_input" status may be {participle}.'
    )
    for verb, participle in (
        ("update", "updated"),
        ("cancel", "canceled"),
        ("submit", "submitted"),
    )
    for status in ("processing", "verified", "canceled")
} | {
    (verb, status): f"You cannot {verb} this VerificationSession because it has been redacted."
    for verb in ("update", "cancel", "submit")
    for status in ("redacting", "redacted")
}
ILLEGAL["redact", "processing"] = (
    'You cannot redact this VerificationSession because it has a status of "processing".'
    " Wait until processing has ended."
)

# operation, status before -> status after, redaction, events; None: refused
TABLE = {
    ("retrieve", "requires_input"): ("requires_input", None, []),
    ("retrieve", "failed"): ("requires_input", None, []),
    ("retrieve", "processing"): ("processing", None, []),
    ("retrieve", "verified"): ("verified", None, []),
    ("retrieve", "canceled"): ("canceled", None, []),
    ("retrieve", "redacting"): ("verified", "processing", []),
    ("retrieve", "redacted"): ("verified", "redacted", []),
    ("update", "requires_input"): ("requires_input", None, []),
    ("update", "failed"): ("requires_input", None, []),
    ("update", "processing"): None,
    ("update", "verified"): None,
    ("update", "canceled"): None,
    ("update", "redacting"): None,
    ("update", "redacted"): None,
    ("cancel", "requires_input"): ("canceled", None, ["canceled"]),
    ("cancel", "failed"): ("canceled", None, ["canceled"]),
    ("cancel", "processing"): None,
    ("cancel", "verified"): None,
    ("cancel", "canceled"): ("canceled", None, []),
    ("cancel", "redacting"): None,
    ("cancel", "redacted"): None,
    ("redact", "requires_input"): ("canceled", "processing", ["canceled"]),
    ("redact", "failed"): ("canceled", "processing", ["canceled"]),
    ("redact", "processing"): None,
    ("redact", "verified"): ("verified", "processing", []),
    ("redact", "canceled"): ("canceled", "processing", []),
    ("redact", "redacting"): ("verified", "processing", []),
    ("redact", "redacted"): ("verified", "redacted", []),
    ("submit", "requires_input"): ("verified", None, ["processing", "verified"]),
    ("submit", "failed"): ("verified", None, ["processing", "verified"]),
    ("submit", "processing"): None,
    ("submit", "verified"): None,
    ("submit", "canceled"): None,
    ("submit", "redacting"): None,
    ("submit", "redacted"): None,
}


@pytest.mark.parametrize(
    ("operation", "status"), TABLE, ids=[f"{op}-{status}" for op, status in TABLE]
)
def test_operation_in_status(api: Api, operation: str, status: str) -> None:
    id_ = in_status(api, status)
    before = api.get(f"{SESSIONS}/{id_}").json
    known = len(api.world.events.by_id)
    path = f"{SESSIONS}/{id_}"
    answer = {
        "retrieve": lambda: api.get(path),
        "update": lambda: api.post(path, "metadata[user]=u2"),
        "cancel": lambda: api.post(f"{path}/cancel"),
        "redact": lambda: api.post(f"{path}/redact"),
        "submit": lambda: api.control(f"sessions/{id_}/submit"),
    }[operation]()
    after = api.get(path).json
    assert before
    assert after
    events = [e.type.rpartition(".")[2] for e in list(api.world.events.by_id.values())[known:]]

    expected = TABLE[operation, status]
    if expected is None:
        assert answer.status_code == 400
        error = api.error(answer)
        assert error["type"] == "invalid_request_error"
        assert error["message"] == ILLEGAL[operation, status]
        assert "code" not in error, "no code is on record for illegal transitions"
        assert after == before, "a refused operation changes nothing"
        assert events == []
        return

    assert answer.status_code == 200
    assert answer.json == after
    assert (after["status"], (after["redaction"] or {}).get("status"), events) == expected
    open_ = after["status"] == "requires_input"
    assert bool(after["url"]) == bool(after["client_secret"]) == open_
    if after["status"] == "canceled":
        assert after["last_error"] is None
    if operation == "update":
        assert after["metadata"] == {"user": "u2"}


@pytest.mark.parametrize("code", LAST_ERRORS)
def test_each_error_code_is_an_outcome(api: Api, code: str) -> None:
    id_ = in_status(api, "requires_input")
    answer = api.control(f"sessions/{id_}/submit", outcome=code).json
    assert answer["status"] == "requires_input"
    assert answer["last_error"] == {"code": code, "reason": LAST_ERRORS[code]}
    assert answer["url"] is answer["client_secret"] is None, "until it is retrieved again"

    report = api.get(f"{REPORTS}/{answer['last_verification_report']}").json
    assert report
    assert report["verification_session"] == id_
    parts = [report[part] for part in PARTS if part in report]
    for found in parts:
        assert (found["status"] == "unverified") == (found["error"] is not None)
    if part := failed_part(code):
        assert report[part]["error"] == {"code": code, "reason": LAST_ERRORS[code]}
    else:
        assert not parts, "a part that was not checked is absent"

    retrieved = api.get(f"{SESSIONS}/{id_}").json
    assert retrieved
    assert retrieved["url"]
    assert retrieved["client_secret"].startswith(f"{id_}_secret_test_")


def test_each_attempt_has_its_own_report(api: Api) -> None:
    id_ = in_status(api, "failed")
    first = api.get(f"{SESSIONS}/{id_}").json
    held = api.control(f"sessions/{id_}/submit", hold=True).json
    assert first
    assert held["last_verification_report"] == first["last_verification_report"]
    done = api.control(f"sessions/{id_}/complete").json
    assert done["last_verification_report"] != first["last_verification_report"]
    listed = api.get(f"{REPORTS}?verification_session={id_}").json
    assert listed
    assert len(listed["data"]) == 2


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("type=document", {"document"}),
        ("type=document&options[document][require_id_number]=true", {"document", "id_number"}),
        ("type=document&options[document][require_matching_selfie]=true", {"document", "selfie"}),
        ("type=id_number", {"id_number"}),
        ("verification_flow=vf_1&provided_details[email]=a@b.c", {"document", "email", "phone"}),
    ],
)
def test_a_report_has_the_parts_its_options_ask_for(api: Api, body: str, parts: set[str]) -> None:
    session = api.create(body)
    verified = api.control(f"sessions/{session['id']}/submit").json
    report = api.get(f"{REPORTS}/{verified['last_verification_report']}").json
    assert report
    assert {part for part in PARTS if part in report} == parts
    of_reports = {"document", "id_number"}
    assert report["options"] == {k: v for k, v in session["options"].items() if k in of_reports}
    assert report["type"] == session["type"]


def test_delay_and_hold(api: Api) -> None:
    id_ = in_status(api, "requires_input")
    assert api.control(f"sessions/{id_}/submit", delay=60).json["status"] == "processing"
    api.control("clock", advance=59)
    assert api.world.sessions[id_].status == "processing"
    api.control("clock", advance=1)
    assert api.world.sessions[id_].status == "verified"

    held = in_status(api, "processing")
    api.control("clock", advance=30 * DAY)
    assert api.world.sessions[held].status == "processing"
    completed = api.control(f"sessions/{held}/complete", outcome="selfie_manipulated").json
    assert completed["last_error"]["code"] == "selfie_manipulated"
    assert api.control(f"sessions/{held}/complete").status_code == 400


def test_redaction_ends_by_the_clock(api: Api) -> None:
    id_ = in_status(api, "redacting")
    api.control("clock", advance=4 * DAY - 1)
    session = api.get(f"{SESSIONS}/{id_}").json
    assert session
    assert session["redaction"] == {"status": "processing"}
    assert session["metadata"] == {"user": "u1"}
    api.control("clock", advance=1)
    last = list(api.world.events.by_id.values())[-1]
    assert last.type == "identity.verification_session.redacted"
    assert last.created == 1_795_000_000 + 4 * DAY


def test_redaction_puts_placeholders_everywhere(api: Api) -> None:
    session = api.create(
        "type=document&options[document][require_matching_selfie]=true&metadata[a]=SECRETDATA"
        "&provided_details[email]=SECRETDATA@x.y&options[document][require_id_number]=true",
        Idempotency_Key="k",
    )
    id_ = session["id"]
    api.control(f"sessions/{id_}/submit", outcome="selfie_face_mismatch")
    api.control(f"sessions/{id_}/submit")
    api.post(f"{SESSIONS}/{id_}/redact")
    api.control(f"sessions/{id_}/complete")

    sensitive = "&".join(
        f"expand[]={field}"
        for field in (
            "verified_outputs.dob",
            "verified_outputs.id_number",
            "verified_outputs.sex",
            "last_verification_report.document.number",
            "last_verification_report.document.expiration_date",
        )
    )
    shown = api.get(f"{SESSIONS}/{id_}?{sensitive}", key="rk_test_unit").json
    assert shown
    outputs = shown["verified_outputs"]
    assert outputs["first_name"] == outputs["last_name"] == outputs["id_number"] == "[redacted]"
    assert outputs["dob"] == {"day": 1, "month": 1, "year": 1}
    assert outputs["address"] == MASKED_ADDRESS
    document = shown["last_verification_report"]["document"]
    assert document["number"] == "[redacted]"
    assert (
        document["expiration_date"] == document["issued_date"] == {"day": 1, "month": 1, "year": 1}
    )
    assert shown["metadata"] == {}
    assert shown["status"] == "verified"

    everything = (
        api.get("/v1/events?limit=100", key="rk_test_unit").text
        + api.get(f"{REPORTS}?limit=100").text
        + api.post(SESSIONS, replay_body(session), Idempotency_Key="k").text
        + api.get(f"{SESSIONS}/{id_}?{sensitive}", key="rk_test_unit").text
    )
    assert "CANARY" not in everything
    assert "SECRETDATA" not in everything


def test_what_a_redaction_masks_and_what_it_keeps(api: Api) -> None:
    """In every part of a report, in what is proven, and in the snapshots of events."""
    flow = api.create("verification_flow=vf_1&provided_details[email]=a@b.c")["id"]
    number = api.create("type=document&options[document][require_id_number]=true")["id"]
    selfie = api.create("type=document&options[document][require_matching_selfie]=true")["id"]
    api.control(f"sessions/{selfie}/submit", outcome="selfie_face_mismatch")
    for id_ in (flow, number, selfie):
        api.control(f"sessions/{id_}/submit")
    before = {report.id: report.parts for report in api.world.reports.by_id.values()}
    for id_ in (flow, number, selfie):
        api.control(f"sessions/{id_}/redact")
        api.control(f"sessions/{id_}/complete")
    kept = {"status", "error", "type", "issuing_country", "id_number_type", "files"}
    kept |= {"document", "selfie"}  # the names of their files
    masks: dict[str, object] = {"address": MASKED_ADDRESS}
    for name in ("dob", "issued_date", "expiration_date"):
        masks[name] = {"day": 1, "month": 1, "year": 1}
    for report in api.world.reports.by_id.values():
        for part, found in report.parts.items():
            for name, value in found.items():
                old = before[report.id][part][name]
                expected = old if name in kept else masks.get(name, "[redacted]")
                assert value == expected, (part, name)
    assert {part for parts in before.values() for part in parts} == set(PARTS)
    shown = api.get(f"{SESSIONS}/{flow}?expand[]=verified_outputs").json
    assert (shown["verified_outputs"]["email"], shown["verified_outputs"]["phone"]) == (
        "[redacted]",
        "[redacted]",
    )
    assert shown["provided_details"] == {"email": "[redacted]"}
    for event in api.world.events.by_id.values():
        assert "a@b.c" not in str(event.snapshot)


def test_what_an_address_lacks_stays_missing_when_it_is_redacted() -> None:
    world = World(clock=lambda: 1_795_000_000.0)
    with world.step():
        session = world.create({"type": "document"})
        world.submit(session, "verified")
        world.redact(session, delay=0.0)
    (report,) = world.reports.by_id.values()
    address = report.parts["document"]["address"]
    assert (address["line1"], address["line2"]) == ("[redacted]", None)
    assert report.parts["document"]["error"] is None


def test_what_falls_due_on_a_leap_of_the_clock_has_its_own_time(api: Api) -> None:
    late, early = (in_status(api, "requires_input") for _ in range(2))
    api.control(f"sessions/{late}/submit", delay=90)
    api.control(f"sessions/{early}/submit", delay=60, outcome="document_expired")
    api.control("clock", advance=1000)
    last = list(api.world.events.by_id.values())[-2:]
    assert [(event.session, event.created - 1_795_000_000) for event in last] == [
        (early, 60),
        (late, 90),
    ]
    assert [report.created - 1_795_000_000 for report in api.world.reports.by_id.values()] == [
        60,
        90,
    ]
    assert [api.world.sessions[id_].processed for id_ in (early, late)] == [
        1_795_000_060,
        1_795_000_090,
    ]
    api.control(f"sessions/{late}/redact")
    api.control("clock", advance=5 * DAY)
    redacted = list(api.world.events.by_id.values())[-1]
    assert redacted.created == 1_795_001_000 + 4 * DAY


def test_what_ended_by_hand_does_not_end_again_by_the_clock(api: Api) -> None:
    id_ = in_status(api, "requires_input")
    api.control(f"sessions/{id_}/submit", delay=60)
    api.control(f"sessions/{id_}/complete", outcome="document_expired")
    api.control(f"sessions/{id_}/submit", delay=600)
    api.control("clock", advance=599)
    assert api.get(f"{SESSIONS}/{id_}").json["status"] == "processing"
    api.control("clock", advance=1)
    assert api.get(f"{SESSIONS}/{id_}").json["status"] == "verified", "the error is not kept"
    events = [event.type.rpartition(".")[2] for event in api.world.events.by_id.values()]
    assert events == ["created", "processing", "requires_input", "processing", "verified"]


def replay_body(_: Any) -> str:
    return (
        "type=document&options[document][require_matching_selfie]=true&metadata[a]=SECRETDATA"
        "&provided_details[email]=SECRETDATA@x.y&options[document][require_id_number]=true"
    )


def test_the_redaction_status_validated_is_shown_on_request(api: Api) -> None:
    id_ = in_status(api, "redacting")
    validated = api.control(f"sessions/{id_}/complete", validated=True).json
    assert validated["redaction"] == {"status": "validated"}
    assert api.control(f"sessions/{id_}/complete").json["redaction"] == {"status": "redacted"}


def test_a_link_lives_for_two_days_and_its_secret_for_one(api: Api) -> None:
    """By the clock, on every path that shows or opens it."""
    session = api.create()
    path = f"{SESSIONS}/{session['id']}"

    def shown(found: Any) -> tuple[bool, bool]:
        return found["url"] is not None, found["client_secret"] is not None

    def listed() -> Any:
        found = api.get(SESSIONS).json
        assert found
        return found["data"][0]

    def opens(url: str) -> bool:
        return api.client.get(url).status_code == 200

    again = api.get(path).json
    assert again
    assert again["url"] == session["url"]
    for hours, expected in ((23, (True, True)), (24, (True, False)), (47, (True, False))):
        api.world.journal.offset = hours * 3600
        assert shown(listed()) == shown(api.post(path, "metadata[a]=b").json) == expected
        assert opens(session["url"])
    fresh = api.get(path).json
    assert fresh
    assert fresh["url"] != session["url"]
    assert opens(session["url"]), "a new link does not end the old one"
    for hours, expected in (
        (48, (True, True)),
        (47 + 24, (True, False)),
        (47 + 48, (False, False)),
    ):
        api.world.journal.offset = hours * 3600
        assert shown(listed()) == expected
        assert not opens(session["url"])
        assert opens(fresh["url"]) == expected[0]
        assert api.client.post(session["url"], data={"outcome": "verified"}).status_code == 404


@pytest.mark.parametrize("choice", ["verified", "leave"])
def test_a_link_is_used_once(api: Api, choice: str) -> None:
    session = api.create()
    path = f"{SESSIONS}/{session['id']}"
    assert api.client.post(session["url"], data={"outcome": choice}).status_code == 200
    assert api.client.get(session["url"]).status_code == 404
    retrieved = api.get(path).json
    assert retrieved
    assert (retrieved["url"] is not None) == (choice == "leave")
    assert retrieved["url"] != session["url"]


def test_updates_merge(api: Api) -> None:
    session = api.create("type=document&metadata[a]=1&metadata[b]=2")
    path = f"{SESSIONS}/{session['id']}"

    def update(body: str) -> Any:
        return api.post(path, body).json

    assert update("metadata[a]=&metadata[c]=3")["metadata"] == {"b": "2", "c": "3"}
    assert update("metadata=")["metadata"] == {}
    selfie = update("options[document][require_matching_selfie]=true")["options"]
    assert selfie == {"document": {"require_matching_selfie": True}}
    both = update("options[document][allowed_types][]=passport")["options"]
    assert both == {"document": {"require_matching_selfie": True, "allowed_types": ["passport"]}}
    assert update("options[document]=")["options"] == {"document": {}}
    assert update("provided_details[phone]=%2B1")["provided_details"] == {"phone": "+1"}
    assert "provided_details" not in update("provided_details[phone]=")
    changed = update("type=id_number")
    assert (changed["type"], changed["options"]) == ("id_number", {"id_number": {}})
    assert len(api.world.events.by_id) == 1, "updates fire nothing"


def test_the_result_can_be_overridden_by_hand(api: Api) -> None:
    id_ = in_status(api, "failed")
    path = f"sessions/{id_}/override"
    verified = api.control(path, status="verified").json
    assert (verified["status"], verified["last_error"], verified["url"]) == ("verified", None, None)
    refused = api.control(path, status="requires_input").json
    assert (refused["status"], refused["last_error"]["code"]) == (
        "requires_input",
        "document_unverified_other",
    )
    changes = [event.type.rpartition(".")[2] for event in api.world.events.by_id.values()]
    assert changes[-2:] == ["verified", "requires_input"]
    for status in ("requires_input", "processing", "canceled", "redacting"):
        never = in_status(api, status)
        answer = api.control(f"sessions/{never}/override", status="verified")
        assert answer.status_code == 400, status


def test_what_could_not_be_stored_is_stored_with_the_next_step(tmp_path: Path) -> None:
    """A full disk for a while leaves no gap in the file."""
    store = Store(tmp_path / "state.sqlite")
    full = [True]

    def save(changes: Changes) -> None:
        if full:
            full.pop()
            raise OSError("no space left on device")
        store.save(changes)

    world = World(save=save)
    with pytest.raises(OSError, match="no space"), world.step():
        first = world.create({"type": "document"})
    with world.step():
        second = world.create({"type": "document"})
    kept = [record.id for record in store.load()]
    store.close()
    assert {first.id, second.id} < set(kept)
    assert kept.index(first.id) < kept.index(second.id)


def test_the_clock_stays_within_what_dates_can_show(api: Api) -> None:
    year = 366 * 24 * 3600
    while api.control("clock", advance=year).status_code == 200:
        pass
    refused = api.control("clock", advance=year)
    assert refused.status_code == 400
    assert "1000 years" in api.error(refused)["message"]
    session = api.create()["id"]
    assert api.client.get(f"/_sandbox/sessions/{session}").status_code == 200
    assert api.get("/v2/core/events").status_code == 200
