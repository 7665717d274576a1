"""Keys, parameters, errors, expansion, pages and idempotency, as domain facts have them."""

import base64
import re
from datetime import datetime
from typing import Any
from urllib.parse import quote

import pytest

from stripe_identity_sandbox.operations import OPERATIONS
from stripe_identity_sandbox.operations.base import PERMISSIONS

from .conftest import DESTINATIONS, REPORTS, SESSIONS, Api

DAY = 24 * 3600


# -- keys --------------------------------------------------------------------------------------


def test_no_key(api: Api) -> None:
    answer = api.client.get(SESSIONS)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Stripe"'
    assert api.error(answer)["message"].startswith("You did not provide an API key.")
    assert api.error(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize("key", ["nonsense", "sk_live_12345678"])
def test_bad_key_is_masked(api: Api, key: str) -> None:
    answer = api.get(SESSIONS, key=key)
    assert answer.status_code == 401
    message = api.error(answer)["message"]
    assert message.startswith("Invalid API Key provided: ")
    assert key not in message


def test_basic_auth_as_curl_sends_it(api: Api) -> None:
    credentials = base64.b64encode(b"sk_test_x:").decode()
    answer = api.client.get(SESSIONS, headers={"Authorization": f"Basic {credentials}"})
    assert answer.status_code == 200
    answer = api.client.get(SESSIONS, headers={"Authorization": "Basic %%%"})
    assert answer.status_code == 401


def test_a_key_can_have_fewer_rights_and_be_revoked(api: Api) -> None:
    key = api.control("keys", permissions=["verification_session_read"]).json["key"]
    assert api.get(SESSIONS, key=key).status_code == 200
    refused = api.post(SESSIONS, "type=document", key=key)
    assert refused.status_code == 403
    message = api.error(refused)["message"]
    assert "does not have the required permissions for this endpoint on account 'acct_" in message
    assert "'rak_verification_session_write'" in message
    assert "code" not in api.error(refused)

    api.control("keys/revoke", key=key)
    assert api.get(SESSIONS, key=key).status_code == 401
    api.control("keys/revoke", key="sk_test_unit")
    assert api.get(SESSIONS).status_code == 401
    assert len(api.client.get("/_sandbox/keys").json or ()) == 2


def test_sensitive_fields_need_a_restricted_key_and_recent_results(api: Api) -> None:
    id_ = api.create("type=document&options[document][require_id_number]=true")["id"]
    report = api.control(f"sessions/{id_}/submit").json["last_verification_report"]
    paths = (
        f"{SESSIONS}/{id_}?expand[]=verified_outputs.dob",
        f"{SESSIONS}/{id_}?expand[]=last_verification_report.document.number",
        f"{SESSIONS}?expand[]=data.verified_outputs.id_number",
        f"{REPORTS}/{report}?expand[]=document.expiration_date",
        f"{REPORTS}?expand[]=data.id_number.id_number",
    )
    for path in paths:
        refused = api.get(path)
        assert refused.status_code == 403
        assert "access sensitive verification results" in api.error(refused)["message"]
        assert api.get(path, key="rk_test_x").status_code == 200

    api.control("clock", advance=2 * DAY)
    every = api.control(
        "keys",
        permissions=["verification_session_read", "sensitive_verification_results_all"],
    ).json["key"]
    for path in paths:
        assert api.get(path, key="rk_test_x").status_code == 403
        assert api.get(path, key=every).status_code == 200


RIGHTS = {
    "verification_session_read": [
        f"GET {SESSIONS}",
        f"GET {SESSIONS}/<session>",
        f"GET {REPORTS}",
        f"GET {REPORTS}/<report>",
    ],
    "verification_session_write": [
        f"POST {SESSIONS}",
        f"POST {SESSIONS}/<session>",
        f"POST {SESSIONS}/<session>/cancel",
        f"POST {SESSIONS}/<session>/redact",
        "POST /v1/test_helpers/identity/verification_sessions/<session>/verify",
        "POST /v1/test_helpers/identity/verification_sessions/<session>/require_input",
    ],
    "event_read": [
        "GET /v1/events",
        "GET /v1/events/<id>",
        "GET /v2/core/events",
        "GET /v2/core/events/<id>",
    ],
    "webhook_read": [
        "GET /v1/webhook_endpoints",
        "GET /v1/webhook_endpoints/<id>",
        f"GET {DESTINATIONS}",
        f"GET {DESTINATIONS}/<id>",
    ],
    "webhook_write": [
        "POST /v1/webhook_endpoints",
        "POST /v1/webhook_endpoints/<id>",
        "DELETE /v1/webhook_endpoints/<id>",
        f"POST {DESTINATIONS}",
        f"POST {DESTINATIONS}/<id>",
        f"POST {DESTINATIONS}/<id>/disable",
        f"POST {DESTINATIONS}/<id>/enable",
        f"DELETE {DESTINATIONS}/<id>",
    ],
}


def test_every_operation_takes_one_right_and_no_other_will_do(api: Api) -> None:
    assert sorted(route for routes in RIGHTS.values() for route in routes) == sorted(
        f"{op.method} {op.path}" for op in OPERATIONS
    )
    for right, routes in RIGHTS.items():
        only = api.control("keys", permissions=[right]).json["key"]
        others = api.control("keys", permissions=[each for each in PERMISSIONS if each != right])
        for route in routes:
            method, path = route.split(" ")
            for key, allowed in ((only, True), (others.json["key"], False)):
                answer = api.client.open(
                    re.sub("<.*?>", "x", path),
                    method=method,
                    headers={"Authorization": f"Bearer {key}"},
                )
                assert (answer.status_code != 403) == allowed, (route, right)
                assert (f"Having the 'rak_{right}' permission" in answer.text) != allowed


def test_results_are_recent_for_two_days_and_those_redacted_are_no_secret(api: Api) -> None:
    """Whatever the kind of the key, a right to all results needs no other one beside it."""
    id_ = api.create()["id"]
    api.control(f"sessions/{id_}/submit")
    path = f"{SESSIONS}/{id_}?expand[]=verified_outputs.dob"
    every = api.control(
        "keys", permissions=["verification_session_read", "sensitive_verification_results_all"]
    ).json["key"]
    neither = api.control("keys", permissions=["verification_session_read"]).json["key"]
    for hours, statuses in (
        (2 * DAY - 1, {"rk_test_x": 200, every: 200, neither: 403}),
        (1, {"rk_test_x": 403, every: 200, neither: 403}),
    ):
        api.control("clock", advance=hours)
        assert {key: api.get(path, key=key).status_code for key in statuses} == statuses
    api.control(f"sessions/{id_}/redact")
    assert api.get(path, key="rk_test_x").status_code == 403, "its redaction has only begun"
    api.control(f"sessions/{id_}/complete")
    assert api.get(path, key="rk_test_x").status_code == 200
    assert api.get(path, key=neither).status_code == 403


def test_a_key_made_with_no_permission_may_do_nothing(api: Api) -> None:
    key = api.control("keys", permissions=[]).json["key"]
    assert api.get(SESSIONS, key=key).status_code == 403


def test_the_platform_s_own_account_by_its_name(api: Api) -> None:
    session = api.create(Stripe_Account="acct_1SandboxPlatform")
    assert ids(api.get(SESSIONS)) == [session["id"]]


def test_what_is_hidden_and_what_is_shown(api: Api) -> None:
    id_ = api.create("type=document&options[document][require_id_number]=true")["id"]
    api.control(f"sessions/{id_}/submit")
    plain = api.get(f"{SESSIONS}/{id_}").json
    assert plain
    assert "verified_outputs" not in plain
    assert plain["last_verification_report"].startswith("vr_")

    shown = api.get(
        f"{SESSIONS}/{id_}?expand[0]=verified_outputs&expand[1]=last_verification_report"
    ).json
    assert shown
    assert set(shown["verified_outputs"]) == {
        "address",
        "email",
        "first_name",
        "id_number_type",
        "last_name",
        "phone",
    }
    assert set(shown["last_verification_report"]["document"]) == {
        "address",
        "error",
        "files",
        "first_name",
        "issued_date",
        "issuing_country",
        "last_name",
        "status",
        "type",
    }
    named = api.get(
        f"{SESSIONS}/{id_}?expand[]=verified_outputs.dob&expand[]=verified_outputs.sex",
        key="rk_test_x",
    ).json
    assert named
    assert named["verified_outputs"]["dob"] == {"day": 17, "month": 7, "year": 1990}
    assert named["verified_outputs"]["sex"] == "female"
    assert "id_number" not in named["verified_outputs"]


def test_verified_outputs_are_null_until_verified(api: Api) -> None:
    id_ = api.create()["id"]
    api.control(f"sessions/{id_}/submit", outcome="document_expired")
    session = api.get(f"{SESSIONS}/{id_}?expand[]=verified_outputs").json
    assert session
    assert session["verified_outputs"] is None


# -- parameters and errors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "message", "param"),
    [
        ("", "parameter_missing", "Missing required param: type.", "type"),
        ("type=document&foo=1", "parameter_unknown", "Received unknown parameter: foo", "foo"),
        (
            "type=document&options[selfie]=1",
            "parameter_unknown",
            "Received unknown parameter: options[selfie]",
            "options[selfie]",
        ),
        (
            "type=passport",
            None,
            "Invalid type: must be one of document or id_number",
            "type",
        ),
        ("type[a]=b", None, 'Invalid string: {"a": "b"}', "type"),
        (
            "type=document&options[document][require_id_number]=maybe",
            None,
            "Invalid boolean: maybe",
            "options[document][require_id_number]",
        ),
        (
            "type=document&options[document][allowed_types]=passport",
            None,
            "Invalid array",
            "options[document][allowed_types]",
        ),
        (
            "type=document&options[document][allowed_types][0]=visa",
            None,
            "Invalid options[document][allowed_types][0]: must be one of driving_license, id_card,"
            " or passport",
            "options[document][allowed_types][0]",
        ),
        ("type=document&options=x", None, "Invalid object", "options"),
        (
            "type=document&related_person[account]=acct_1",
            "parameter_missing",
            "Missing required param: related_person[person].",
            "related_person[person]",
        ),
        (
            "type=document&expand[]=options",
            None,
            "This property cannot be expanded (options).",
            None,
        ),
        (
            "type=document&expand[]=a.b.c.d.e",
            None,
            "You cannot expand more than 4 levels of a property (a.b.c.d.e).",
            None,
        ),
        (
            "type=document&metadata=x",
            None,
            "Invalid metadata: metadata must be a set of key-value pairs",
            "metadata",
        ),
        (
            f"type=document&metadata[{'k' * 41}]=x",
            None,
            f"Invalid key: {'k' * 41} must be a string under 40 characters",
            "metadata",
        ),
        (
            f"type=document&metadata[k]={'x' * 501}",
            None,
            f"Invalid val: {'x' * 501} must be a string under 500 characters",
            "metadata",
        ),
        (
            "type=document&metadata[k][l]=x",
            None,
            'Invalid val: {"l": "x"} must be a string under 500 characters',
            "metadata",
        ),
        ("type=document&metadata[k[l]]=x", None, "", "metadata"),
        ("type=document&metadata[]=x", None, "", "metadata"),
        ("type=document&return_url=nowhere", "url_invalid", "Not a valid URL", "return_url"),
        (
            "type=document&return_url=javascript:alert(1)",
            "url_invalid",
            "Not a valid URL",
            "return_url",
        ),
        (f"type=document&return_url={'x' * 5001}", None, "", "return_url"),
        ("type=document&return_url=", "parameter_invalid_empty", "", "return_url"),
        ("{}", "parameter_unknown", "Received unknown parameter: {}", "{}"),
    ],
)
def test_bad_parameters(
    api: Api, body: str, code: str | None, message: str, param: str | None
) -> None:
    answer = api.post(SESSIONS, body)
    assert answer.status_code == 400
    error = api.error(answer)
    assert error["type"] == "invalid_request_error"
    assert error.get("code") == code
    assert error["message"] == (message or error["message"])
    assert error.get("param") == param
    if code:
        assert error["doc_url"] == f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
    assert not api.world.sessions


