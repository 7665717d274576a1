"""The running sandbox against its own OpenAPI document, with whatever schemathesis thinks of."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import validate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what schemathesis imports
    import schemathesis
    from schemathesis import checks

DOCUMENT = Path(__file__).parents[3] / "stripe_identity_sandbox" / "openapi.yaml"
schema = schemathesis.openapi.from_path(DOCUMENT)
#: What takes away what the others need comes last.
LAST = ("POST /_sandbox/clock", "DELETE /v1/webhook_endpoints/{endpoint}")
OPERATIONS = sorted(
    (result.ok() for result in schema.get_all_operations()), key=lambda op: op.label in LAST
)


def test_the_document_is_valid() -> None:
    validate(yaml.safe_load(DOCUMENT.read_text()))


@pytest.fixture(scope="module")
def fuzzed(start: Any) -> Any:
    """A sandbox of our own: it will be given faults, revoked keys and strange clocks."""
    sandbox = start("--marker", "CANARY7Q")
    yield sandbox
    sandbox.stop()


@pytest.fixture(scope="module")
def known(fuzzed: Any) -> dict[str, list[str]]:
    """Ids of objects in every state, so that not every answer is 404."""
    client = fuzzed.client()
    endpoint = client.v1.webhook_endpoints.create(
        {"url": "http://127.0.0.1:9/", "enabled_events": ["*"]}
    )
    destination = client.v2.core.event_destinations.create(
        {
            "name": "thin",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.identity.verification_session.created"],
            "webhook_endpoint": {"url": "http://127.0.0.1:9/"},
        }
    )
    sessions, reports = [], []
    for outcome in (
        None,
        "verified",
        "selfie_face_mismatch",
        "abandoned",
        "email_unverified_other",
    ):
        options = {"document": {"require_id_number": True, "require_matching_selfie": True}}
        session = client.v1.identity.verification_sessions.create(
            {"type": "document", "options": options, "provided_details": {"email": "a@b.c"}}
        )
        sessions.append(session.id)
        if outcome:
            reports.append(fuzzed.submit(session.id, outcome)["last_verification_report"])
    client.v1.identity.verification_sessions.redact(sessions[1])
    fuzzed.control("POST", f"sessions/{sessions[1]}/complete")
    client.v1.identity.verification_sessions.redact(sessions[2])
    held = client.v1.identity.verification_sessions.create({"type": "document"})
    sessions.append(fuzzed.submit(held.id, hold=True)["id"])
    events = [event.id for event in client.v1.events.list({"limit": 100})]
    deliveries = fuzzed.control("GET", "deliveries")
    thin = [delivery["event"] for delivery in deliveries if delivery["form"] == "thin"]
    return {
        "session": sessions,
        "report": reports,
        "event": [one for both in zip(events, thin, strict=False) for one in both],
        "endpoint": [endpoint.id],
        "destination": [destination.id],
        "fault": ["fault_none"],
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=[op.label for op in OPERATIONS])
def test_every_answer_is_as_documented(
    fuzzed: Any, known: dict[str, list[str]], operation: Any
) -> None:
    seen = iter(range(10_000))

    @given(case=operation.as_strategy())
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        number = next(seen)
        for name in case.path_parameters or {}:
            if number % 4:
                case.path_parameters[name] = known[name][number % len(known[name])]
        case.headers = {
            name: value
            for name, value in (case.headers or {}).items()
            if name not in {"Stripe-Account", "Stripe-Context"} or number % 4 == 0
        } | {"Authorization": f"Bearer {'rk' if number % 2 else 'sk'}_test_fuzz"}
        response = case.call(base_url=fuzzed.url)
        # Faults that were set would answer for the sandbox.
        if operation.label == "POST /_sandbox/faults":
            fuzzed.control("DELETE", "faults")
        case.validate_response(
            response,
            checks=[
                checks.not_a_server_error,
                checks.status_code_conformance,
                checks.content_type_conformance,
                checks.response_schema_conformance,
            ],
        )

    check()
