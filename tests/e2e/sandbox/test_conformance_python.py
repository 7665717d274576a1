"""The sandbox seen through Stripe's own Python SDK, and nothing else.

Only what a user does on the hosted page goes over the control routes: Stripe has no API for it.
"""

import json
import time
from typing import Any

import pytest
import stripe

TYPE = "identity.verification_session"


@pytest.fixture(params=["client", "module"])
def sessions(sandbox: Any, request: pytest.FixtureRequest, monkeypatch: Any) -> Any:
    """The resource both ways the SDK offers it: a client's service, and the module."""
    if request.param == "client":
        return sandbox.client().v1.identity.verification_sessions
    monkeypatch.setattr(stripe, "api_key", "sk_test_module")
    monkeypatch.setattr(stripe, "api_base", sandbox.url)

    class Module:
        """The module's calls under the service's names."""

        def create(self, params: Any) -> Any:
            return stripe.identity.VerificationSession.create(**params)

        def retrieve(self, id_: str, params: Any = None) -> Any:
            return stripe.identity.VerificationSession.retrieve(id_, **(params or {}))

        def update(self, id_: str, params: Any) -> Any:
            return stripe.identity.VerificationSession.modify(id_, **params)

        def list(self, params: Any = None) -> Any:
            return stripe.identity.VerificationSession.list(**(params or {}))

        def cancel(self, id_: str) -> Any:
            return stripe.identity.VerificationSession.cancel(id_)

        def redact(self, id_: str) -> Any:
            return stripe.identity.VerificationSession.redact(id_)

    return Module()


def test_the_eight_operations(sandbox: Any, sessions: Any) -> None:
    created = sessions.create({"type": "document", "metadata": {"user": "é 1"}})
    assert isinstance(created, stripe.identity.VerificationSession)
    assert created.status == "requires_input"
    assert sessions.retrieve(created.id) == created
    updated = sessions.update(created.id, {"metadata": {"user": "2"}})
    assert updated.metadata["user"] == "2"
    assert created.id in [session.id for session in sessions.list({"limit": 3})]

    sandbox.submit(created.id, "document_expired")
    failed = sessions.retrieve(created.id)
    assert failed.last_error.code == "document_expired"
    assert failed.last_error.reason == "The document is expired."
    sandbox.submit(created.id)
    verified = sessions.retrieve(created.id)
    assert (verified.status, verified.url, verified.client_secret) == ("verified", None, None)

    reports = sandbox.client().v1.identity.verification_reports
    report = reports.retrieve(verified.last_verification_report)
    assert isinstance(report, stripe.identity.VerificationReport)
    listed = reports.list({"verification_session": created.id, "type": "document"})
    assert [report.document.status for report in listed] == ["verified", "unverified"]

    redacted = sessions.redact(created.id)
    assert (redacted.status, redacted.redaction.status) == ("verified", "processing")
    other = sessions.create({"type": "id_number"})
    assert sessions.cancel(other.id).status == "canceled"


def test_every_parameter_of_create(sessions: Any) -> None:
    session = sessions.create(
        {
            "type": "document",
            "client_reference_id": "ref_1",
            "metadata": {"a": "1"},
            "options": {
                "document": {
                    "allowed_types": ["passport", "id_card"],
                    "require_id_number": True,
                    "require_live_capture": False,
                    "require_matching_selfie": True,
                }
            },
            "provided_details": {"email": "a@b.example", "phone": "+1555"},
            "related_customer": "cus_1",
            "related_customer_account": "acct_1",
            "related_person": {"account": "acct_1", "person": "person_1"},
            "return_url": "https://app.example/back",
            "expand": ["last_verification_report"],
        }
    )
    assert session.options.document.to_dict() == {
        "allowed_types": ["passport", "id_card"],
        "require_id_number": True,
        "require_live_capture": False,
        "require_matching_selfie": True,
    }
    assert session.client_reference_id == "ref_1"
    assert session.provided_details.email == "a@b.example"
    assert session.related_customer == "cus_1"
    assert session.related_person.person == "person_1"
    flow = sessions.create({"verification_flow": "vf_1"})
    assert (flow.type, flow.verification_flow) == ("verification_flow", "vf_1")


