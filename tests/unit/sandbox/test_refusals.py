"""What Stripe is on record to refuse, in its words, and whose endpoint is whose."""

import inspect
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import stripe.events
from stripe.params import _webhook_endpoint_create_params

from stripe_identity_sandbox.versions import exists

from .conftest import DESTINATIONS, REPORTS, SESSIONS, Api

ENDPOINTS = "/v1/webhook_endpoints"
EVENT = "identity.verification_session"


def test_an_idempotency_key_belongs_to_one_path(api: Api) -> None:
    session = api.create(Idempotency_Key="k")
    path = f"{SESSIONS}/{session['id']}/cancel"
    answer = api.post(path, Idempotency_Key="k")
    assert answer.status_code == 400
    error = api.error(answer)
    assert error["type"] == "idempotency_error"
    assert error["message"] == (
        "Keys for idempotent requests can only be used for the same endpoint they were first used"
        f" for ('{path}' vs '{SESSIONS}'). Try using a key other than 'k' if you meant to execute a"
        " different request."
    )


BODIES = {
    SESSIONS: "type=document",
    f"{SESSIONS}/vs_x/cancel": "",
    ENDPOINTS: "url=http://x.example&enabled_events[]=*",
    DESTINATIONS: None,
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("length", "accepted"), [(0, False), (1, True), (255, True), (256, False)])
def test_the_length_of_an_idempotency_key(api: Api, path: str, length: int, accepted: bool) -> None:
    key = {"Idempotency-Key": "k" * length}
    if (body := BODIES[path]) is None:
        answer = api.client.post(
            path,
            json=destination(),
            headers={"Authorization": "Bearer sk_test_x", **key},
        )
    else:
        answer = api.post(path, body, **key)
    message = api.error(answer)["message"] if "error" in answer.json else ""
    assert message.startswith("Idempotent key length is ") != accepted
    if not accepted:
        assert answer.status_code == 400
        assert f" {length} characters long, which is outside accepted lengths." in message
        assert api.error(answer)["type"] == "idempotency_error"
        assert not api.world.sessions
        assert not api.world.endpoints.by_id


@pytest.mark.parametrize("written", [b"%FF", b"\xff", b"\xc3", b"a%C3", b"%ED%A0%80", b"\xc0\xaf"])
@pytest.mark.parametrize(
    "place",
    ["metadata[a]=%s", "metadata[%s]=a", "%s=a", "client_reference_id=%s", "expand[]=%s"],
)
def test_a_form_that_is_not_in_utf_8(api: Api, written: bytes, place: str) -> None:
    body = b"type=document&" + place.encode() % written
    headers = {"Authorization": "Bearer sk_test_x"}
    form = "application/x-www-form-urlencoded"
    refused = api.client.post(SESSIONS, data=body, headers=headers, content_type=form)
    assert refused.status_code == 400
    assert api.error(refused)["message"].startswith("Invalid UTF-8 characters found in POST body: ")
    assert not api.world.sessions
    query = body.decode("latin-1").replace("type", "status")
    for path in (SESSIONS, "/v2/core/events"):
        # As the server hands it over: every byte is escaped.
        refused = api.get(f"{path}?{quote(query.encode('latin-1'), safe='%=&[]')}")
        assert refused.status_code == 400
        assert api.error(refused)["message"].startswith("Invalid UTF-8 characters found in query: ")


@pytest.mark.parametrize("written", [b"%C3%A9", b"\xc3\xa9", b"\xc3%A9", b"%C3\xa9"])
def test_a_character_in_bytes_and_escapes(api: Api, written: bytes) -> None:
    made = api.client.post(
        SESSIONS,
        data=b"type=document&metadata[a]=" + written,
        headers={"Authorization": "Bearer sk_test_x"},
        content_type="application/x-www-form-urlencoded",
    )
    assert made.json["metadata"] == {"a": "\xe9"}


def test_a_publishable_key(api: Api) -> None:
    answer = api.get(SESSIONS, key="pk_test_x")
    assert answer.status_code == 401
    assert api.error(answer)["code"] == "secret_key_required"
    assert api.error(answer)["message"].startswith("This API call cannot be made with a publish")