def test_more_than_fifty_metadata_keys(api: Api) -> None:
    body = "&".join(f"metadata[k{n}]=x" for n in range(51))
    assert api.post(SESSIONS, f"type=document&{body}").status_code == 400


@pytest.mark.parametrize(
    ("path", "status", "message", "param"),
    [
        (f"{SESSIONS}/vs_x", 404, "No such VerificationSession: 'vs_x'", "session"),
        (f"{REPORTS}/vr_x", 404, "No such VerificationReport: 'vr_x'", "report"),
        ("/v1/events/evt_x", 404, "No such event: 'evt_x'", "id"),
        ("/v1/webhook_endpoints/we_x", 404, "No such webhook endpoint: 'we_x'", "id"),
        (
            f"{SESSIONS}?starting_after=vs_x",
            400,
            "No such VerificationSession: 'vs_x'",
            "starting_after",
        ),
        (
            f"{REPORTS}?ending_before=vr_x",
            400,
            "No such VerificationReport: 'vr_x'",
            "ending_before",
        ),
    ],
)
def test_unknown_ids(api: Api, path: str, status: int, message: str, param: str) -> None:
    answer = api.get(path)
    assert answer.status_code == status
    error = api.error(answer)
    assert (error["code"], error["message"], error["param"]) == ("resource_missing", message, param)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=x", "Invalid integer: x"),
        (
            "expand[]=verified_outputs",
            "This property cannot be expanded (verified_outputs). You may want to try expanding"
            " 'data.verified_outputs' instead.",
        ),
        ("expand[]=data.nothing", "This property cannot be expanded (data.nothing)."),
        ("created[near]=1", "Received unknown parameter: created[near]"),
        (
            "status=pending",
            "Invalid status: must be one of canceled, processing, requires_input, or verified",
        ),
    ],
)
def test_bad_queries(api: Api, query: str, message: str) -> None:
    answer = api.get(f"{SESSIONS}?{query}")
    assert answer.status_code == 400
    assert api.error(answer)["message"] == message


