"""`python -m workers sessions` and `reports`: the eight calls of the API from a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from service.arguments import ACCOUNT, REPORT, SESSION
from service.settings import Settings
from workers.exits import refuse_or
from workers.failures import StripeFailure
from workers.stripe_api import StripeApi

_ACCOUNT = click.option(
    "--account", type=ACCOUNT, metavar="ACCT", help="A connected account: acct_..."
)
_EXPAND = click.option("--expand", multiple=True, help="A field to expand; may be repeated.")
_LIMIT = click.option("--limit", type=click.IntRange(1, 100), default=10, show_default=True)
_SINCE = click.option("--since", type=click.DateTime(), help="Created at or after (UTC).")


@click.group()
def sessions() -> None:
    """Create, look up and change VerificationSessions. Answers are JSON, as Stripe gives them.

    What is printed may be personal data: it goes to your terminal, not to any log.
    """


@sessions.command("create")
@click.option("--type", "kind", type=click.Choice(["document", "id_number"]), default="document")
@click.option("--reference", help="client_reference_id: whom it concerns, in your words.")
@click.option("--return-url", help="Where the user goes after the hosted page.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@_ACCOUNT
def create_session(
    kind: str,
    reference: str | None,
    return_url: str | None,
    metadata: tuple[str, ...],
    account: str | None,
) -> None:
    """Start a verification; its `url` is where the user goes."""
    given = {
        "type": kind,
        "client_reference_id": reference,
        "return_url": return_url,
        "metadata": _pairs(metadata) or None,
    }
    params: Any = {name: value for name, value in given.items() if value is not None}
    _ask(lambda api: api.create_session(params, account=account))


@sessions.command("retrieve")
@click.argument("session", type=SESSION)
@_EXPAND
@_ACCOUNT
def retrieve_session(session: str, expand: tuple[str, ...], account: str | None) -> None:
    """Show a session. SESSION: vs_..."""
    _ask(lambda api: api.retrieve_session(session, expand=expand, account=account))


@sessions.command("list")
@click.option(
    "--status", type=click.Choice(["requires_input", "processing", "verified", "canceled"])
)
@_SINCE
@_LIMIT
@_ACCOUNT
def list_sessions(
    status: str | None, since: datetime | None, limit: int, account: str | None
) -> None:
    """List sessions, newest first."""
    params: Any = {"limit": limit, **_created(since), **({"status": status} if status else {})}
    _ask(lambda api: api.list_sessions(params, account=account))


@sessions.command("update")
@click.argument("session", type=SESSION)
@click.option("--type", "kind", type=click.Choice(["document", "id_number"]))
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="KEY= removes it.")
@_ACCOUNT
def update_session(
    session: str, kind: str | None, metadata: tuple[str, ...], account: str | None
) -> None:
    """Change a session that still requires input. SESSION: vs_..."""
    params: Any = {
        **({"type": kind} if kind else {}),
        **({"metadata": _pairs(metadata)} if metadata else {}),
    }
    _ask(lambda api: api.update_session(session, params, account=account))


@sessions.command("cancel")
@click.argument("session", type=SESSION)
@_ACCOUNT
def cancel_session(session: str, account: str | None) -> None:
    """Cancel a session that still requires input. SESSION: vs_..."""
    _ask(lambda api: api.cancel_session(session, account=account))


@sessions.command("redact")
@click.argument("session", type=SESSION)
@click.option("--yes", is_flag=True, help="Do not ask: redaction cannot be undone.")
@_ACCOUNT
def redact_session(session: str, yes: bool, account: str | None) -> None:
    """Have Stripe delete the data of a session, for ever. SESSION: vs_..."""
    if not yes:
        click.confirm(f"Redact {session}? This cannot be undone.", abort=True)
    _ask(lambda api: api.redact_session(session, account=account))


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
@click.option("--session", type=SESSION, metavar="VS", help="Only of this session: vs_...")
@_SINCE
@_LIMIT
@_ACCOUNT
def list_reports(
    session: str | None, since: datetime | None, limit: int, account: str | None
) -> None:
    """List reports, newest first."""
    params: Any = {
        "limit": limit,
        **_created(since),
        **({"verification_session": session} if session else {}),
    }
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


def _created(since: datetime | None) -> dict[str, Any]:
    return {"created": {"gte": int(since.replace(tzinfo=UTC).timestamp())}} if since else {}


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise click.UsageError(f"--metadata {text}: should be KEY=VALUE")
    return dict(text.split("=", 1) for text in texts)