@pytest.mark.parametrize(
    ("version", "exists"),
    [
        ("2011-11-17", True),
        ("2023-10-16", True),
        ("2018-11-21; some_beta=v1", True),
        ("2025-02-24.acacia", True),
        ("2025-08-27.basil", True),
        ("2025-08-27.preview", True),
        ("2026-10-28.endive", True),
        ("2031-01-01.later", True),
        ("2019-2-19", False),
        ("2025-09-30.acacia", False),
        ("2025-08-27", False),
        ("2026-10-28", False),
        ("2026-10-28.banana", False),
        ("2026-10-28.dahlia", False),
        ("2031-01-01", False),
        ("banana", False),
        ("2020-08-27; \x01", False),
        ("2023-10-16.acacia", False),
        ("2023-13-16", False),
        ("latest", False),
        ("", False),
    ],
)
def test_a_version_that_cannot_exist(api: Api, version: str, exists: bool) -> None:
    answer = api.get(SESSIONS, **{"Stripe-Version": version})
    if exists:
        assert answer.status_code == 200
    else:
        assert answer.status_code == 400
        assert api.error(answer)["message"] == f"Invalid Stripe API version: {version}"


def sdk_s(name: str) -> set[str]:
    """Return the texts that the SDK's type of a parameter of an endpoint allows."""
    source = inspect.getsource(_webhook_endpoint_create_params)
    block = re.search(rf"^    {name}: (.*?)^    \"\"\"", source, re.DOTALL | re.MULTILINE)
    assert block
    return set(re.findall(r'"(.*?)"', block[1]))


def test_every_version_and_event_that_the_sdk_knows_exists(api: Api) -> None:
    versions, names = sdk_s("api_version"), sdk_s("enabled_events")
    assert len(versions) > 90
    assert len(names) > 200
    assert [version for version in versions if not exists(version)] == []
    body = "&".join(f"enabled_events[]={name}" for name in sorted(names))
    assert api.post(ENDPOINTS, f"url=http://x.example&{body}").status_code == 200
    thin = {
        name
        for file in Path(stripe.events.__file__).parent.glob("*.py")
        for name in re.findall(r'LOOKUP_TYPE = \(?\s*"(.*?)"', file.read_text())
    }
    assert len(thin) > 300
    made = api.post_json(DESTINATIONS, **destination(enabled_events=sorted(thin)))
    assert made.status_code == 200, made.text


@pytest.mark.parametrize("version", ["banana", "2026-10-28", "", "2026-10-28.banana"])
def test_a_version_that_events_cannot_have(api: Api, version: str) -> None:
    body = f"url=http://x.example&enabled_events[]=*&api_version={version}"
    refused = api.post(ENDPOINTS, body)
    assert (refused.status_code, api.error(refused)["param"]) == (400, "api_version")
    fields = destination(event_payload="snapshot", enabled_events=["*"])
    refused = api.post_json(DESTINATIONS, **fields, snapshot_api_version=version)
    assert (refused.status_code, api.error(refused)["param"]) == (400, "snapshot_api_version")


def test_the_names_of_events_are_of_the_form_that_is_sent(api: Api) -> None:
    plain, thin = f"{EVENT}.created", f"v1.{EVENT}.created"
    for wrong in (thin, "v1.charge.succeeded", "v2.core.account.created"):
        refused = api.post(ENDPOINTS, f"url=http://x.example&enabled_events[]={wrong}")
        assert (refused.status_code, api.error(refused)["param"]) == (400, "enabled_events[0]")
    for form, right, wrong in (("snapshot", plain, thin), ("thin", thin, plain)):
        fields = destination(event_payload=form)
        refused = api.post_json(DESTINATIONS, **fields | {"enabled_events": [right, wrong]})
        assert (refused.status_code, api.error(refused)["param"]) == (400, "enabled_events[1]")
        made = api.post_json(DESTINATIONS, **fields | {"enabled_events": [right]}).json
        assert made
        path = f"{DESTINATIONS}/{made['id']}"
        assert api.post_json(path, enabled_events=[wrong]).status_code == 400
        assert (api.get(path).json or {})["enabled_events"] == [right]