def test_unknown_route_and_method(api: Api) -> None:
    for answer in (api.get("/v1/foo"), api.client.put("/v1/foo"), api.client.patch(SESSIONS)):
        assert answer.status_code == 404
        assert api.error(answer)["message"].startswith("Unrecognized request URL (")
    assert "remove the trailing slash" in api.error(api.get(f"{SESSIONS}/"))["message"]


def test_headers_of_every_answer(api: Api) -> None:
    for answer in (api.get(SESSIONS, Stripe_Version="x"), api.get("/v1/foo"), api.post(SESSIONS)):
        assert answer.headers["Request-Id"].startswith("req_")
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Stripe-Version"]
    assert api.get(SESSIONS, **{"Stripe-Version": "2023-10-16"}).headers["Stripe-Version"] == (
        "2023-10-16"
    )


def test_form_decoding_as_both_sdks_send_it(api: Api) -> None:
    python = "options[document][allowed_types][0]=passport&metadata[user]=u+1&type=document"
    node = "options[document][allowed_types][0]=passport&metadata[user]=u%201&type=document"
    curl = "options[document][allowed_types][]=passport&metadata[user]=u%201&type=document"
    escaped = "options%5Bdocument%5D%5Ballowed_types%5D%5B0%5D=passport&metadata%5Buser%5D=u 1"
    for body in (python, node, curl, f"{escaped}&type=document&expand[]=verified_outputs"):
        session = api.create(body)
        assert session["metadata"] == {"user": "u 1"}
        assert session["options"] == {"document": {"allowed_types": ["passport"]}}
    assert api.create("type=document&metadata[%C3%A9]=%E2%82%AC")["metadata"] == {"é": "€"}