def test_auto_paging_both_ways(sandbox: Any, sessions: Any) -> None:
    made = [
        sessions.create({"type": "document", "client_reference_id": "pages"}).id for _ in range(7)
    ]
    filters = {"client_reference_id": "pages", "limit": 3}
    forward = [s.id for s in sessions.list(filters).auto_paging_iter()]
    assert forward[:7] == made[::-1]
    backward = [
        s.id for s in sessions.list({**filters, "ending_before": made[0]}).auto_paging_iter()
    ]
    assert backward == made[1:], "in chronological order"

    events = sandbox.client().v1.events
    start = next(e.id for e in events.list({"limit": 100}) if e.data.object["id"] == made[0])
    caught_up = events.list(
        {"ending_before": start, "types": [f"{TYPE}.created"], "limit": 2}
    ).auto_paging_iter()
    assert [event.data.object["id"] for event in caught_up][:6] == made[1:]


def test_list_filters(sandbox: Any, sessions: Any) -> None:
    before = int(sandbox.control("GET", "clock")["now"])
    session = sessions.create({"type": "document", "related_customer": f"cus_{time.time()}"})
    found = sessions.list(
        {
            "created": {"gte": before, "lte": before + 60},
            "status": "requires_input",
            "related_customer": session.related_customer,
        }
    )
    assert [one.id for one in found] == [session.id]
    assert not sessions.list({"created": 1, "related_customer": session.related_customer}).data
    everything = sandbox.client().v1.identity.verification_reports.list({"created": {"gt": 1}})
    assert everything.url == "/v1/identity/verification_reports"


@pytest.mark.parametrize(
    ("call", "error", "status", "code", "param"),
    [
        (lambda s: s.create({}), stripe.InvalidRequestError, 400, "parameter_missing", "type"),
        (
            lambda s: s.create({"type": "document", "x": 1}),
            stripe.InvalidRequestError,
            400,
            "parameter_unknown",
            "x",
        ),
        (
            lambda s: s.update("vs_none", {"metadata": {"a": "b"}}),
            stripe.InvalidRequestError,
            404,
            "resource_missing",
            "session",
        ),
        (
            lambda s: s.list({"starting_after": "vs_none"}),
            stripe.InvalidRequestError,
            400,
            "resource_missing",
            "starting_after",
        ),
        (
            lambda s: s.create({"type": "document", "expand": ["nothing"]}),
            stripe.InvalidRequestError,
            400,
            None,
            None,
        ),
    ],
)
def test_errors(
    sessions: Any, call: Any, error: Any, status: int, code: str | None, param: str | None
) -> None:
    with pytest.raises(error) as caught:
        call(sessions)
    assert (caught.value.http_status, caught.value.code) == (status, code)
    assert caught.value.param == param
    assert caught.value.request_id.startswith("req_")


def test_keys_and_rights(sandbox: Any) -> None:
    revoked = sandbox.control("POST", "keys", kind="secret")["key"]
    sandbox.control("POST", "keys/revoke", key=revoked)
    with pytest.raises(stripe.AuthenticationError, match="Invalid API Key provided: sk_test_"):
        sandbox.client(revoked).v1.events.list()
    narrow = sandbox.control("POST", "keys", permissions=["event_read"])["key"]
    assert sandbox.client(narrow).v1.events.list().object == "list"
    with pytest.raises(stripe.PermissionError, match="rak_verification_session_read"):
        sandbox.client(narrow).v1.identity.verification_sessions.list()