def test_a_thin_destination_takes_no_wildcard(api: Api) -> None:
    refused = api.post_json(DESTINATIONS, **destination(enabled_events=["*"]))
    assert (refused.status_code, api.error(refused)["param"]) == (400, "enabled_events[0]")
    assert api.get("/v2/core/events?types[0]=*").status_code == 400
    snapshots = destination(enabled_events=["*"], event_payload="snapshot")
    assert api.post_json(DESTINATIONS, **snapshots).status_code == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"events_from": ["@organization_members"]},
            "events_from[0]: Unrecognized enum value '@organization_members', valid values are:"
            " @accounts, @self, other_accounts, self.",
        ),
        ({"peer": "x"}, "peer: Unknown field."),
        ({"webhook_endpoint": {"url": "x"}}, "webhook_endpoint.url: Not a valid URL."),
        ({"webhook_endpoint": {"uri": "x"}}, "webhook_endpoint.uri: Unknown field."),
        ({"webhook_endpoint": {}}, "webhook_endpoint.url: It is required."),
        ({"name": ""}, "name: It must not be empty."),
    ],
)
def test_mistakes_in_the_words_of_v2(api: Api, change: dict[str, Any], said: str) -> None:
    refused = api.post_json(DESTINATIONS, **destination(**change))
    error = api.error(refused)
    assert (refused.status_code, error["code"]) == (400, "invalid_fields")
    assert error["message"] == f"Some fields in the request were invalid: '{said}'"
    assert "type" not in error


def test_an_endpoint_takes_at_least_one_event(api: Api) -> None:
    made = api.post(ENDPOINTS, "url=http://x.example&enabled_events[]=*").json
    assert made
    for path, body in (
        (ENDPOINTS, "url=http://x.example&enabled_events="),
        (f"{ENDPOINTS}/{made['id']}", "enabled_events="),
    ):
        refused = api.post(path, body)
        assert (refused.status_code, api.error(refused)["param"]) == (400, "enabled_events")
    refused = api.post_json(DESTINATIONS, **destination(enabled_events=[]))
    assert refused.status_code == 400


def test_what_a_destination_can_be_asked_for(api: Api) -> None:
    """The SDKs' types say which parameter goes with which."""
    refused = api.post_json(DESTINATIONS, **destination(snapshot_api_version="2026-10-28.endive"))
    assert (refused.status_code, api.error(refused)["param"]) == (400, "snapshot_api_version")
    made = api.post_json(DESTINATIONS, **destination()).json
    assert made
    path, secret = f"{DESTINATIONS}/{made['id']}", "webhook_endpoint.signing_secret"
    for again in (path, f"{path}/disable", f"{path}/enable"):
        assert api.post_json(again, include=[secret]).status_code == 400
        assert api.post_json(again, include=["webhook_endpoint.url"]).status_code == 200
    assert api.get(f"{path}?include[0]={secret}").status_code == 400
    assert api.get(f"{ENDPOINTS}/{made['id']}").status_code == 404, "it is none of /v1"


def test_a_json_body_under_v1_and_a_form_under_v2(api: Api) -> None:
    refused = api.post_json(SESSIONS, type="document")
    assert refused.status_code == 400
    assert "application/x-www-form-urlencoded" in api.error(refused)["message"]
    assert api.post(DESTINATIONS, "name=x").status_code == 400


TYPES = ("text/plain;charset=UTF-8", "application/octet-stream", "application/xml")


@pytest.mark.parametrize("kind", [*TYPES, "multipart/form-data; boundary=x", "", None])
def test_a_type_of_body_that_is_none_of_stripe_s(api: Api, kind: str | None) -> None:
    """``fetch`` of JavaScript calls a text plain; Stripe refuses it, so that nobody forgets it."""
    headers = {"Authorization": "Bearer sk_test_x"}
    answer = api.client.post(SESSIONS, data="type=document", headers=headers, content_type=kind)
    assert (answer.status_code == 200) == (not kind)
    if kind:
        assert f"Invalid request: unsupported Content-Type {kind}." in api.error(answer)["message"]
    body = json.dumps(destination())
    for not_json in (kind, "application/x-www-form-urlencoded"):
        answer = api.client.post(DESTINATIONS, data=body, headers=headers, content_type=not_json)
        assert (answer.status_code, "application/json" in answer.text) == (400, True)
    if kind in TYPES:  # of parts, the test's client would write the end
        path = f"{SESSIONS}/{api.create()['id']}/cancel"
        done = api.client.post(path, headers=headers, content_type=kind)
        assert done.status_code == 200, "nothing is sent, so nothing is called wrong"