def test_strange_forms_are_refused_not_broken(api: Api) -> None:
    for body in (
        "a[]=1&a[][b]=2",
        "a[b][]=1&a[b]=2",
        "[]=1",
        "a[=1",
        "=",
        "type=document&type[]=x",
    ):
        assert api.post(SESSIONS, body).status_code == 400


# -- shape -------------------------------------------------------------------------------------


def test_a_new_session_has_the_keys_of_the_newest_api_in_stripes_order(api: Api) -> None:
    session = api.create("type=document&client_reference_id=ref&related_customer=cus_1")
    assert list(session) == [
        "id",
        "object",
        "client_reference_id",
        "client_secret",
        "created",
        "last_error",
        "last_verification_report",
        "livemode",
        "metadata",
        "options",
        "redaction",
        "related_customer",
        "related_customer_account",
        "status",
        "type",
        "url",
    ]
    token = session["url"].rpartition("/start/test_")[2]
    assert session["client_secret"] == f"{session['id']}_secret_test_{token}"


def test_the_newest_parameters_are_kept(api: Api) -> None:
    session = api.create(
        "verification_flow=vf_1&provided_details[email]=a@b.c&related_customer_account=acct_2"
        "&related_person[account]=acct_1&related_person[person]=person_1"
    )
    assert session["type"] == "verification_flow"
    assert session["verification_flow"] == "vf_1"
    assert session["provided_details"] == {"email": "a@b.c"}
    assert session["related_customer_account"] == "acct_2"
    assert session["related_person"] == {"account": "acct_1", "person": "person_1"}


# -- pages -------------------------------------------------------------------------------------


def ids(answer: Any) -> list[str]:
    return [item["id"] for item in answer.json["data"]]


def test_pages_both_ways(api: Api) -> None:
    made = [api.create()["id"] for _ in range(7)]
    newest_first = made[::-1]
    first = api.get(f"{SESSIONS}?limit=3")
    assert first.json
    assert list(first.json) == ["object", "data", "has_more", "url"]
    assert (ids(first), first.json["has_more"]) == (newest_first[:3], True)
    second = api.get(f"{SESSIONS}?limit=4&starting_after={ids(first)[-1]}")
    assert second.json
    assert (ids(second), second.json["has_more"]) == (newest_first[3:], False)

    back = api.get(f"{SESSIONS}?limit=2&ending_before={ids(second)[-1]}")
    assert back.json
    assert (ids(back), back.json["has_more"]) == (newest_first[4:6], True)
    both = api.get(f"{SESSIONS}?starting_after={made[0]}&ending_before={made[1]}")
    assert api.error(both)["message"] == (
        "Received both starting_after and ending_before parameters. Please pass in only one."
    )
    unknown = api.get(f"{SESSIONS}?starting_after={made[0]}&ending_before=vs_x")
    assert api.error(unknown)["param"] == "ending_before", "the cursors are looked up first"


@pytest.mark.parametrize(("limit", "count"), [("0", 1), ("-5", 1), ("101", 100), ("7", 7)])
def test_limits_are_clamped(api: Api, limit: str, count: int) -> None:
    for _ in range(101):
        api.create()
    assert len(ids(api.get(f"{SESSIONS}?limit={limit}"))) == count
    assert len(ids(api.get(SESSIONS))) == 10


def test_data_alone_expands_nothing(api: Api) -> None:
    session = api.create()
    listed = api.get(f"{SESSIONS}?expand[]=data").json
    assert listed
    assert listed["data"] == [session]