def test_illegal_transitions(sandbox: Any, sessions: Any) -> None:
    session = sessions.create({"type": "document"})
    sandbox.submit(session.id)
    message = (
        'You cannot cancel this VerificationSession because it has a status of "verified". Only a'
        ' VerificationSession in "requires_input" status may be canceled.'
    )
    with pytest.raises(stripe.InvalidRequestError) as caught:
        sessions.cancel(session.id)
    assert caught.value.user_message == message
    assert caught.value.code is None


def test_idempotent_retries(sandbox: Any) -> None:
    service = sandbox.client().v1.identity.verification_sessions
    once = {"idempotency_key": f"key-{time.time()}"}
    first = service.create({"type": "document"}, once)
    again = service.create({"type": "document"}, once)
    assert first.id == again.id
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    with pytest.raises(stripe.IdempotencyError, match="can only be used with the same parameters"):
        service.create({"type": "id_number"}, once)


def test_expansion_and_who_may_see_what(sandbox: Any) -> None:
    service = sandbox.client().v1.identity.verification_sessions
    session = service.create(
        {"type": "document", "options": {"document": {"require_id_number": True}}}
    )
    sandbox.submit(session.id)
    plain = service.retrieve(
        session.id, {"expand": ["verified_outputs", "last_verification_report"]}
    )
    assert "CANARY7Q" in plain.verified_outputs.first_name
    assert plain.verified_outputs.id_number_type == "us_ssn"
    assert "dob" not in plain.verified_outputs
    assert plain.last_verification_report.document.issued_date.year == 2020
    listed = service.list({"limit": 1, "expand": ["data.verified_outputs"]})
    assert listed.data[0].verified_outputs.last_name

    sensitive = {
        "expand": [
            "verified_outputs.dob",
            "verified_outputs.id_number",
            "last_verification_report.document.number",
            "last_verification_report.document.expiration_date",
        ]
    }
    with pytest.raises(stripe.PermissionError, match="access sensitive verification results"):
        service.retrieve(session.id, sensitive)
    allowed = sandbox.client("rk_test_x").v1.identity.verification_sessions.retrieve(
        session.id, sensitive
    )
    assert allowed.verified_outputs.dob.year == 1990
    assert "CANARY7Q" in allowed.last_verification_report.document.number
    assert allowed.last_verification_report.document.expiration_date.year == 2035


def test_connected_accounts(sandbox: Any) -> None:
    service = sandbox.client().v1.identity.verification_sessions
    there = {"stripe_account": "acct_conformance"}
    session = service.create({"type": "document"}, there)
    assert service.retrieve(session.id, None, there).id == session.id
    assert [one.id for one in service.list(None, there)] == [session.id]
    (event,) = sandbox.client().v1.events.list(None, there)
    assert event.account == "acct_conformance"


def test_both_forms_of_an_event(sandbox: Any) -> None:
    client = sandbox.client()
    session = client.v1.identity.verification_sessions.create({"type": "document"})
    event = client.v1.events.list({"limit": 1, "type": f"{TYPE}.*"}).data[0]
    assert event.data.object["id"] == session.id
    # A snapshot is verified by the SDK when it signs it itself.
    payload = json.dumps(event.to_dict(), default=str)
    header = stripe.WebhookSignature.generate_signature_header(payload, "whsec_x")
    assert client.construct_event(payload, header, "whsec_x").id == event.id


def test_webhook_endpoints(sandbox: Any) -> None:
    service = sandbox.client().v1.webhook_endpoints
    made = service.create(
        {"url": "http://127.0.0.1:9/", "enabled_events": [f"{TYPE}.redacted"], "description": "d"}
    )
    try:
        assert made.secret.startswith("whsec_")
        assert "secret" not in service.retrieve(made.id)
        assert service.update(made.id, {"disabled": True}).status == "disabled"
        assert made.id in [one.id for one in service.list().auto_paging_iter()]
    finally:
        assert service.delete(made.id).deleted