def test_json_says_by_itself_what_is_an_array(api: Api) -> None:
    """PHP makes an object of a list with a gap. Stripe takes none for an array."""
    names = {"0": f"v1.{EVENT}.created", "2": f"v1.{EVENT}.verified"}
    refused = api.post_json(DESTINATIONS, **destination(enabled_events=names))
    assert (refused.status_code, api.error(refused)["param"]) == (400, "enabled_events")
    made = api.post_json(DESTINATIONS, **destination(metadata={"0": "a", "1": "b"})).json
    assert made["metadata"] == {"0": "a", "1": "b"}
    (asked,) = api.client.get("/_sandbox/requests?path=/v2").json[1:]
    assert asked["params"]["metadata"] == {"0": "a", "1": "b"}


@pytest.mark.parametrize("name", [f"{EVENT}.done", f"v1.{EVENT}.done", "created", "a b.c", "v1."])
def test_an_unknown_event(api: Api, name: str) -> None:
    answer = api.post(ENDPOINTS, f"url=http://x.example&enabled_events[]={name}")
    assert answer.status_code == 400
    assert api.error(answer)["param"] == "enabled_events[0]"


@pytest.mark.parametrize("url", ["x.example", "myapp://done", "http://", "http://x.example/a b"])
def test_an_endpoint_is_on_the_web(api: Api, url: str) -> None:
    answer = api.post(ENDPOINTS, f"url={url}&enabled_events[]=*")
    assert (answer.status_code, api.error(answer)["message"]) == (400, "Not a valid URL")


def test_metadata_is_limited_by_what_results(api: Api) -> None:
    fifty = "&".join(f"metadata[k{n}]=x" for n in range(50))
    session = f"{SESSIONS}/{api.create(f'type=document&{fifty}')['id']}"
    endpoint = api.post(ENDPOINTS, f"url=http://x.example&enabled_events[]=*&{fifty}").json
    assert endpoint
    for path in (session, f"{ENDPOINTS}/{endpoint['id']}"):
        refused = api.post(path, "metadata[more]=x")
        assert (refused.status_code, api.error(refused)["param"]) == (400, "metadata")
        unset = "&".join(f"metadata[k{n}]=" for n in range(50))
        assert api.post(path, f"{unset}&metadata[one]=x").status_code == 200
        changed = api.get(path).json
        assert changed
        assert changed["metadata"] == {"one": "x"}


# -- accounts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [SESSIONS, REPORTS, "/v1/events", ENDPOINTS, DESTINATIONS])
def test_a_path_of_accounts_is_a_context_only(api: Api, path: str) -> None:
    nested = "acct_1Parent/acct_1Child"
    refused = api.get(path, **{"Stripe-Account": nested})
    assert (refused.status_code, api.error(refused)["code"]) == (403, "account_invalid")
    assert api.get(path, **{"Stripe-Context": nested}).status_code == 200
    assert api.get(path, **{"Stripe-Account": "acct_1Child"}).status_code == 200


def test_endpoints_belong_to_an_account(api: Api) -> None:
    body = "url=http://x.example&enabled_events[]=*"
    platforms = api.post(ENDPOINTS, body).json
    watching = api.post(ENDPOINTS, f"{body}&connect=true").json
    accounts = api.post(ENDPOINTS, body, Stripe_Account="acct_1").json
    assert platforms
    assert watching
    assert accounts

    def listed(**headers: str) -> set[str]:
        found = api.get(ENDPOINTS, **headers).json
        assert found
        return {endpoint["id"] for endpoint in found["data"]}

    assert listed() == {platforms["id"], watching["id"]}
    assert listed(**{"Stripe-Account": "acct_1"}) == {accounts["id"]}
    assert api.get(f"{ENDPOINTS}/{accounts['id']}").status_code == 404

    for account in ("", "acct_1", "acct_2"):
        api.create(Stripe_Account=account)
    world = api.world
    got: dict[str, list[Any]] = {}
    for delivery in world.outbox.by_id.values():
        payload = world.outbox.payload(delivery)
        got.setdefault(delivery.endpoint, []).append(payload.get("account"))
    assert got == {
        platforms["id"]: [None],
        watching["id"]: ["acct_1", "acct_2"],
        accounts["id"]: [None],
    }