def test_filters_combine(api: Api) -> None:
    now = 1_795_000_000
    old = api.create("type=document&client_reference_id=a")["id"]
    api.control("clock", advance=100)
    new = api.create("type=document&client_reference_id=a&related_customer=cus_1")["id"]
    api.post(f"{SESSIONS}/{new}/cancel")

    def found(query: str) -> list[str]:
        return ids(api.get(f"{SESSIONS}?{query}"))

    assert found("client_reference_id=a") == [new, old]
    assert found("client_reference_id=a&status=canceled") == [new]
    assert found("related_customer=cus_1") == [new]
    assert found(f"created={now}") == [old]
    assert found(f"created[gt]={now}") == [new]
    assert found(f"created[gte]={now}&created[lt]={now + 100}") == [old]
    assert found(f"created[lte]={now + 100}") == [new, old]
    assert found("related_customer_account=acct_9") == []


def test_reports_are_filtered_and_come_in_pages(api: Api) -> None:
    now = 1_795_000_000

    def report(body: str, **headers: str) -> tuple[str, str]:
        session = api.create(body, **headers)["id"]
        made = api.control(f"sessions/{session}/submit").json["last_verification_report"]
        api.control("clock", advance=10)
        return session, made

    session, first = report("type=document&client_reference_id=a")
    _, second = report("type=id_number&client_reference_id=a")
    _, third = report("type=document&client_reference_id=b")
    of_flow = report("verification_flow=vf_1")[1]
    foreign = report("type=document", Stripe_Account="acct_9")[1]
    every = [of_flow, third, second, first]

    def found(query: str) -> list[str]:
        return ids(api.get(f"{REPORTS}?{query}"))

    assert found("") == every
    assert ids(api.get(REPORTS, **{"Stripe-Account": "acct_9"})) == [foreign]
    assert api.get(f"{REPORTS}/{foreign}").status_code == 404
    assert found(f"starting_after={third}&limit=1") == [second]
    assert found(f"ending_before={first}&limit=1") == [second]
    assert api.get(f"{REPORTS}?limit=3").json["has_more"]
    assert not api.get(f"{REPORTS}?limit=4").json["has_more"]
    unknown = api.get(f"{REPORTS}?starting_after={foreign}")
    assert (unknown.status_code, api.error(unknown)["param"]) == (400, "starting_after")
    assert found("client_reference_id=a") == [second, first]
    assert found("client_reference_id=a&type=document") == [first]
    assert found("type=id_number") == [second]
    assert found(f"verification_session={session}") == [first]
    assert found(f"verification_session={session}&type=id_number") == []
    assert found("verification_session=vs_none") == []
    assert found(f"created={now + 10}") == [second]
    assert found(f"created[gte]={now + 10}&created[lt]={now + 30}") == [third, second]
    flow = api.get(f"{REPORTS}/{of_flow}").json
    assert (flow["verification_flow"], flow["client_reference_id"]) == ("vf_1", None)
    assert "verification_flow" not in api.get(f"{REPORTS}/{first}").json


def test_each_filter_of_sessions_holds_alone(api: Api) -> None:
    fields = ("client_reference_id", "related_customer", "related_customer_account")
    api.create()
    for field in fields:
        made = api.create(f"type=document&{field}=x")
        assert ids(api.get(f"{SESSIONS}?{field}=x")) == [made["id"]]
        assert [name for name in fields if made[name]] == [field]
    canceled, verified = api.create()["id"], api.create()["id"]
    api.post(f"{SESSIONS}/{canceled}/cancel")
    api.control(f"sessions/{verified}/submit")
    for status, id_ in (("canceled", canceled), ("verified", verified)):
        assert ids(api.get(f"{SESSIONS}?status={status}")) == [id_]
    assert ids(api.get(f"{SESSIONS}?status=processing")) == []
    assert len(ids(api.get(f"{SESSIONS}?status=requires_input"))) == 4


# -- idempotency -------------------------------------------------------------------------------


def test_the_same_key_answers_the_same(api: Api) -> None:
    first = api.post(SESSIONS, "type=document", Idempotency_Key="key-1")
    again = api.post(SESSIONS, "type=document", Idempotency_Key="key-1")
    assert first.data == again.data
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert first.headers["Idempotency-Key"] == again.headers["Idempotency-Key"] == "key-1"
    assert again.headers["Original-Request"] == first.headers["Request-Id"]
    assert again.headers["Request-Id"] != first.headers["Request-Id"]
    assert len(api.world.sessions) == 1
    (event,) = api.world.events.by_id.values()
    assert event.request == first.headers["Request-Id"]
    assert event.idempotency_key == "key-1"


def test_the_same_key_with_other_parameters(api: Api) -> None:
    api.post(SESSIONS, "type=document", Idempotency_Key="key-1")
    answer = api.post(SESSIONS, "type=id_number", Idempotency_Key="key-1")
    assert answer.status_code == 400
    assert api.error(answer)["type"] == "idempotency_error"
    assert api.error(answer)["message"] == (
        "Keys for idempotent requests can only be used with the same parameters they were first"
        " used with. Try using a key other than 'key-1' if you meant to execute a different"
        " request."
    )


