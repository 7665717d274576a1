"""`python -m workers sessions | reports`: whatever a call of the API takes can be given."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any
from unittest.mock import Mock
from unittest.mock import call as mock_call

import click
import pytest
from click.testing import CliRunner
from stripe._request_options import RequestOptions
from stripe.params import identity

from workers import api_commands
from workers.api_commands import reports, sessions

CALLS = {
    "sessions create": identity.VerificationSessionCreateParams,
    "sessions retrieve": identity.VerificationSessionRetrieveParams,
    "sessions list": identity.VerificationSessionListParams,
    "sessions update": identity.VerificationSessionUpdateParams,
    "sessions cancel": identity.VerificationSessionCancelParams,
    "sessions redact": identity.VerificationSessionRedactParams,
    "reports retrieve": identity.VerificationReportRetrieveParams,
    "reports list": identity.VerificationReportListParams,
}
COMMANDS = {
    f"{group.name} {name}": command
    for group in (sessions, reports)
    for name, command in group.commands.items()
}


def parsed(command: str, *arguments: str) -> dict[str, object]:
    """Return what the command line gives to the function of a command."""
    return dict(COMMANDS[command].make_context("x", list(arguments)).params)


def test_every_operation_has_its_command() -> None:
    assert COMMANDS.keys() == CALLS.keys()


@pytest.mark.parametrize("call", CALLS)
def test_every_parameter_of_the_sdk_can_be_given(call) -> None:
    options = set(RequestOptions.__annotations__)
    wanted = set(CALLS[call].__annotations__) - options
    given = {parameter.name for parameter in COMMANDS[call].params}
    if {"since", "until"} <= given:
        given.add("created")
    assert wanted <= given


def test_what_is_given_is_what_stripe_is_asked() -> None:
    given = parsed(
        "sessions create",
        *("--reference", "u-1", "--metadata", "a.b=c=d", "--metadata", "empty="),
        *("--metadata", "allowed_types=passport,id_card"),
        *("--option", "document.require_matching_selfie=true"),
        *("--option", "document.allowed_types=passport,id_card"),
        *("--provided-detail", "email=a@example.com", "--related-person", "person=person_1"),
        *("--expand", "last_verification_report", "--verification-flow", "vf_1"),
    )
    given.pop("account")
    assert api_commands.parameters(given) == {
        "client_reference_id": "u-1",
        "metadata": {"a.b": "c=d", "empty": "", "allowed_types": "passport,id_card"},
        "options": {
            "document": {
                "require_matching_selfie": "true",
                "allowed_types": ["passport", "id_card"],
            }
        },
        "provided_details": {"email": "a@example.com"},
        "related_person": {"person": "person_1"},
        "expand": ["last_verification_report"],
        "verification_flow": "vf_1",
    }


ASKED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "sessions create": ("create_session", [{"type": "document"}], {}),
    "sessions create --type id_number": ("create_session", [{"type": "id_number"}], {}),
    "sessions create --verification-flow vf_1": (
        "create_session",
        [{"verification_flow": "vf_1"}],
        {},
    ),
    "sessions update vs_1 --metadata a=": ("update_session", ["vs_1", {"metadata": {"a": ""}}], {}),
    "sessions list --status verified": (
        "list_sessions",
        [{"status": "verified", "limit": 10}],
        {},
    ),
    "reports list --session vs_1": (
        "list_reports",
        [{"verification_session": "vs_1", "limit": 10}],
        {},
    ),
    "sessions retrieve vs_1 --expand x": ("retrieve_session", ["vs_1"], {"expand": ("x",)}),
    "sessions cancel vs_1 --expand x": ("cancel_session", ["vs_1"], {"expand": ("x",)}),
    "sessions redact vs_1 --yes --expand x": ("redact_session", ["vs_1"], {"expand": ("x",)}),
    "reports retrieve vr_1 --expand x": ("retrieve_report", ["vr_1"], {"expand": ("x",)}),
}


@pytest.mark.parametrize("account", [None, "acct_1"])
@pytest.mark.parametrize("line", ASKED)
def test_each_command_makes_one_call_with_what_was_given_and_no_more(
    line, account, monkeypatch
) -> None:
    calls: list[Callable[[Any], Any]] = []
    monkeypatch.setattr(api_commands, "_ask", calls.append)
    group, name, *arguments = line.split()
    more = ["--account", account] if account else []
    done = CliRunner().invoke(COMMANDS[f"{group} {name}"], arguments + more)
    assert done.exit_code == 0, done.output
    (call,), api = calls, Mock()
    call(api)
    method, given, named = ASKED[line]
    assert api.method_calls == [getattr(mock_call, method)(*given, **named, account=account)]


def test_times_are_utc_and_what_a_list_expands_is_in_its_data() -> None:
    given = parsed(
        "sessions list",
        *("--since", "2026-01-01", "--until", "2026-01-02T00:00:01"),
        *("--expand", "last_verification_report", "--expand", "data.verified_outputs"),
        *("--after", "vs_1"),
    )
    given.pop("account")
    start = int(datetime.fromisoformat("2026-01-01T00:00:00+00:00").timestamp())
    assert api_commands.parameters(given) == {
        "limit": 10,
        "starting_after": "vs_1",
        "created": {"gte": start, "lt": start + 86_401},
        "expand": ["data.last_verification_report", "data.verified_outputs"],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metadata", "novalue"), "--metadata novalue: should be KEY=VALUE"),
        (("--option", "novalue"), "--option novalue: should be KEY=VALUE"),
        (("--option", "document=", "--option", "document.a=b"), "document has a value already"),
        (("--option", "document.a=b", "--option", "document="), "document has values below it"),
    ],
)
def test_what_cannot_be_read_is_refused(arguments, said) -> None:
    with pytest.raises(click.UsageError, match=said):
        parsed("sessions create", *arguments)