# -- /v2 ---------------------------------------------------------------------------------------


def destination(**fields: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "type": "webhook_endpoint",
        "event_payload": "thin",
        "enabled_events": [f"v1.{EVENT}.created"],
        "webhook_endpoint": {"url": "http://x.example/thin"},
    } | fields


def test_destinations(api: Api) -> None:
    made = api.post_json(
        DESTINATIONS, **destination(include=["webhook_endpoint.signing_secret"])
    ).json
    assert made
    assert made["webhook_endpoint"]["signing_secret"].startswith("whsec_")
    assert made["webhook_endpoint"]["url"] is None
    path = f"{DESTINATIONS}/{made['id']}"
    changed = api.post_json(path, name="other", metadata={"a": "b"}, description="d").json
    assert changed
    assert (changed["name"], changed["metadata"]) == ("other", {"a": "b"})
    assert changed["webhook_endpoint"] == {"url": None, "signing_secret": None}
    api.post_json(f"{path}/disable")
    api.create()
    enabled = api.post_json(f"{path}/enable").json
    assert enabled
    assert enabled["status"] == "enabled"
    api.create()
    assert len(api.world.outbox.by_id) == 1
    (listed,) = (api.get(f"{DESTINATIONS}?include[0]=webhook_endpoint.url").json or {})["data"]
    assert listed["webhook_endpoint"]["url"] == "http://x.example/thin"
    found = api.get(ENDPOINTS).json
    assert found
    assert found["data"] == [], "no webhook endpoint of /v1"
    gone = api.client.delete(path, headers={"Authorization": "Bearer sk_test_x"}).json
    assert gone == {"id": made["id"], "object": "v2.core.event_destination"}
    assert api.get(path).status_code == 404
    assert api.post_json(DESTINATIONS, name="x").status_code == 400


def test_thin_events_are_listed_page_by_page(api: Api) -> None:
    sessions = [api.create()["id"] for _ in range(5)]
    api.create(Stripe_Account="acct_1")
    for id_ in sessions:
        api.control(f"sessions/{id_}/submit")
    types = f"types[0]=v1.{EVENT}.created"
    seen, url = [], f"/v2/core/events?limit=2&{types}&created[gte]=2026-01-01T00:00:00Z"
    while url:
        page = api.get(url).json
        assert page
        assert len(page["data"]) <= 2
        seen += [event["related_object"]["id"] for event in page["data"]]
        url = page["next_page_url"]
    assert seen == sessions[::-1]
    of_one = api.get(f"/v2/core/events?object_id={sessions[0]}").json
    assert of_one
    assert [event["type"].rpartition(".")[2] for event in of_one["data"]] == [
        "verified",
        "processing",
        "created",
    ]
    assert api.get("/v2/core/events?page=nothing").status_code == 400
    assert api.get("/v2/core/events?created[lt]=soon").status_code == 400
    api.control("clock", advance=31 * 24 * 3600)
    old = api.get("/v2/core/events").json
    assert old
    assert old["data"] == []


# -- test helpers ------------------------------------------------------------------------------

HELPERS = "/v1/test_helpers/identity/verification_sessions"


def test_the_helpers_of_test_mode(api: Api) -> None:
    id_ = api.create()["id"]
    failed = api.post(f"{HELPERS}/{id_}/require_input", "error_code=selfie_manipulated").json
    assert failed
    assert (failed["status"], failed["last_error"]["code"]) == (
        "requires_input",
        "selfie_manipulated",
    )
    api.control(f"sessions/{id_}/submit", hold=True)
    verified = api.post(f"{HELPERS}/{id_}/verify").json
    assert verified
    assert verified["status"] == "verified"
    assert api.post(f"{HELPERS}/{id_}/verify").status_code == 400