def test_what_is_kept_for_a_key_and_for_how_long(api: Api) -> None:
    bad = api.post(SESSIONS, "type=nonsense", Idempotency_Key="key-1")
    good = api.post(SESSIONS, "type=document", Idempotency_Key="key-1")
    assert (bad.status_code, good.status_code) == (400, 200)
    api.control("clock", advance=DAY - 1)
    kept = api.post(SESSIONS, "type=document", Idempotency_Key="key-1")
    assert (kept.data, kept.headers["Idempotent-Replayed"]) == (good.data, "true")
    api.control("clock", advance=1)
    later = api.post(SESSIONS, "type=document", Idempotency_Key="key-1")
    assert "Idempotent-Replayed" not in later.headers
    assert len(api.world.answers.by_id) == 1, "what has expired is forgotten"

    session = api.create()["id"]
    api.control(f"sessions/{session}/submit", hold=True)
    refused = api.post(f"{SESSIONS}/{session}/cancel", Idempotency_Key="key-2")
    api.control(f"sessions/{session}/complete", outcome="document_expired")
    again = api.post(f"{SESSIONS}/{session}/cancel", Idempotency_Key="key-2")
    assert refused.status_code == again.status_code == 400
    assert refused.data == again.data
    assert api.post(SESSIONS, "type=document", Idempotency_Key="k" * 256).status_code == 400


def test_an_idempotency_key_means_nothing_to_what_only_reads(api: Api) -> None:
    header = {"Idempotency-Key": "key-1"}
    assert ids(api.get(SESSIONS, **header)) == []
    made = api.create()["id"]
    again = api.get(SESSIONS, **header)
    assert (ids(again), "Idempotent-Replayed" in again.headers) == ([made], False)


def test_a_key_belongs_to_an_account(api: Api) -> None:
    own = api.create("type=document", Idempotency_Key="key-1")
    other = api.create("type=document", Idempotency_Key="key-1", Stripe_Account="acct_9")
    assert own["id"] != other["id"]
    assert api.get(f"{SESSIONS}/{other['id']}").status_code == 404
    seen = api.get(f"{SESSIONS}/{other['id']}", **{"Stripe-Account": "acct_9"})
    assert seen.status_code == 200
    assert ids(api.get("/v1/events", **{"Stripe-Account": "acct_9"})) != ids(api.get("/v1/events"))
    assert api.get(SESSIONS, **{"Stripe-Account": "someone"}).status_code == 403


# -- events ------------------------------------------------------------------------------------


def test_events_are_listed_by_type_time_and_for_thirty_days(api: Api) -> None:
    session = api.create()["id"]
    api.control(f"sessions/{session}/submit")

    def types(query: str) -> list[str]:
        answer = api.get(f"/v1/events?{query}")
        assert answer.json
        return [event["type"].rpartition(".")[2] for event in answer.json["data"]]

    prefix = "identity.verification_session"
    assert types("") == ["verified", "processing", "created"]
    assert types(f"type={prefix}.created") == ["created"]
    assert types("type=identity.*") == ["verified", "processing", "created"]
    assert types("type=invoice.*") == []
    assert types(f"types[]={prefix}.created&types[]={prefix}.verified") == ["verified", "created"]
    assert types("created[gt]=1795000000") == []
    both = api.get(f"/v1/events?type=*&types[]={prefix}.created")
    assert both.status_code == 400
    many = "&".join(f"types[]=t{n}" for n in range(21))
    assert api.get(f"/v1/events?{many}").status_code == 400

    newest = ids(api.get("/v1/events"))[0]
    api.control("clock", advance=30 * DAY - 1)
    assert types("") == ["verified", "processing", "created"]
    api.control("clock", advance=1)
    assert types("") == []
    assert api.get(f"/v1/events/{newest}").status_code == 404


def test_events_are_chosen_by_how_they_were_delivered_and_come_in_pages(api: Api) -> None:
    world = api.world
    api.post("/v1/webhook_endpoints", "url=http://x.example&enabled_events[]=*")
    made = [api.create()["id"] for _ in range(3)]
    newest = list(world.events.by_id)[::-1]
    for delivery in world.outbox.by_id.values():
        if delivery.event == newest[1]:
            delivery.state = "delivered"
    everywhere = {True: [newest[1]], False: [newest[0], newest[2]]}
    for success, expected in everywhere.items():
        assert ids(api.get(f"/v1/events?delivery_success={str(success).lower()}")) == expected
    assert ids(api.get("/v1/events?limit=1")) == newest[:1]
    assert ids(api.get(f"/v1/events?limit=1&starting_after={newest[0]}")) == [newest[1]]
    assert ids(api.get(f"/v1/events?limit=1&ending_before={newest[2]}")) == [newest[1]]
    refused = api.get("/v1/events?starting_after=evt_none")
    assert (refused.status_code, api.error(refused)["param"]) == (400, "starting_after")
    waiting = api.get(f"/v1/events/{newest[0]}").json
    assert (waiting["pending_webhooks"], waiting["data"]["object"]["id"]) == (1, made[-1])
    assert api.get(f"/v1/events/{newest[1]}").json["pending_webhooks"] == 0


