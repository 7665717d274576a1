"""What tests can assert on: the requests that came, and what was answered."""

from typing import Any

import pytest

from stripe_identity_sandbox.objects import Answer
from stripe_identity_sandbox.recorder import KEPT, Exchange
from stripe_identity_sandbox.state import World

from .conftest import DESTINATIONS, REPORTS, SESSIONS, Api
from .test_spellings import SPELLINGS


def requests(api: Api, query: str = "") -> list[Any]:
    return list(api.client.get(f"/_sandbox/requests{query}").json or ())


def test_requests_and_answers_in_their_order(api: Api) -> None:
    session = api.create(
        "type=document&options[document][allowed_types][0]=passport",
        Idempotency_Key="k",
        Stripe_Account="acct_1",
    )
    api.get(f"{SESSIONS}?limit=3&created[gte]=5")
    api.post_json(DESTINATIONS, name="mine")
    api.client.post("/_sandbox/faults", json={"kind": "error", "next": 1})
    api.get(SESSIONS)
    api.get("/v1/nothing")

    made, listed, refused, spoiled, unknown = requests(api)
    assert (made["method"], made["path"], made["status"]) == ("POST", SESSIONS, 200)
    assert made["params"] == {
        "type": "document",
        "options": {"document": {"allowed_types": ["passport"]}},
    }
    assert made["answer"] == session
    assert (made["idempotency_key"], made["account"]) == ("k", "acct_1")
    assert listed["params"] == {"limit": 3, "created": {"gte": 5}}
    assert (refused["params"], refused["status"]) == ({"name": "mine"}, 400)
    assert (spoiled["fault"], spoiled["status"]) == ("error", 500)
    assert (unknown["path"], unknown["status"]) == ("/v1/nothing", 404)
    assert made["id"].startswith("req_")
    assert len({one["id"] for one in requests(api)}) == 5

    assert requests(api, f"?method=POST&path={SESSIONS}") == [made]
    for method in ("post", "Post"):
        assert requests(api, f"?method={method}&path={SESSIONS}") == [made]
    unknown = api.client.get("/_sandbox/requests?methode=POST&path=/v1&status=200")
    assert unknown.status_code == 400
    assert "methode, status" in api.error(unknown)["message"]
    assert api.client.delete("/_sandbox/requests").json == {"cleared": 5}
    assert requests(api) == []


def test_keys_are_not_kept(api: Api) -> None:
    api.get(SESSIONS, key="sk_test_a_key_to_hide")
    assert "a_key_to_hide" not in api.client.get("/_sandbox/requests").text


# -- what is personal --------------------------------------------------------------------------

PERSONAL = (
    "metadata[name]=PERSONAL",
    "provided_details[email]=PERSONAL@x.example",
    "client_reference_id=x&metadata[a]=PERSONAL",
)
REPLAYED = {"Idempotency_Key": "k"}


@pytest.mark.parametrize("body", PERSONAL)
@pytest.mark.parametrize(
    "fault",
    [
        None,
        {"kind": "error", "after": True},
        {"kind": "timeout", "after": True, "seconds": 0.01},
        {"kind": "cut"},
    ],
)
def test_redaction_reaches_the_requests(api: Api, body: str, fault: dict[str, Any] | None) -> None:
    """Whatever shows a session: what made it, refused updates, lists, reports and events of it."""
    other = api.create("type=document&metadata[name]=OTHER")
    if fault:
        api.control("faults", next=1, **fault)
    api.post(SESSIONS, f"type=document&{body}", **REPLAYED)
    id_ = list(api.world.sessions)[-1]
    api.post(SESSIONS, f"type=document&{body}", **REPLAYED)
    api.control(f"sessions/{id_}/submit")
    api.post(f"{SESSIONS}/{id_}", "metadata[name]=PERSONAL")
    api.post(f"{SESSIONS}/{id_}", "metadata[name]=PERSONAL&nonsense=1")
    (report,) = api.world.reports.by_id
    recent = {"key": "rk_test_x"}
    expand = "expand[]=verified_outputs.dob&expand[]=last_verification_report"
    for path in (
        *(SESSIONS, f"{SESSIONS}/{id_}?{expand}", REPORTS, f"{REPORTS}/{report}"),
        *("/v1/events", f"/v1/events/{list(api.world.events.by_id)[-1]}"),
        *("/v2/core/events", f"/v2/core/events?object_id={id_}"),
    ):
        assert api.get(path, **recent).status_code == 200
    before = len(requests(api))
    assert "PERSONAL" in api.client.get("/_sandbox/requests").text
    assert "CANARY" in api.client.get("/_sandbox/requests").text, "what a report shows"

    api.post(f"{SESSIONS}/{id_}/redact")
    api.control(f"sessions/{id_}/complete")
    for page in ("requests", "log", f"sessions/{id_}"):
        told = api.client.get(f"/_sandbox/{page}").text
        assert "PERSONAL" not in told
        assert "CANARY" not in told
    kept = requests(api)
    assert len(kept) == before + 1, "that there were such requests is still told"
    assert any(one["answer"] == other for one in kept), "those of another session stay"


def test_an_answer_that_is_on_its_way_during_a_redaction(world: World) -> None:
    """What was read before a redaction and noted after it shows nothing either."""
    with world.step():
        session = world.create({"type": "document"})
        world.redact(session, delay=0.0)
        late = Exchange(
            id="req_1", method="GET", path="/v1/x", params='{"a": "PERSONAL"}', account=None,
            version=None, idempotency_key=None, status=200, answer="PERSONAL", fault=None,
            sessions=[session.id],
        )  # fmt: skip
        world.recorder.note(late, world.sessions)
    assert (late.params, late.answer) == (None, None)


