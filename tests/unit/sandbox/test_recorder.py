"""What tests can assert on: the requests that came, and what was answered."""

from typing import Any

from .conftest import DESTINATIONS, SESSIONS, Api


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
        "options": {"document": {"allowed_types": {"0": "passport"}}},
    }
    assert made["answer"] == session
    assert (made["idempotency_key"], made["account"]) == ("k", "acct_1")
    assert listed["params"] == {"limit": "3", "created": {"gte": "5"}}
    assert (refused["params"], refused["status"]) == ({"name": "mine"}, 400)
    assert (spoiled["fault"], spoiled["status"]) == ("error", 500)
    assert (unknown["path"], unknown["status"]) == ("/v1/nothing", 404)
    assert made["id"].startswith("req_")
    assert len({one["id"] for one in requests(api)}) == 5

    assert requests(api, f"?method=POST&path={SESSIONS}") == [made]
    assert api.client.delete("/_sandbox/requests").json == {"cleared": 5}
    assert requests(api) == []


def test_keys_are_not_kept(api: Api) -> None:
    api.get(SESSIONS, key="sk_test_a_key_to_hide")
    assert "a_key_to_hide" not in api.client.get("/_sandbox/requests").text