@pytest.mark.parametrize("path", ["/v1/events/<id>", "/v2/core/events/<thin>"])
def test_an_event_is_shown_to_its_own_account(api: Api, path: str) -> None:
    api.create(Stripe_Account="acct_9")
    api.create()
    foreign, own = api.world.events.by_id.values()
    for event, account in ((foreign, "acct_9"), (own, "")):
        there = path.replace("<id>", event.id).replace("<thin>", event.thin_id)
        for name in ("acct_9", "acct_8", ""):
            answer = api.get(there, **{"Stripe-Account": name})
            assert answer.status_code == (200 if name == account else 404)
            if name == account:
                shown = answer.json
                assert shown.get("context", shown.get("account")) == (account or None)


def test_both_forms_of_one_event(api: Api) -> None:
    session = api.create("type=document", Idempotency_Key="key-1")
    (event,) = api.world.events.by_id.values()
    snapshot = api.get(f"/v1/events/{event.id}").json
    thin = api.get(f"/v2/core/events/{event.thin_id}").json
    assert snapshot
    assert thin
    assert snapshot["data"] == {"object": session}
    assert snapshot["request"] == {"id": event.request, "idempotency_key": "key-1"}
    assert snapshot["pending_webhooks"] == 0
    assert "account" not in snapshot
    assert thin["snapshot_event"] == event.id
    assert thin["id"] != snapshot["id"]
    assert thin["type"] == f"v1.{snapshot['type']}"
    assert thin["created"] == "2026-11-18T11:06:40.000Z"
    assert thin["reason"]["request"]["idempotency_key"] == "key-1"
    assert thin["related_object"] == {
        "id": session["id"],
        "type": "identity.verification_session",
        "url": f"{SESSIONS}/{session['id']}",
    }
    assert api.get(f"/v2/core/events/{event.id}").status_code == 404
    assert api.get(f"/v1/events/{event.thin_id}").status_code == 404
    api.control(f"sessions/{session['id']}/submit")
    by_stripe = list(api.world.events.by_id.values())[-1]
    unasked = api.get(f"/v1/events/{by_stripe.id}").json
    assert unasked
    assert unasked["request"] == {"id": None, "idempotency_key": None}


# -- webhook endpoints -------------------------------------------------------------------------

ENDPOINTS = "/v1/webhook_endpoints"


def test_webhook_endpoints(api: Api) -> None:
    made = api.post(ENDPOINTS, "url=http://x.example/hook&enabled_events[]=*").json
    assert made
    assert made["secret"].startswith("whsec_")
    path = f"{ENDPOINTS}/{made['id']}"
    retrieved = api.get(path).json
    assert retrieved
    assert "secret" not in retrieved
    changed = api.post(
        path, "disabled=true&description=d&metadata[a]=b&url=http://y.example&enabled_events[]=a.b"
    ).json
    assert changed
    assert (changed["status"], changed["description"]) == ("disabled", "d")
    assert (changed["url"], changed["metadata"]) == ("http://y.example", {"a": "b"})
    cleared = api.post(path, "metadata=&description=").json
    assert cleared
    assert (cleared["metadata"], cleared["description"]) == ({}, None)
    assert ids(api.get(ENDPOINTS)) == [made["id"]]
    deleted = api.client.delete(path, headers={"Authorization": "Bearer sk_test_x"}).json
    assert deleted == {"id": made["id"], "object": "webhook_endpoint", "deleted": True}
    assert api.get(path).status_code == 404
    for _ in range(16):
        assert api.post(ENDPOINTS, "url=http://x.example&enabled_events[]=*").status_code == 200
    assert api.post(ENDPOINTS, "url=http://x.example&enabled_events[]=*").status_code == 400
    assert api.post(ENDPOINTS, "url=http://x.example").status_code == 400


def test_a_wildcard_does_not_take_redacted(api: Api) -> None:
    prefix = "identity.verification_session"
    star = api.post(ENDPOINTS, "url=http://a&enabled_events[]=*").json
    named = api.post(ENDPOINTS, f"url=http://b&enabled_events[]={prefix}.redacted").json
    thin = api.post_json(
        DESTINATIONS,
        name="thin",
        type="webhook_endpoint",
        event_payload="thin",
        enabled_events=[f"v1.{prefix}.redacted"],
        webhook_endpoint={"url": "http://c"},
    ).json
    own = api.post(ENDPOINTS, "url=http://d&enabled_events[]=*&connect=true").json
    assert star
    assert named
    assert thin
    assert own
    session = api.create()["id"]
    api.post(f"{SESSIONS}/{session}/redact")
    api.control(f"sessions/{session}/complete")

    def received(endpoint: Any) -> list[str]:
        listed: Any = api.client.get("/_sandbox/deliveries").json
        return [d["type"].rpartition(".")[2] for d in listed if d["endpoint"] == endpoint["id"]]

    assert received(star) == ["created", "canceled"]
    assert received(named) == ["redacted"]
    assert received(thin) == ["redacted"]
    assert received(own) == [], "connect endpoints get connected accounts' events only"


