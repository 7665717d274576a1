"""`python -m service`: run the web process, check it, and look after the inbox."""

from __future__ import annotations

import http.client
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import click
import redis

from service import connection, findings
from service.arguments import EVENT, HANDLER
from service.findings import Finding
from service.inbox import Inbox, Record
from service.redis_errors import UnsafeRedis, explain
from service.settings import Role, Settings, SettingsError
from service.text import table
from service.version import version_option

State = Literal["pending", "done", "dead", "all"]

_GUNICORN_CONF = Path(__file__).resolve().parents[1] / "deploy/gunicorn.conf.py"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def main() -> None:
    """Run the web process, check it, look at the inbox of REDIS_URL and put events back.

    Exit codes: 0 done, 1 no such event, nothing to do or not healthy, 2 wrong usage, 69 Redis
    cannot be reached, 78 the settings or Redis are not as they must be.
    """


@main.command()
def serve() -> None:
    """Receive deliveries until SIGTERM: gunicorn with deploy/gunicorn.conf.py.

    Listens on every address at PORT, else on 127.0.0.1:8000. gunicorn reads WEB_CONCURRENCY and
    PORT as it is imported, and fails on what is no number: so they are checked before that.
    """
    settings = _settings("web")
    os.environ["WEB_CONCURRENCY"] = str(settings.web_concurrency)
    os.environ.pop("PORT", None)
    if settings.port:
        os.environ["PORT"] = str(settings.port)
    # On SIGUSR2 gunicorn starts itself anew with these arguments, which fails with `-m gunicorn`.
    script = Path(sys.executable).with_name("gunicorn")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "gunicorn"]
    arguments = ["-c", str(_GUNICORN_CONF), "service.app:create_app()"]
    os.execv(command[0], [*command, *arguments])  # noqa: S606  # no shell


@main.command()
@click.option(
    "--role",
    type=click.Choice(["web", "worker"]),
    help="Check what this role needs (worker: periodic, too). Default: both.",
)
@click.option("--json", "as_json", is_flag=True, help="What is known of Redis, as an array.")
def check(role: Role | None, as_json: bool) -> None:
    """Check the settings, and whether Redis does what it must: before a release, for example.

    Lists what is known of Redis: good, bad, or unknown, where Redis does not tell. Which of it you
    may vouch for is said with it (REDIS_VOUCH_FOR).
    """
    roles: tuple[Role, ...] = (role,) if role else ("web", "worker")
    faults: dict[str, None] = {}  # in order, each once
    for each in roles:
        try:
            settings = Settings.load(each)
        except SettingsError as error:
            faults.update(dict.fromkeys(str(error).split("\n")))
    if faults:
        _refuse("\n".join(faults))
    with connection.connect(settings) as client:
        ask = findings.asking(client)
        found = findings.look(ask, settings).found
        if "worker" in roles:
            found += findings.look_for_workers(ask)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=2))
    else:
        click.echo("settings     complete")
        for finding in found:
            click.echo(_in_words(finding))
        for line in findings.warnings(found, settings):
            click.echo(line, err=True)
    try:
        findings.require(found)
    except UnsafeRedis as error:
        _refuse(str(error))


def _in_words(finding: Finding) -> str:
    state = "vouched for" if finding.vouched else finding.state
    said = finding.text if finding.state == "good" else f"{state}: {finding.text}"
    return f"{finding.name:12} {said}"


@main.command()
def health() -> None:
    """Ask the web process of this machine whether it answers, at PORT or 8000.

    Says nothing about Redis: no restart mends that. No proxy is used.
    """
    port = _settings("tool").port or 8000
    web = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        web.request("GET", "/healthz")
        status = web.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        click.echo(f"no answer on port {port} ({type(error).__name__})", err=True)
        sys.exit(1)
    click.echo(f"port {port} answers {status}")
    sys.exit(status != 200)


def _settings(role: Role) -> Settings:
    try:
        return Settings.load(role)
    except SettingsError as error:
        _refuse(str(error))


def _refuse(text: str) -> NoReturn:
    click.echo(f"refusing to start: {text}", err=True)
    sys.exit(os.EX_CONFIG)


@main.group()
@click.pass_context
def events(context: click.Context) -> None:
    """List, show, replay and end events."""
    try:
        settings = Settings.load("tool")
    except SettingsError as error:
        click.echo(error, err=True)
        sys.exit(os.EX_CONFIG)
    context.obj = Inbox(connection.connect(settings))


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
@click.argument("key", type=EVENT)
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
@click.argument("keys", nargs=-1, type=EVENT, metavar="[KEY]...")
@click.option("--dead", is_flag=True, help="Every dead event.")
@click.option(
    "--handler",
    type=HANDLER,
    metavar="PLUGIN.FUNCTION",
    help="Run this handler again, dead or not.",
)
@click.option("--all-handlers", is_flag=True, help="Run every handler again, also those done.")
@click.pass_obj
def replay(
    inbox: Inbox, keys: tuple[str, ...], dead: bool, handler: str | None, all_handlers: bool
) -> None:
    """Run events again: without an option, the handlers that died or wait for a retry.

    A pending event of which a handler waits runs at once, without what is written down of the
    handlers in question. One that is no longer there is forgotten. Answers: replayed; leased, a
    worker has it; pending, it will run and has no such handler to run again; nothing, it is done
    and has no such handler, and stays as it is; gone, not known.

    \b
    python -m service events replay evt_1P...
    python -m service events replay --dead
    python -m service events replay --handler mail.renamed evt_1P...
    """
    if bool(keys) == dead or (handler and all_handlers):
        raise click.UsageError(
            "give event keys or --dead; and not both --handler and --all-handlers"
        )
    chosen = keys or [record.key for record in inbox.records("dead", 1_000_000)]
    which = "all" if all_handlers else handler or "dead"
    answers = [(key, inbox.replay(key, which)) for key in chosen]
    for key, answer in answers:
        click.echo(f"{key} {answer}")
    if not answers:
        click.echo("no event is dead", err=True)
    sys.exit(0 if answers and all(answer == "replayed" for _, answer in answers) else 1)


@events.command()
@click.argument("keys", nargs=-1, type=EVENT, required=True, metavar="KEY...")
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
        click.echo(f"Redis: {explain(fault)}", err=True)
        sys.exit(os.EX_UNAVAILABLE)
