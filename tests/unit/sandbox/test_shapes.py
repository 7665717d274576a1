"""Every object in every state against the sandbox's own document, and against Stripe's.

Stripe's is the closed Identity document of API 2023-10-16. It is not part of this repository, and
is used where it stands beside it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_schema_validator import OAS30Validator, OAS31Validator

from stripe_identity_sandbox.checks import OUTCOMES

from .conftest import REPORTS, SESSIONS, Api

OWN = Path(__file__).parents[3] / "stripe_identity_sandbox" / "openapi.yaml"
#: Stripe's own document, made closed; not ours to ship.
STRIPES = Path(__file__).parents[4] / "shared" / "reference" / "openapi" / "identity-closed.yml"

OPTIONS = (
    "&options[document][require_id_number]=true&options[document][require_matching_selfie]=true"
)
STATES: dict[str, Callable[[Api, str], Any]] = {
    "requires_input": lambda api, id_: None,
    "processing": lambda api, id_: api.control(f"sessions/{id_}/submit", hold=True),
    "canceled": lambda api, id_: api.post(f"{SESSIONS}/{id_}/cancel"),
    **{
        outcome: lambda api, id_, outcome=outcome: api.control(  # type: ignore[misc]
            f"sessions/{id_}/submit", outcome=outcome
        )
        for outcome in OUTCOMES
    },
    "redacted": lambda api, id_: [
        api.control(f"sessions/{id_}/{step}") for step in ("submit", "redact", "complete")
    ],
}


def objects(api: Api, state: str) -> list[tuple[str, Any]]:
    """Return everything the API shows of one session, with all of it expanded."""
    id_ = api.create(f"type=document{OPTIONS}&metadata[a]=b")["id"]
    STATES[state](api, id_)
    fields = (
        "verified_outputs.dob",
        "verified_outputs.id_number",
        "last_verification_report.document.number",
        "last_verification_report.document.expiration_date",
    )
    expand = "&".join(f"expand[]={field}" for field in fields)
    session = api.get(f"{SESSIONS}/{id_}?{expand}", key="rk_test_x").json
    plain = api.get(f"{SESSIONS}/{id_}").json
    listed: Any = api.get(f"{SESSIONS}?expand[]=data.last_verification_report").json
    reports: Any = api.get(REPORTS).json
    events: Any = api.get("/v1/events").json
    return [
        ("verification_session", session),
        ("verification_session", plain),
        ("verification_session_list", listed),
        ("verification_report_list", reports),
        *[("verification_report", report) for report in reports["data"]],
        ("event_list", events),
    ]


@pytest.mark.parametrize("state", STATES)
def test_the_sandboxs_own_document(api: Api, state: str) -> None:
    document = yaml.safe_load(OWN.read_text())
    for name, found in objects(api, state):
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        OAS31Validator(schema).validate(found)


NAMES = {
    "verification_session": "identity.verification_session",
    "verification_report": "identity.verification_report",
    "verification_session_list": "GelatoVerificationSessionList",
    "verification_report_list": "GelatoVerificationReportList",
}
#: Codes and types that came after 2023-10-16.
NEWER = ("email_unverified_other", "email_verification_declined")
NEWER += ("phone_unverified_other", "phone_verification_declined")


@pytest.mark.skipif(
    not STRIPES.exists(), reason="Stripe's own document is not beside this repository"
)
@pytest.mark.parametrize("state", [state for state in STATES if state not in NEWER])
def test_stripes_document(api: Api, state: str) -> None:
    document = with_null(yaml.safe_load(STRIPES.read_text()))
    for name, found in objects(api, state):
        if name in NAMES:
            schema = {
                "$ref": f"#/components/schemas/{NAMES[name]}",
                "components": document["components"],
            }
            OAS30Validator(schema).validate(found)


def with_null(schema: Any) -> Any:
    """Let null be where the document says nullable but forgets the enum or type that goes with it.

    OpenAPI 3.0.3 wants null in the enum, and heeds nullable only beside a type. Stripe sends null.
    """
    if isinstance(schema, list):
        return [with_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: with_null(value) for key, value in schema.items()}
    if changed.get("nullable") is True and isinstance(changed.get("enum"), list):
        changed["enum"] = [*changed["enum"], None]
    if changed.get("nullable") is True and isinstance(changed.get("anyOf"), list):
        null = {"type": "string", "nullable": True, "enum": [None]}
        changed["anyOf"] = [*changed["anyOf"], null]
    return changed
