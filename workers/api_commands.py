"""`python -m workers sessions` and `reports`: the eight calls of the API from a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from service.arguments import ACCOUNT, MOMENT, REPORT, SESSION, fault_of_span
from service.settings import Settings
from workers.exits import refuse_or
from workers.failures import StripeFailure
from workers.stripe_api import StripeApi


def _pairs(_: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Read KEY=VALUE, and A.B=VALUE as what is nested in A."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"{param.opts[0]} {text}: should be KEY=VALUE")
        *outer, last = [key] if param.name == "metadata" else key.split(".")
        place = found
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise click.UsageError(f"{param.opts[0]} {text}: {name} has a value already")
        if isinstance(place.get(last), dict):
            raise click.UsageError(f"{param.opts[0]} {text}: {last} has values below it already")
        is_list = param.name == "options" and last == "allowed_types"
        place[last] = value.split(",") if is_list else value
    return found


def _option(*names: str, **more: Any) -> Callable[[Any], Any]:
    """Return an option whose last name is that of Stripe's parameter."""
    return click.option(*names, **more)


def _pair_option(flag: str, name: str, sentence: str) -> Callable[[Any], Any]:
    return _option(
        flag, name, multiple=True, metavar="KEY=VALUE", callback=_pairs, help=f"{sentence}; repeat."
    )


_ACCOUNT = click.option(
    "--account", type=ACCOUNT, metavar="ACCT", help="A connected account: acct_..."
)
_EXPAND = _option("--expand", "expand", multiple=True, help="A field to expand; may be repeated.")
_LIMIT = _option("--limit", "limit", type=click.IntRange(1, 100), default=10, show_default=True)
_KINDS = click.Choice(["document", "id_number"])
_METADATA = _pair_option("--metadata", "metadata", "An entry of metadata")
_OPTIONS = _pair_option(
    "--option",
    "options",
    "Of the checks: document.require_matching_selfie=true, document.allowed_types=passport,id_card",
)
_DETAILS = _pair_option("--provided-detail", "provided_details", "Of the user: email=, phone=")
_REFERENCE = _option(
    "--reference",
    "client_reference_id",
    help="client_reference_id: whom it concerns, in your words.",
)
_CUSTOMER = _option("--related-customer", "related_customer", metavar="CUS", help="cus_...")
_CUSTOMER_ACCOUNT = _option(
    "--related-customer-account", "related_customer_account", metavar="ACCT", help="acct_..."
)


def _in_pages(command: Any) -> Any:
    """Give a command what every list takes."""
    for option in (
        _LIMIT,
        _option("--after", "starting_after", metavar="ID", help="The page behind this one."),
        _option("--before", "ending_before", metavar="ID", help="The page before this one."),
        _option("--since", "since", type=MOMENT, help="Created since: 2h, 3d, or a moment in UTC."),
        _option("--until", "until", type=MOMENT, help="Created before: the same."),
        _EXPAND,
        _ACCOUNT,
    ):
        command = option(command)
    return command


@click.group()
def sessions() -> None:
    """Create, look up and change VerificationSessions. Answers are JSON, as Stripe gives them.

    What is printed may be personal data: it goes to your terminal, not to any log.
    """


@sessions.command("create")
@_option("--type", "type", type=_KINDS, help="Default: document, unless a flow is given.")
@_option("--verification-flow", "verification_flow", metavar="VF", help="vf_... of the Dashboard.")
@_REFERENCE
@_option("--return-url", "return_url", help="Where the user goes after the hosted page.")
@_METADATA
@_OPTIONS
@_DETAILS
@_CUSTOMER
@_CUSTOMER_ACCOUNT
@_pair_option("--related-person", "related_person", "account=acct_..., person=person_...")
@_EXPAND
@_ACCOUNT
def create_session(account: str | None, **given: Any) -> None:
    """Start a verification; its `url` is where the user goes."""
    if not given["verification_flow"]:
        given["type"] = given["type"] or "document"
    params = parameters(given)
    _ask(lambda api: api.create_session(params, account=account))


