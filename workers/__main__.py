"""`python -m workers`: run a worker, or one of the tools beside it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal

if __name__ == "__main__":
    # Before the imports, which take their time: the first process of a container has to handle
    # SIGTERM to heed it. Until there is something in hand, it ends at once.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))

import sys
from datetime import datetime
from pathlib import Path

import click

from identity_webhooks.event import KINDS
from identity_webhooks.handlers import MARKS
from service import connection, logs, process
from service.arguments import ACCOUNT, HANDLER, MOMENT, PERSON, SESSION, fault_of_span
from service.findings import INBOX_IS_FULL, MEMORY_IS_SHORT
from service.repair import Repair, operator
from service.settings import Role, Settings
from service.text import table
from service.version import version_option
from workers import api_commands, beat, doctor, endpoints, new_handler, plugins, single_run
from workers import reconcile as reconciling
from workers.exits import refuse_or
from workers.failures import StripeFailure


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--periodic/--no-periodic",
    default=True,
    help="Whether to run a periodic process beside it (see `periodic`). Default: yes.",
)
@version_option
@click.pass_context
def main(context: click.Context, periodic: bool) -> None:
    """Run a worker (without a command), or one of the tools below.

    A worker claims events from the inbox and runs their handlers. On SIGTERM it finishes its
    events within 25 seconds, or releases them.

    Exit codes: 0 done, 1 Stripe refused, a fault was found or not healthy, 2 wrong usage, 69 Redis
    cannot be reached, 78 the settings, a plugin or Redis are not as they must be, 143 stopped by
    SIGTERM before it had anything in hand.
    """
    if context.invoked_subcommand is None:
        from workers import supervisor  # noqa: PLC0415 (RQ is not needed by the tools)

        refuse_or(lambda: supervisor.work(_settings("worker"), periodic=periodic))


@main.command()
def periodic() -> None:
    """Wake events that are due: retries, events of dead workers, lost wake-ups.

    Also asks Stripe every five minutes what was missed (see `reconcile`). Every worker runs one
    beside it, unless started with --no-periodic. At least one has to run; any number may.
    """
    from workers import periodic as sweeping  # noqa: PLC0415

    refuse_or(lambda: sweeping.run(_settings("worker")))


@main.command()
def health() -> None:
    """Check that the worker or periodic process of this container is alive.

    Looks at a file in the directory for temporary files (workers/beat.py), not at Redis. On a
    machine with several of them it says that at least one is alive.
    """
    age = beat.age()
    if age is None or age > beat.STALE:
        last = "never" if age is None else f"{age:.0f} s ago"
        click.echo(f"not healthy: the last beat was {last}", err=True)
        sys.exit(1)
    click.echo(f"healthy: the last beat was {age:.0f} s ago")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="An array of objects instead of a table.")
def handlers(as_json: bool) -> None:
    """List the handlers a worker would run, where each comes from and what it asks for."""

    def show() -> int:
        settings = Settings.load("tool")
        # What plugins log as they are imported must not get into the answer.
        logs.configure(settings, sys.stderr)
        process.hook_exceptions()
        found = plugins.load(settings).handlers
        described = [
            {
                "name": handler.name,
                "events": sorted(handler.events),
                "reasons": sorted(handler.reasons),
                "needs": sorted(handler.needs),
                "superseded": handler.superseded,
                "retries": handler.retries,
                "timeout": handler.timeout,
                "origin": handler.origin,
            }
            for handler in found
        ]
        if as_json:
            click.echo(json.dumps(described, indent=2))
            return 0
        rows = [
            (
                handler.name,
                "*" if len(handler.events) == len(KINDS) else " ".join(sorted(handler.events)),
                " ".join(sorted(handler.needs)) or "-",
                "3 days" if handler.retries is None else handler.retries,
                f"{handler.timeout:g} s",
                handler.origin,
            )
            for handler in found
        ]
        click.echo(table(("HANDLER", "EVENTS", "NEEDS", "RETRIES", "TIMEOUT", "ORIGIN"), rows))
        return 0

    refuse_or(show)


@main.command("new-handler")
@click.argument("name")
def start_handler(name: str) -> None:
    """Start a plugin as a package of its own, with settings and tests, in the folder NAME.

    \b
    python -m workers new-handler acme-identity
    """
    try:
        written = new_handler.create(name, Path.cwd())
    except new_handler.CannotStart as error:
        raise click.UsageError(str(error)) from None
    for path in written:
        click.echo(path.relative_to(Path.cwd()))


@main.command("run")
@click.argument("session", type=SESSION)
@click.option(
    "--handler",
    "name",
    type=HANDLER,
    required=True,
    metavar="PLUGIN.FUNCTION",
    help="As `handlers` lists them.",
)
@click.option("--dry-run", is_flag=True, help="Fetch and print what it would get; do not call it.")
@click.option("--account", type=ACCOUNT, metavar="ACCT", help="A connected account: acct_...")
@click.option("--json", "as_json", is_flag=True, help="An object instead of sentences.")
def run_handler(session: str, name: str, dry_run: bool, account: str | None, as_json: bool) -> None:
    """Run one handler for one session, as it stands now. SESSION: vs_...

    Redis is not used. The handler gets an idempotency key of its own (run-vs_...), so an effect
    of a worker's run happens again. Exceptions are shown with their text, personal values masked.

    \b
    python -m workers run vs_... --handler acme.grant_access --dry-run
    """

    def run() -> int:
        settings = Settings.load("worker")
        logs.configure(settings, sys.stderr)
        process.hook_exceptions()
        router = plugins.load(settings)
        handler = next((each for each in router.handlers if each.name == name), None)
        if handler is None:
            known = ", ".join(each.name for each in router.handlers)
            raise click.UsageError(f"there is no handler {name}: {known}")
        MARKS.closed = True
        try:
            answer = single_run.run(
                settings, router, handler, session, account=account, dry_run=dry_run
            )
        except StripeFailure as failure:
            click.echo(f"Stripe: {failure} ({failure.request_id or 'no answer'})", err=True)
            return 1
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(answer), indent=2))
        else:
            click.echo(single_run.in_words(answer, name))
        return 0 if answer.status in {"done", "ready", "skipped"} else 1

    refuse_or(run)


@main.command()
@click.option("--since", type=MOMENT, help="Made since: 2h, 3d, or a moment in UTC. Default: 3d.")
@click.option("--deep", is_flag=True, help="All that Stripe still lists: 30 days.")
@click.option("--dry-run", is_flag=True, help="Print what was missed, and accept nothing.")
@click.option(
    "--as-done",
    is_flag=True,
    help="Accept it as done, and run no handler for it. Needs --since or --deep.",
)
@click.option("--until", type=MOMENT, help="With --as-done: made before this.")
@click.option("--as", "by", type=PERSON, help="Who asks for it. Default: the user of this process.")
@click.option(
    "--account", type=ACCOUNT, metavar="ACCT", help="Only this connected account: acct_..."
)
@click.option("--json", "as_json", is_flag=True, help="An object instead of sentences.")
def reconcile(  # noqa: PLR0913 (one for each option)
    *,
    since: datetime | None,
    deep: bool,
    dry_run: bool,
    as_done: bool,
    until: datetime | None,
    by: str | None,
    account: str | None,
    as_json: bool,
) -> None:
    """Compare Stripe's list of events with the inbox, and accept what is missing.

    Safe at any time and any number of times: known events are left unchanged. Connected
    accounts are asked for, too: those that events came from, and with STRIPE_CONNECTED_ACCOUNTS=1
    all that Stripe lists. With --since more than 30 days ago, sessions are looked at too, as
    Stripe lists no older events.

    With --as-done, for a Redis that was restored from a backup: what was handled since the backup
    was made is known again, and no handler runs a second time. Stop the workers and the periodic
    process before, or they accept it first. `events replay` runs the handlers of one after all.

    \b
    python -m workers reconcile --dry-run
    python -m workers reconcile --deep
    python -m workers reconcile --as-done --since 2026-11-25T03:00:00 --until 2026-11-25T09:50:00
    """
    if since and deep:
        raise click.UsageError("give --since or --deep")
    if as_done and not (since or deep):
        raise click.UsageError("--as-done needs --since (when the backup was made) or --deep")
    if until and not as_done:
        raise click.UsageError("--until goes with --as-done")
    if fault := fault_of_span(since, until):
        raise click.UsageError(fault)

    def run() -> int:
        settings = Settings.load("worker")
        logs.configure(settings, sys.stderr)
        client = connection.connect(settings)
        inbox = connection.inbox(settings, client)
        back = reconciling.HORIZON - 60 if deep else reconciling.WIDE
        start = int(since.timestamp()) if since else inbox.now() - back
        by_whom = (by or operator()) if as_done else ""
        how = reconciling.Taking(dry_run, by_whom, until.timestamp() if until else math.inf)
        if as_done and not dry_run:
            on = {"since": start, "until": until and until.isoformat(), "account": account}
            Repair(client, inbox, by_whom).note("as-done", 0, on)
        show = _show_progress if sys.stderr.isatty() else lambda _: None
        found = reconciling.Pass()
        try:
            reconciling.Reconciler.from_settings(settings, inbox).run(
                start, [account] if account else None, how=how, progress=show, found=found
            )
        except reconciling.InboxFull as full:
            why = MEMORY_IS_SHORT if "memory" in str(full) else INBOX_IS_FULL
            click.echo(f"{why}. Then run it again", err=True)
            for key in found.missed:
                click.echo(f"missed and taken in before: {key}", err=True)
            return 1
        # An account named by --account that Stripe does not show is an error.
        code = 1 if found.failed or (account and found.gone) else 0
        if as_json:
            click.echo(json.dumps(reconciling.as_json(found), indent=2))
            return code
        verb = ("would be taken in" if dry_run else "taken in") + (" as done" if as_done else "")
        click.echo(f"{found.seen} events looked at, {len(found.missed)} missed and {verb}")
        for key in found.missed:
            click.echo(f"  {key}")
        for session in found.stuck:
            click.echo(f"in processing for more than a day: {session}")
        for gone in found.gone:
            why = ": it is mistyped, or not connected" if account else " any more"
            click.echo(f"Stripe shows nothing of the account {gone}{why}", err=bool(account))
        for name, reason in found.failed.items():
            click.echo(f"Stripe, asked for {name}: {reason}", err=True)
        return code

    refuse_or(run)


def _show_progress(found: reconciling.Pass) -> None:
    if found.seen % 100 == 0:
        click.echo(f"\r{found.seen} looked at, {len(found.missed)} missed", nl=False, err=True)


def _settings(role: Role) -> Settings:
    settings = Settings.load(role)
    logs.configure(settings)
    process.hook_exceptions()
    return settings


main.add_command(doctor.command)
main.add_command(endpoints.commands)
main.add_command(api_commands.sessions)
main.add_command(api_commands.reports)


if __name__ == "__main__":
    main(prog_name="python -m workers", complete_var="_WORKERS_COMPLETE")