AGAIN = {
    "the same": "type=document&metadata[name]=PERSONAL",
    "with other parameters": "type=document&metadata[name]=PERSONAL&metadata[more]=PERSONAL",
}


@pytest.mark.parametrize("account", [{}, {"Stripe_Account": "acct_1"}])
@pytest.mark.parametrize("body", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("fault", [None, "error"])
def test_what_comes_after_a_redaction(
    api: Api, account: dict[str, str], body: str, fault: str | None
) -> None:
    """A retry, an update, a list: whatever shows a redacted session, or has its idempotency key."""
    id_ = api.create(AGAIN["the same"], **REPLAYED, **account)["id"]
    api.control(f"sessions/{id_}/redact", delay=0)
    api.client.delete("/_sandbox/requests")
    if fault:
        api.control("faults", kind=fault, after=True, next=1)
    again = api.post(SESSIONS, body, **REPLAYED, **account)
    assert "PERSONAL" not in again.text
    refused = api.post(f"{SESSIONS}/{id_}", "metadata[name]=PERSONAL", **account)
    assert refused.status_code == 400
    for path in (f"{SESSIONS}/{id_}", SESSIONS, "/v1/events", "/v2/core/events"):
        api.get(path, **{name.replace("_", "-"): value for name, value in account.items()})
    kept = requests(api)
    assert len(kept) == 6
    for one in kept:
        assert (one["params"], one["answer"]) == (None, None), one["path"]
        assert one["sessions"] == [id_]


def test_a_request_refused_while_the_one_that_made_the_session_was_under_way(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "type=document&metadata[name]=PERSONAL"
    create = api.world.create
    refused = []

    def meanwhile(*args: Any, **named: Any) -> Any:
        monkeypatch.undo()
        refused.append(api.post(SESSIONS, body, **REPLAYED))
        return create(*args, **named)

    monkeypatch.setattr(api.world, "create", meanwhile)
    id_ = api.create(body, **REPLAYED)["id"]
    assert [one.status_code for one in refused] == [409]
    api.control(f"sessions/{id_}/redact", delay=0)
    assert [one["status"] for one in requests(api)] == [409, 200]
    assert "PERSONAL" not in api.client.get("/_sandbox/requests").text


def test_an_answer_to_keep_that_is_on_its_way_during_a_redaction(world: World) -> None:
    mine = Answer(id="k", path=SESSIONS, fingerprint="f", request="req_1", created=world.now())
    with world.step():
        session = world.create({"type": "document"})
        world.answers.begin(mine)
        world.redact(session, delay=0.0)
        world.answers.end(mine, 200, "PERSONAL", session)
    assert (mine.status, mine.body, mine.session) == (200, "", session.id)


def test_only_the_api_s_paths_are_kept(api: Api) -> None:
    for path in ("/favicon.ico", "/v1", "/v10/x", "/start/test_x", "/_sandbox/nothing"):
        assert api.get(path).status_code == 404
    api.get("/")
    api.client.post("/_sandbox/clock", json={"advance": -1})
    assert requests(api) == []
    api.get("/v1/nothing")
    api.get(f"{SESSIONS}?x={'x' * 70_000}")
    api.get(SESSIONS, Origin="http://evil.example")
    assert [one["status"] for one in requests(api)] == [404, 414, 403], "and refusals, too"


@pytest.mark.parametrize("write", SPELLINGS.values(), ids=SPELLINGS)
def test_parameters_are_as_the_sandbox_reads_them(api: Api, write: Any) -> None:
    """However an SDK spells them; also those of a request that is refused."""
    asked = {
        "options": {"document": {"allowed_types": ["passport", "id_card"]}},
        "metadata": {"0": "a"},
        "type": "document",
    }
    body = "&".join(write(name, value) for name, value in asked.items())
    api.post(SESSIONS, body)
    api.post(SESSIONS, f"{body}&nonsense=1")
    made, refused = requests(api)
    assert made["params"] == asked
    assert refused["params"]["options"] == asked["options"]
    assert refused["params"]["nonsense"] == "1"


def test_long_exchanges_leave_room_for_fewer(world: World) -> None:
    with world.step():
        for number in range(100):
            world.recorder.note(exchange(f"req_{number}", "x" * 1_000_000), world.sessions)
        kept = world.recorder.all()
        assert len(kept) == 8
        assert kept[-1].id == "req_99"
        for number in range(KEPT + 1):
            world.recorder.note(exchange(f"req_short_{number}", "x"), world.sessions)
        assert len(world.recorder.all()) == KEPT
        world.recorder.clear()
        world.recorder.note(exchange("req_long", "x" * 8_000_000), world.sessions)
        world.recorder.note(exchange("req_short", "x"), world.sessions)
        assert len(world.recorder.all()) == 2, "what was forgotten takes no room"
        world.recorder.note(exchange("req_longer", "x" * 30_000_000), world.sessions)
        assert [one.id for one in world.recorder.all()] == ["req_longer"]


def exchange(id_: str, answer: str) -> Exchange:
    return Exchange(
        id=id_, method="GET", path="/v1/x", params=None, account=None, version=None,
        idempotency_key=None, status=200, answer=answer, fault=None, sessions=[],
    )  # fmt: skip
