"""`failure_of`: each answer that is no success, as the SDK raises it, in a word."""

from __future__ import annotations

import json

import pytest
import stripe

from workers.failures import StripeFailure
from workers.http import _is_direct
from workers.stripe_api import StripeApi, failure_of

HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>"


def raised(status: int, body: str, headers: dict[str, str], api_mode: str) -> stripe.StripeError:
    """Return what the SDK raises for this answer: its own mapping, from bytes on."""

    class Answer(stripe.HTTPClient):
        name = "test"

        def request(self, *_args: object, **_kwargs: object) -> tuple[str, int, dict[str, str]]:
            return body, status, headers

        def close(self) -> None: ...

    client = stripe.StripeClient("sk_test_x", http_client=Answer())
    v1, v2 = client.v1.identity.verification_sessions, client.v2.core.events
    with pytest.raises(stripe.StripeError) as caught:
        v2.retrieve("evt_1") if api_mode == "V2" else v1.retrieve("vs_1")
    return caught.value


def failure(
    status: int,
    code: str | None = None,
    kind: str = "api_error",
    headers: dict[str, str] | None = None,
    api_mode: str = "V1",
) -> StripeFailure:
    error = {"type": kind, "message": "A sentence that may quote anything.", "code": code}
    body = json.dumps({"error": {k: v for k, v in error.items() if v is not None}})
    return failure_of(raised(status, body, headers or {}, api_mode), "session")


@pytest.mark.parametrize("api_mode", ["V1", "V2"])
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "parameter_unknown", "invalid"),
        (400, "rate_limit", "limited"),
        (401, None, "key"),
        (401, "api_key_expired", "key"),
        (402, "card_declined", "invalid"),
        (403, None, "forbidden"),
        (403, "account_invalid", "account"),
        (404, "account_invalid", "account"),
        (404, "resource_missing", "missing"),
        (409, "idempotency_key_in_use", "locked"),
        (409, None, "locked"),
        (429, "rate_limit", "limited"),
        (429, "lock_timeout", "locked"),
        (429, None, "limited"),
        (424, "external_dependency_failed", "invalid"),
        (500, None, "broken"),
        (502, None, "broken"),
        (503, "lock_timeout", "locked"),
    ],
)
def test_stripes_errors(status, code, kind, api_mode) -> None:
    found = failure(status, code, api_mode=api_mode)
    assert (found.kind, found.status, found.code) == (kind, status, code)
    assert str(found) == " ".join(filter(None, [kind, str(status), code]))


@pytest.mark.parametrize("code", [["resource_missing"], {"a": 1}, 7])
def test_a_code_that_is_no_text_is_none(code) -> None:
    body = json.dumps({"error": {"type": "invalid_request_error", "code": code}})
    found = failure_of(raised(404, body, {}, "V1"), "session")
    assert (found.kind, found.code) == ("missing", None)


@pytest.mark.parametrize("status", [400, 409])
def test_idempotency_errors(status) -> None:
    found = failure(status, "idempotency_key_in_use", kind="idempotency_error")
    assert found.kind == ("locked" if status == 409 else "invalid")


@pytest.mark.parametrize("body", [HTML, "", "[]", "null", '"busy"', '{"errors": []}'])
@pytest.mark.parametrize("status", [400, 404, 408, 413, 500, 502, 503, 504])
def test_a_page_of_somebody_between_says_nothing_of_the_session(status, body) -> None:
    found = failure_of(raised(status, body, {}, "V1"), "session")
    assert (found.kind, found.status, found.code) == ("broken", status, None)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "key"), (403, "forbidden"), (409, "locked"), (429, "limited")]
)
def test_but_a_status_that_speaks_for_itself_is_believed(status, kind) -> None:
    assert failure_of(raised(status, HTML, {}, "V1"), "session").kind == kind


def test_an_answer_of_200_that_is_no_json() -> None:
    assert failure_of(raised(200, HTML, {}, "V1"), "session").kind == "broken"


def test_no_answer_at_all() -> None:
    found = failure_of(stripe.APIConnectionError("https://user:pass@api.stripe.com"), "session")
    assert (found.kind, found.status) == ("unreachable", None)
    assert str(found) == "unreachable"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("", None),
        ("nan", None),
        ("inf", 3600.0),
        ("86400", 3600.0),
    ],
)
@pytest.mark.parametrize("name", ["Retry-After", "retry-after"])
def test_retry_after(name, header, seconds) -> None:
    assert failure(429, "rate_limit", headers={name: header}).retry_after == seconds


def test_the_request_id_is_kept() -> None:
    assert failure(500, headers={"Request-Id": "req_1"}).request_id == "req_1"
    assert failure(500).request_id is None


def test_neither_text_nor_cause_holds_what_stripe_said(canary) -> None:
    class Answer(stripe.HTTPClient):
        name = "test"

        def request(self, *_args: object, **_kwargs: object) -> tuple[str, int, dict[str, str]]:
            return json.dumps({"error": {"type": "x", "message": canary}}), 400, {}

    api = StripeApi("sk_test_x")
    api._sessions = stripe.StripeClient(  # type: ignore[assignment]
        "sk_test_x", http_client=Answer()
    ).v1.identity.verification_sessions
    with pytest.raises(StripeFailure) as caught:
        api.retrieve_session("vs_1")
    assert canary not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_the_sdk_sends_no_telemetry() -> None:
    stripe.enable_telemetry = True
    StripeApi("sk_test_x")
    assert stripe.enable_telemetry is False


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("", False),
        (" , ", False),
        ("api.stripe.com", True),
        ("stripe.com", True),
        (".stripe.com", True),
        ("*.stripe.com", True),
        ("com", True),
        ("*", True),
        ("localhost, API.Stripe.com ", True),
        ("api.stripe.com,localhost", True),
        ("tripe.com", False),
        ("api.stripe", False),
        ("files.stripe.com", False),
        ("v1.api.stripe.com", False),
    ],
)
def test_which_hosts_no_proxy_names(no_proxy, direct) -> None:
    assert _is_direct("api.stripe.com", no_proxy) == direct