@sessions.command("retrieve")
@click.argument("session", type=SESSION)
@_EXPAND
@_ACCOUNT
def retrieve_session(session: str, expand: tuple[str, ...], account: str | None) -> None:
    """Show a session. SESSION: vs_..."""
    _ask(lambda api: api.retrieve_session(session, expand=expand, account=account))


@sessions.command("list")
@_option(
    "--status",
    "status",
    type=click.Choice(["requires_input", "processing", "verified", "canceled"]),
)
@_REFERENCE
@_CUSTOMER
@_CUSTOMER_ACCOUNT
@_in_pages
def list_sessions(account: str | None, **given: Any) -> None:
    """List sessions, newest first."""
    params = parameters(given)
    _ask(lambda api: api.list_sessions(params, account=account))


@sessions.command("update")
@click.argument("session", type=SESSION)
@_option("--type", "type", type=_KINDS)
@_METADATA
@_OPTIONS
@_DETAILS
@_EXPAND
@_ACCOUNT
def update_session(session: str, account: str | None, **given: Any) -> None:
    """Change a session that still requires input. SESSION: vs_...

    KEY= removes an entry of metadata.
    """
    params = parameters(given)
    _ask(lambda api: api.update_session(session, params, account=account))


@sessions.command("cancel")
@click.argument("session", type=SESSION)
@_EXPAND
@_ACCOUNT
def cancel_session(session: str, expand: tuple[str, ...], account: str | None) -> None:
    """Cancel a session that still requires input. SESSION: vs_..."""
    _ask(lambda api: api.cancel_session(session, expand=expand, account=account))


@sessions.command("redact")
@click.argument("session", type=SESSION)
@click.option("--yes", is_flag=True, help="Do not ask: redaction cannot be undone.")
@_EXPAND
@_ACCOUNT
def redact_session(session: str, yes: bool, expand: tuple[str, ...], account: str | None) -> None:
    """Have Stripe delete the data of a session, for ever. SESSION: vs_..."""
    if not yes:
        click.confirm(f"Redact {session}? This cannot be undone.", abort=True)
    _ask(lambda api: api.redact_session(session, expand=expand, account=account))


@click.group()
def reports() -> None:
    """Look up VerificationReports. Answers are JSON, as Stripe gives them."""


@reports.command("retrieve")
@click.argument("report", type=REPORT)
@_EXPAND
@_ACCOUNT
def retrieve_report(report: str, expand: tuple[str, ...], account: str | None) -> None:
    """Show a report. REPORT: vr_..."""
    _ask(lambda api: api.retrieve_report(report, expand=expand, account=account))


@reports.command("list")
@_option(
    "--session",
    "verification_session",
    type=SESSION,
    metavar="VS",
    help="Only of this session: vs_...",
)
@_REFERENCE
@_option("--type", "type", type=_KINDS)
@_in_pages
def list_reports(account: str | None, **given: Any) -> None:
    """List reports, newest first."""
    params = parameters(given)
    _ask(lambda api: api.list_reports(params, account=account))


def _ask(call: Callable[[StripeApi], Any]) -> None:
    """Make one call of the API and print its answer."""

    def ask() -> int:
        api = StripeApi.from_settings(Settings.load("worker"))
        try:
            click.echo(json.dumps(call(api).to_dict(), indent=2))
        except StripeFailure as failure:
            click.echo(f"Stripe: {failure} ({failure.request_id or 'no answer'})", err=True)
            return 1
        return 0

    refuse_or(ask)


def parameters(given: dict[str, Any]) -> Any:
    """Return what was given as Stripe's parameters."""
    since, until = given.pop("since", None), given.pop("until", None)
    if fault := fault_of_span(since, until):
        raise click.UsageError(fault)
    params = {name: value for name, value in given.items() if value not in (None, (), {})}
    created = {"gte": since, "lt": until}
    if times := {name: int(at.timestamp()) for name, at in created.items() if at}:
        params["created"] = times
    if "expand" in params:
        params["expand"] = [
            # Of what a list holds.
            f"data.{field}" if "limit" in given and not field.startswith("data.") else field
            for field in params["expand"]
        ]
    return params
