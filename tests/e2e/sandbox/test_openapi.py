"""The running sandbox against its own OpenAPI document, with whatever schemathesis thinks of."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import validate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what schemathesis imports
    import schemathesis
    from schemathesis import checks

DOCUMENT = Path(__file__).parents[3] / "stripe_identity_sandbox" / "openapi.yaml"
SESSIONS = "/v1/identity/verification_sessions"
PERMISSIONS = [
    *("verification_session_read", "verification_session_write"),
    "sensitive_verification_results_all",
]
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


# -- who may see what --------------------------------------------------------------------------


def expanding() -> list[tuple[str, str]]:
    """Every operation of Identity that can expand; the one that changes what is shown is last."""
    paths = yaml.safe_load(DOCUMENT.read_text())["paths"]
    found = [
        (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "/identity/" in path and "expand" in str(operation)
    ]
    return sorted(found, key=lambda one: one[1].endswith("/redact"))


#: What docs.stripe.com/identity/access-verification-results calls sensitive, in a report.
SENSITIVE = [
    *(f"document.{name}" for name in ("dob", "expiration_date", "number", "sex")),
    *("document.unparsed_place_of_birth", "document.unparsed_sex"),
    *("id_number.dob", "id_number.id_number"),
]
#: The same of a session.
SENSITIVE_OF_SESSIONS = [
    *(f"last_verification_report.{name}" for name in SENSITIVE),
    *(f"verified_outputs.{name}" for name in ("dob", "id_number", "sex")),
    *("verified_outputs.unparsed_place_of_birth", "verified_outputs.unparsed_sex"),
]


def test_every_operation_asks_the_same_of_a_key_for_sensitive_fields(run: Any) -> None:
    sandbox = run()
    service = sandbox.client().v1.identity.verification_sessions

    def verified(reference: str) -> dict[str, str]:
        session = service.create({"type": "document", "client_reference_id": reference})
        report = sandbox.submit(session.id)["last_verification_report"]
        return {"reference": reference, "session": session.id, "report": report}

    def ask(key: str, method: str, path: str, whose: dict[str, str], field: str) -> int:
        listing = method == "GET" and "{" not in path
        sent = {"expand[]": f"data.{field}" if listing else field}
        if "{" not in path:
            sent |= {"client_reference_id": whose["reference"]}
        if method == "POST" and "{" not in path:
            sent |= {"type": "document"}
        where = {"params" if method == "GET" else "data": sent}
        answer = requests.request(
            method, sandbox.url + path.format(**whose), auth=(key, ""), timeout=120, **where
        )
        return answer.status_code

    old = verified("old")
    sandbox.control("POST", "clock", advance=48 * 3600 + 60)
    recent = verified("recent")
    nobody = {"reference": "nobody", "session": old["session"], "report": old["report"]}
    every = sandbox.control("POST", "keys", permissions=PERMISSIONS)["key"]
    operations = expanding()
    assert len(operations) == 10
    before = snapshot(sandbox)
    for method, path in operations:
        create = (method, path) == ("POST", SESSIONS)
        for field in SENSITIVE if "report" in path else SENSITIVE_OF_SESSIONS:
            asked = (method, path, field)
            assert ask("sk_test_x", *asked[:2], recent, field) == 403, asked
            assert ask("sk_test_x", *asked[:2], nobody, field) == 403, asked
            if not create:  # what is made now is never too old
                assert ask("rk_test_x", *asked[:2], old, field) == 403, asked
    assert snapshot(sandbox) == before, "what is refused does not happen"
    for method, path in operations:
        field = SENSITIVE[0] if "report" in path else SENSITIVE_OF_SESSIONS[-1]
        # Not all of it can be done to a session that is verified: that is another reason.
        assert ask("rk_test_x", method, path, recent, field) in {200, 400}, (method, path)
        assert ask(every, method, path, old, field) in {200, 400}, (method, path)


def snapshot(sandbox: Any) -> list[Any]:
    """All sessions and events, without the links that each look at them may make anew."""
    client = sandbox.client()
    sessions = client.v1.identity.verification_sessions.list({"limit": 100})
    events = client.v1.events.list({"limit": 100})
    return [sessions.data, [event.id for event in events]]
