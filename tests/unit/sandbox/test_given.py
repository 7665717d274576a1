"""What is sent to the control routes and the pages is read as it was meant, or refused."""

import re

import pytest
from flask.testing import FlaskClient

from stripe_identity_sandbox.operations.base import PERMISSIONS

from .conftest import SESSIONS, Api

FORM = "application/x-www-form-urlencoded"


def places(api: Api) -> list[str]:
    """Return the path of every route that takes a body and is not Stripe's."""
    session = api.create()
    api.world.endpoints.add("http://127.0.0.1:9/", enabled_events=["*"])
    ids = {
        "sessions": session["id"],
        "events": next(iter(api.world.events.by_id)),
        "webhook_endpoints": next(iter(api.world.endpoints.by_id)),
    }
    (token,) = api.world.sessions[session["id"]].links
    found = []
    for rule in api.client.application.url_map.iter_rules():
        if "POST" not in (rule.methods or ()) or rule.rule.startswith(("/v1", "/v2")):
            continue
        kind = rule.rule.split("/")[2]
        found.append(re.sub(r"<id_>", ids.get(kind, ""), rule.rule).replace("<token>", token))
    return found


def posted(client: FlaskClient, path: str, body: bytes, kind: str = FORM) -> tuple[int, str]:
    answer = client.post(path, data=body, content_type=kind)
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    "body", [b"outcome=verified&x=%ff", b"%ff=x", b"kind=drop&endpoint=\xff", b"action=%C3%28"]
)
def test_bytes_that_are_not_in_utf8_are_refused(api: Api, body: bytes) -> None:
    paths = places(api)
    assert len(paths) > 10
    before = api.world.version
    for path in paths:
        status, text = posted(api.client, path, body)
        assert status == 400, path
        assert "Invalid UTF-8 characters found in POST body" in text, path
    assert api.world.version == before
    assert api.client.get("/_sandbox/faults").json == []
    assert api.client.get("/_sandbox/requests?path=%ff").status_code == 400


@pytest.mark.parametrize("kind", ["application/json", FORM, "text/plain;charset=UTF-8", ""])
@pytest.mark.parametrize("body", [b'{"outcome": "document_expired"}', b"outcome=document_expired"])
def test_an_outcome_is_never_lost_to_the_type_of_a_body(api: Api, kind: str, body: bytes) -> None:
    """``fetch`` calls JSON plain text, ``curl -d`` calls it a form, some say nothing."""
    session = api.create()["id"]
    status, _ = posted(api.client, f"/_sandbox/sessions/{session}/submit", body, kind)
    error = api.world.sessions[session].last_error
    if status == 200:
        assert error
        assert error["code"] == "document_expired"
    else:
        assert (kind, body[:1]) == ("application/json", b"o"), (
            "the only one that contradicts itself"
        )
        assert api.world.sessions[session].status == "requires_input"


def test_parts_are_refused(api: Api) -> None:
    answer = api.client.post(
        "/_sandbox/faults", data={"kind": "drop"}, content_type="multipart/form-data"
    )
    assert answer.status_code == 400
    assert "application/x-www-form-urlencoded" in answer.text


def test_lists_in_forms(api: Api) -> None:
    wanted = list(PERMISSIONS[:2])
    body = "&".join(f"permissions[]={name}" for name in wanted).encode()
    assert posted(api.client, "/_sandbox/keys", body)[0] == 200
    (key,) = api.world.keys.values()
    assert key.permissions == wanted
    assert "Unknown: nothing" in posted(api.client, "/_sandbox/keys", b"permissions[]=nothing")[1]


def test_errors_quote_the_beginning_of_what_is_long(api: Api) -> None:
    long = "x" * 500_000
    for answer in (
        api.post(SESSIONS, f"{long}=1"),
        api.post(SESSIONS, f"type=document&metadata[{long}]=1"),
        api.post(SESSIONS, f"type={long}"),
        api.get(f"{SESSIONS}/{long[:30_000]}"),
        api.control("faults", kind=long),
        api.control("keys", permissions=[long]),
    ):
        assert answer.status_code >= 400
        assert len(answer.text) < 6000


def test_nothing_in_the_query_of_a_control_route_is_lost(api: Api) -> None:
    """curl -G, or a habit: the field would be missing in the body, and a default be taken."""
    for path in places(api):
        if path.startswith("/_sandbox/") and path != "/_sandbox/":
            before = api.world.version
            answer = api.client.post(f"{path}?outcome=document_expired")
            assert answer.status_code == 400, path
            assert "Unknown in the query: outcome. Fields are given in the body." in answer.text
            assert api.world.version == before
    for method, path in (
        ("DELETE", "requests?path=/v1/events"),
        ("GET", "requests?status=200"),
        ("GET", "deliveries?session=vs_x"),
        ("GET", "clock?x="),
        ("DELETE", "faults?kind=drop"),
    ):
        answer = api.client.open(f"/_sandbox/{path}", method=method)
        assert answer.status_code == 400, path
    event = next(iter(api.world.events.by_id))
    refused = api.control(f"events/{event}/resend", endpoint="we_x")
    assert "unknown field `endpoint`" in refused.text
