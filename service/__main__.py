"""`python -m service`: look at the inbox and put events back."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import click
import redis

from service import connection
from service.inbox import Inbox, Record
from service.settings import Settings, SettingsError
from service.text import table

State = Literal["pending", "done", "dead", "all"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Look at the inbox of REDIS_URL and put events back.

    Exit codes: 0 done, 1 no such event or nothing to do, 2 wrong usage, 69 Redis cannot be
    reached, 78 the settings are wrong.
    """
    try:
        settings = Settings.load("tool")
    except SettingsError as error:
        click.echo(error, err=True)
        sys.exit(78)
    context.obj = Inbox(connection.connect(settings))


@main.group()
def events() -> None:
    """List, show, replay and end events."""


@events.command("list")
@click.option(
    "--state",
    type=click.Choice(["pending", "done", "dead", "all"]),
    default="all",
    show_default=True,
    help="Only events in this state.",
)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="An array of objects instead of a table.")
@click.pass_obj
def list_events(inbox: Inbox, state: State, limit: int, as_json: bool) -> None:
    """List events: the dead newest first, the pending by what is due next.

    \b
    python -m service events list --state dead
    python -m service events list --json | jq '.[].reason'
    """
    records = [describe(record) for record in inbox.records(state, limit)]
    if as_json:
        click.echo(json.dumps(records, indent=2))
        return
    rows = [
        (r["key"], r["kind"], r["session"], r["state"], r["outcome"], r["reason"]) for r in records
    ]
    click.echo(table(("EVENT", "KIND", "SESSION", "STATE", "OUTCOME", "REASON"), rows))


@events.command()
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="An object instead of lines.")
@click.pass_obj
def show(inbox: Inbox, key: str, as_json: bool) -> None:
    """Show one event and how each handler fared. KEY: evt_..., or acct_...-evt_...

    Of a change that came in both forms either id will do, here and in the other commands.
    """
    record = inbox.find(key)
    if record is None:
        click.echo(f"no event {key} is in the inbox", err=True)
        sys.exit(1)
    described = describe(record)
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    handlers = described.pop("handlers")
    for name, value in described.items():
        click.echo(f"{name:12} {'' if value is None else value}")
    rows = [(h["name"], h["status"], h["attempts"], h["ms"], h["reason"]) for h in handlers]
    click.echo("\n" + table(("HANDLER", "STATUS", "ATTEMPTS", "MS", "REASON"), rows))


@events.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--dead", is_flag=True, help="Every dead event.")
@click.option("--handler", help="Run this handler again (by its full name), dead or not.")
@click.option("--all-handlers", is_flag=True, help="Run every handler again, also those done.")
@click.pass_obj
def replay(
    inbox: Inbox, keys: tuple[str, ...], dead: bool, handler: str | None, all_handlers: bool
) -> None:
    """Run events again: without an option, the handlers that died.

    A pending event of which a handler waits runs at once, without what is written down of the
    handlers in question. One that is no longer there is forgotten. Answers: replayed; leased, a
    worker has it; pending, it will run and has no such handler to run again; gone, not known.

    \b
    python -m service events replay evt_1P...
    python -m service events replay --dead
    python -m service events replay --handler mail.renamed evt_1P...
    """
    if bool(keys) == dead or (handler and all_handlers):
        raise click.UsageError("give event keys or --dead, and one of --handler, --all-handlers")
    chosen = keys or [record.key for record in inbox.records("dead", 1_000_000)]
    which = "all" if all_handlers else handler or "dead"
    answers = [(key, inbox.replay(key, which)) for key in chosen]
    for key, answer in answers:
        click.echo(f"{key} {answer}")
    sys.exit(0 if answers and all(answer == "replayed" for _, answer in answers) else 1)


@events.command()
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.pass_obj
def end(inbox: Inbox, keys: tuple[str, ...]) -> None:
    """End pending or dead events as done, whatever their handlers wait for.

    Nothing of them runs any more, unless they are replayed. Answers: ended; done, it was already;
    leased, a worker has it: try again; gone, not known.

    \b
    python -m service events end evt_1P...
    """
    answers = [(key, inbox.end(key)) for key in keys]
    for key, answer in answers:
        click.echo(f"{key} {answer}")
    sys.exit(0 if all(answer in {"ended", "done"} for _, answer in answers) else 1)


def describe(record: Record) -> dict[str, Any]:
    """Return a record as plain data, the form that `--json` promises."""
    event = record.event
    return {
        "key": record.key,
        "id": event.id,
        "kind": event.kind,
        "form": event.form,
        "session": event.session,
        "account": event.account,
        "livemode": event.livemode,
        "created": event.created,
        "state": record.state,
        "outcome": record.outcome,
        "reason": record.reason,
        "accepted_at": record.accepted.isoformat(),
        "settled_ms": record.settled_ms,
        "handlers": [
            {
                "name": name,
                "status": progress.status,
                "attempts": progress.attempts,
                "ms": progress.ms,
                "reason": progress.reason,
            }
            for name, progress in sorted(record.handlers.items())
        ],
    }


if __name__ == "__main__":
    try:
        main(prog_name="python -m service")
    except redis.RedisError as fault:
        click.echo(f"Redis cannot be reached or refused ({type(fault).__name__})", err=True)
        sys.exit(69)