# -- control routes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("sessions/SESSION/submit", {"outcome": "nonsense"}),
        ("sessions/SESSION/submit", {"surprise": 1}),
        ("sessions/SESSION/submit", {"delay": "long"}),
        ("sessions/SESSION/complete", {"validated": True}),
        ("clock", {"advance": -1}),
        ("clock", {}),
        ("faults", {"kind": "nonsense"}),
        ("faults", {"kind": "drop", "rate": 2}),
        ("faults", {"kind": "error", "status": 200}),
        ("faults", {"kind": "drop", "surprise": 1}),
        ("faults", {"kind": "error", "after": True, "saved": True}),
        ("sessions/SESSION/submit", {"hold": True, "delay": 1}),
        ("sessions/SESSION/complete", {"validated": True, "outcome": "verified"}),
        ("keys/revoke", {"key": ""}),
        ("keys/revoke", {"key": "pk_test_x"}),
        ("keys", {"permissions": ["everything"]}),
        ("keys", {"kind": "publishable"}),
    ],
)
def test_control_routes_refuse_what_they_do_not_know(
    api: Api, path: str, body: dict[str, Any]
) -> None:
    session = api.create()["id"]
    answer = api.control(path.replace("SESSION", session), **body)
    assert answer.status_code == 400
    assert api.error(answer)["message"]


def test_a_redaction_is_completed_without_an_outcome(api: Api) -> None:
    id_ = api.create()["id"]
    api.control(f"sessions/{id_}/redact")
    assert api.control(f"sessions/{id_}/complete", outcome="verified").status_code == 400
    assert api.world.sessions[id_].redaction == "processing"
    assert api.control(f"sessions/{id_}/complete").json["redaction"] == {"status": "redacted"}


@pytest.mark.parametrize(
    "path",
    ["sessions/vs_x/submit", "events/evt_x/resend", "webhook_endpoints/we_x/roll", "nothing"],
)
def test_control_routes_know_what_there_is(api: Api, path: str) -> None:
    assert api.control(path).status_code == 404


def test_control_routes_take_forms_too(api: Api) -> None:
    session = api.create()["id"]
    answer = api.client.post(
        f"/_sandbox/sessions/{session}/submit", data={"outcome": "verified", "hold": "true"}
    )
    assert answer.json
    assert answer.json["status"] == "processing"


BOUNDS = {
    "gt": ("14:00:00", [3, 2]),
    "gte": ("14:00:00", [3, 2, 1]),
    "lt": ("14:00:00", [0]),
    "lte": ("14:00:00", [1, 0]),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("spelling", ["{}", "created[{}]"])
def test_bounds_of_thin_events(api: Api, name: str, spelling: str) -> None:
    """Alone as in API 2025-10-29.clover, and within ``created``; also on the next page."""
    made = []
    start = datetime.fromisoformat("2026-11-18T13:00:00Z").timestamp()
    for hours in range(4):
        with api.world.step() as world:
            world.journal.offset = start + 3600 * hours - 1_795_000_000.0
            made.append(world.create({"type": "document"}).id)
    time, expected = BOUNDS[name]
    asked = f"{spelling.format(name)}=2026-11-18T{time}Z"
    found, url = [], f"/v2/core/events?limit=1&{asked}"
    while url:
        answer = api.get(url)
        assert answer.status_code == 200, answer.text
        found += [event["related_object"]["id"] for event in answer.json["data"]]
        url = answer.json["next_page_url"]
    assert found == [made[n] for n in expected]


def test_bounds_of_both_forms_hold_together(api: Api) -> None:
    api.create()
    past, future = "2020-01-01T00:00:00Z", "2030-01-01T00:00:00Z"
    for query, count in (
        (f"gt={past}&created[lt]={future}", 1),
        (f"gt={future}&created[lt]={future}", 0),
        (f"gt={past}&created[lt]={past}", 0),
    ):
        assert len(api.get(f"/v2/core/events?{query}").json["data"]) == count


@pytest.mark.parametrize("spelling", ["{}", "created[{}]"])
@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("0001-01-01T00:00:00Z", 2),
        ("0001-01-01T00:00:00-14:00", 2),
        ("9999-12-31T23:59:59.999999Z", 0),
        ("9999-12-31T23:59:59.999999+14:00", 0),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
    ],
)
def test_bounds_at_the_ends_of_time(
    api: Api, spelling: str, moment: str, count: int | None
) -> None:
    """What is read can be written into the address of the next page; in UTC, too."""
    api.create()
    api.create()
    asked = f"{spelling.format('gt')}={quote(moment)}"
    answer = api.get(f"/v2/core/events?limit=1&{asked}")
    if count is None:
        assert (answer.status_code, api.error(answer)["param"]) == (400, spelling.format("gt"))
        return
    assert answer.status_code == 200, answer.text
    assert len(answer.json["data"]) == min(count, 1)
    if count:
        second = api.get(answer.json["next_page_url"])
        assert len(second.json["data"]) == 1, second.text
