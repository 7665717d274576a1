"""`python -m service events`: list, show and repair events, and pause the workers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, TypeVar

import click
import redis

from service import connection, logs, repair
from service.arguments import (
    ACCOUNT,
    EVENT,
    EVENT_OR_SESSION,
    HANDLER,
    MOMENT,
    PERSON,
    RATE,
    REASON,
    fault_of_span,
)
from service.arguments import SESSION as SESSION_ID
from service.description import describe, in_text, next_run, timeline
from service.inbox import Filter, Inbox, Record
from service.repair import Repair
from service.settings import Settings, SettingsError
from service.text import table

State = Literal["pending", "done", "dead", "all"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Room:
    """What the commands of this group share."""

    client: redis.Redis
    inbox: Inbox


@click.group()
@click.pass_context
def events(context: click.Context) -> None:
    """List and show events; replay, retry and discard them; pause the workers.

    Every change is recorded with the name of who asked for it: your user, or --as.
    """
    try:
        settings = Settings.load("tool")
    except SettingsError as error:
        click.echo(error, err=True)
        sys.exit(os.EX_CONFIG)
    logs.configure(settings, sys.stderr)
    client = connection.connect(settings)
    context.obj = Room(client, connection.inbox(settings, client))


def filtering(*states: str, default: str | None = None) -> Callable[[F], F]:
    """Add the options of a filter; `states` are those it may ask for."""
    state = click.option(
        "--state",
        type=click.Choice(states),
        default=default,
        show_default=default is not None,
        help="Only events in this state." + ("" if default else " Default: dead."),
    )
    options = [
        *([state] if states else []),
        click.option("--session", type=SESSION_ID, metavar="VS", help="Of this session: vs_..."),
        click.option(
            "--account", type=ACCOUNT, metavar="ACCT", help="Of this connected account: acct_..."
        ),
        click.option(
            "--handler",
            type=HANDLER,
            metavar="PLUGIN.FUNCTION",
            help="Dead because of this handler; in other states, with a result of it.",
        ),
        click.option(
            "--reason",
            type=REASON,
            help="Dead or waiting for this reason, or with it as the code of `last_error`: its"
            " first words, as `causes` lists them.",
        ),
        click.option(
            "--since", type=MOMENT, help="Accepted since: 90m, 2h, 3d, or a moment in UTC."
        ),
        click.option("--until", type=MOMENT, help="Accepted before: the same."),
    ]

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


as_json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")
as_option = click.option(
    "--as", "by", type=PERSON, help="Who asks for it. Default: the user of this process."
)


def acting(command: F) -> F:
    """Add the options of a command that does something with many events."""
    for option in (
        as_json_option,
        as_option,
        click.option("--rate", type=RATE, help="Events a second. Default: all."),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
    ):
        command = option(command)
    return command


@events.command("list")
@filtering("pending", "done", "dead", "all", default="all")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@as_json_option
@click.pass_obj
def list_events(room: Room, /, limit: int, as_json: bool, **given: Any) -> None:
    """List events: the pending by what is due next, the dead by time of death, others by when
    they were accepted; all but the pending newest first. Times are UTC.

    \b
    python -m service events list --state dead --handler mail.send --since 2h
    python -m service events list --session vs_1P...
    python -m service events list --json | jq '.[].reason'
    """
    wanted = _filter_of(given, given["state"])
    _complete(room)
    page = room.inbox.search.page(wanted, limit)
    if page.following:
        click.echo(f"these are the first {limit}: --limit shows more, if there are", err=True)
    if as_json:
        click.echo(json.dumps([describe(record) for record in page.records], indent=2))
        return
    rows = [
        (
            record.key,
            record.event.kind,
            record.event.session,
            record.state,
            in_text(record.accepted),
            next_run(record),
            record.outcome,
            record.reason,
        )
        for record in page.records
    ]
    heads = ("EVENT", "KIND", "SESSION", "STATE", "ACCEPTED", "NEXT", "OUTCOME", "REASON")
    click.echo(table(heads, rows))


@events.command()
@click.argument("thing", type=EVENT_OR_SESSION, metavar="EVENT|SESSION")
@as_json_option
@click.pass_obj
def show(room: Room, thing: str, as_json: bool) -> None:
    """Show what happened to an event, or to all events of a session, in order of time.

    evt_..., acct_...-evt_..., or vs_... Of a change that came in both forms either id will do,
    here and in the other commands. Of failed attempts, and of what people had done, the last few
    are known. Times are UTC.
    """
    if thing.startswith("vs_"):
        _complete(room)
        records = list(room.inbox.search.all(Filter(session=thing)))
    else:
        record = room.inbox.find(thing)
        records = [record] if record else []
    if not records:
        kind = "event of " if thing.startswith("vs_") else "event "
        click.echo(f"no {kind}{thing} is in the inbox", err=True)
        sys.exit(1)
    if as_json:
        described = [describe(record) for record in records]
        click.echo(json.dumps(described if thing.startswith("vs_") else described[0], indent=2))
        return
    for record in records:
        facts = describe(record)
        for name in ("key", "kind", "form", "session", "account", "state", "outcome", "reason"):
            click.echo(f"{name:12} {facts[name] or ''}".rstrip())
        click.echo(f"{'claims':12} {record.claims}")
        if record.state == "pending":
            click.echo(f"{'next':12} {next_run(record)}")
        click.echo()
    lines = sorted((each for record in records for each in timeline(record)), key=lambda e: e[0])
    rows = [(in_text(at, "milliseconds"), key, what) for at, key, what in lines]
    click.echo(table(("TIME", "EVENT", "WHAT"), rows))


@events.command()
@as_json_option
@click.pass_obj
def causes(room: Room, as_json: bool) -> None:
    """List what events are dead of, by handler, and how many: words for --handler and --reason.

    An event of which two handlers died is counted for each.
    """
    _complete(room)
    deaths = room.inbox.search.deaths()
    if as_json:
        found = [
            {"handler": handler or None, "reason": cause, "events": count}
            for (handler, cause), count in deaths.items()
        ]
        click.echo(json.dumps(found, indent=2))
        return
    rows = [(handler or "-", cause, count) for (handler, cause), count in deaths.items()]
    click.echo(table(("HANDLER", "REASON", "EVENTS"), rows))


@events.command()
@click.argument("keys", nargs=-1, type=EVENT, metavar="[KEY]...")
@filtering("pending", "done", "dead", "all")
@click.option("--dead", is_flag=True, help="The same as --state dead.")
@click.option("--all-handlers", is_flag=True, help="Run every handler again, also those done.")
@click.option(
    "--to",
    type=HANDLER,
    metavar="PLUGIN.FUNCTION",
    help="The new name of --handler, which is gone: deletes the results of the old one, so that"
    " the new one runs. Dead and pending events.",
)
@click.option("--quarantined", is_flag=True, help="Also events whose workers died.")
@acting
@click.pass_obj
def replay(
    room: Room,
    /,
    keys: tuple[str, ...],
    dead: bool,
    all_handlers: bool,
    to: str | None,
    quarantined: bool,
    **given: Any,
) -> None:
    """Run events again: those named, or the dead that the options describe.

    Without --handler, the handlers that died or wait for a retry run again; with it, that one
    alone, dead or not, and what the others did stays. Those whose workers died
    (`--reason quarantined`) are left out unless asked for: they may end more of them.

    Answers: replayed; leased, a worker has it; pending, it will run and has no such handler to run
    again; nothing, it is settled and has no such handler, and stays as it is; gone, not known.

    \b
    python -m service events replay evt_1P...
    python -m service events replay --dead --handler mail.send --dry-run
    python -m service events replay --dead --reason "failed KeyError" --rate 5
    python -m service events replay --handler mail.old --to mail.new
    """
    handler, state = given["handler"], given.pop("state")
    if all_handlers and handler:
        raise click.UsageError("give --handler or --all-handlers, not both")
    if to and not handler:
        raise click.UsageError("--to needs --handler, the name that is gone")
    if dead and state not in {None, "dead"}:
        raise click.UsageError("give --dead or --state, not both")
    _refuse_unknown(room, to or handler)
    states = ("dead", "pending") if to and not (state or dead) else (state or "dead",)
    chosen = _chosen(room, keys, given, states, explicit=bool(dead or state), may_name_handler=True)
    if not quarantined:
        chosen = _without_quarantined(chosen)
    which = "all" if all_handlers else handler or "dead"
    names = {
        key: repair.handlers_to_replay(record, which) if record else which for key, record in chosen
    }
    on = {"state": " ".join(states), "handlers": which, "to": to}
    _act(room, "replay", names, dict(chosen), keys, given, on)


@events.command("retry-now")
@click.argument("keys", nargs=-1, type=EVENT, metavar="[KEY]...")
@filtering()
@click.option("--pending", "everything", is_flag=True, help="Every event that is pending.")
@acting
@click.pass_obj
def retry_now(room: Room, /, keys: tuple[str, ...], everything: bool, **given: Any) -> None:
    """Run pending events at once that wait for a handler's retry, for Stripe or after a pause.

    Their attempts still count. Answers: retried; leased, a worker has it; dead or done, it
    does not wait; gone, not known.

    \b
    python -m service events retry-now --handler mail.send
    """
    found = dict(_chosen(room, keys, given, ("pending",), explicit=everything))
    _act(room, "retry-now", dict.fromkeys(found, ""), found, keys, given, {"state": "pending"})


@events.command()
@click.argument("keys", nargs=-1, type=EVENT, metavar="[KEY]...")
@filtering("pending", "dead")
@acting
@click.pass_obj
def discard(room: Room, /, keys: tuple[str, ...], **given: Any) -> None:
    """End dead or pending events, whatever their handlers wait for.

    Their handlers do not run any more, unless they are replayed. They are done then, with the
    outcome `discarded` and your name, and a later delivery of them is known. Answers: discarded;
    done, it was already; leased, a worker has it: try again; gone, not known.

    \b
    python -m service events discard evt_1P...
    python -m service events discard --handler mail.gone
    """
    asked = given.pop("state")
    if keys and asked:
        raise click.UsageError(_NOT_BOTH)
    state = asked or "dead"
    found = dict(_chosen(room, keys, given, (state,), explicit=asked == "dead"))
    _act(room, "discard", dict.fromkeys(found, ""), found, keys, given, {"state": state})


@events.command()
@click.option(
    "--account",
    type=ACCOUNT,
    metavar="ACCT",
    help="Only events of this connected account: acct_...",
)
@click.option(
    "--minutes", type=click.IntRange(1, 10_080), default=60, show_default=True, help="How long."
)
@as_option
@as_json_option
@click.pass_obj
def pause(room: Room, account: str | None, minutes: int, by: str | None, as_json: bool) -> None:
    """Let no worker claim an event for a while, or none of one account.

    Deliveries are accepted meanwhile. A pause that ends later stays.
    """
    _repair(room, by).pause(minutes * 60, account or "")
    _say_pause(room, account, as_json)


@events.command()
@click.option(
    "--account", type=ACCOUNT, metavar="ACCT", help="The pause of this connected account: acct_..."
)
@as_option
@as_json_option
@click.pass_obj
def resume(room: Room, account: str | None, by: str | None, as_json: bool) -> None:
    """End a pause, also one made because Stripe refused our key or limits our rate.

    Events of an account go on within a minute; `retry-now --account` has them go on at once. Exit
    code 1: there was no pause, or one of seconds that has to stay, as Redis' clock was set.
    """
    ended = _repair(room, by).resume(account or "")
    _say_pause(room, account, as_json)
    sys.exit(0 if ended else 1)


def _say_pause(room: Room, account: str | None, as_json: bool) -> None:
    paused = room.inbox.paused(account or "")
    until = _iso(datetime.fromtimestamp(paused[0], UTC)) if paused else None
    why = paused[1] if paused else None
    if as_json:
        click.echo(json.dumps({"account": account, "paused_until": until, "why": why}, indent=2))
    else:
        whose = f" of {account}" if account else ""
        click.echo(
            f"events{whose}: " + (f"paused until {until} ({why})" if until else "not paused")
        )


@events.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@as_json_option
@click.pass_obj
def audit(room: Room, limit: int, as_json: bool) -> None:
    """List what people had done, newest first: who, when, what, and on what. The last thousand."""
    entries = repair.audit(room.client, limit)
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    rows = [
        (e.at, e.by, e.action, e.matched, " ".join(f"{name}={e.on[name]}" for name in e.on))
        for e in entries
    ]
    click.echo(table(("TIME", "BY", "ACTION", "EVENTS", "ON"), rows))


# --- what they share --------------------------------------------------------------------------


def _complete(room: Room) -> None:
    """List what an older release took in, if this is the first look after an upgrade."""
    search = room.inbox.search
    if search.is_complete():
        return
    shown = sys.stderr.isatty()

    def progress(count: int) -> None:
        if shown:
            click.echo(
                f"\rlisting events that an older release took in: {count}", err=True, nl=False
            )

    try:
        missing = search.complete(progress)
    except redis.OutOfMemoryError:
        click.echo("Redis is full: events of an older release may be missing here", err=True)
        return
    if not search.is_complete():
        click.echo(
            f"{missing} events of an older release were listed. What its processes took in since"
            " then may be missing here; it is listed in an hour.",
            err=True,
        )


def _refuse_unknown(room: Room, handler: str | None) -> None:
    known = room.inbox.handlers()
    if handler and known and handler not in known:
        raise click.UsageError(
            f"no worker has started with a handler {handler}; they have {', '.join(known)}."
            " If it has another name now: --to. If it is gone: `events discard --handler`."
        )


def _chosen(
    room: Room,
    keys: tuple[str, ...],
    given: dict[str, Any],
    states: tuple[str, ...],
    *,
    explicit: bool,
    may_name_handler: bool = False,
) -> list[tuple[str, Record | None]]:
    """Return the events that are named, or that the filter matches, each with its record.

    `explicit`: whether a filter may be nothing but the state. `may_name_handler`: whether a handler
    may stand beside keys, since it says what is done with them.
    """
    filters = [_filter_of(given, state) for state in states]
    first = filters[0]
    if keys:
        handler = first.handler if may_name_handler else None
        if explicit or first != Filter(state=first.state, handler=handler):
            raise click.UsageError(_NOT_BOTH)
        return [(key, room.inbox.find(key)) for key in keys]
    if not first.is_narrow and not (explicit and first.state in {"dead", "pending"}):
        raise click.UsageError(
            "this would be every event: give event keys, or options that describe some"
        )
    _complete(room)
    search = room.inbox.search
    return [(record.key, record) for each in filters for record in search.all(each)]


def _filter_of(given: dict[str, Any], state: Any) -> Filter:
    wanted = Filter(state=state, **{name: given[name] for name in _FILTER})
    if fault := fault_of_span(wanted.since, wanted.until):
        raise click.UsageError(fault)
    return wanted


def _without_quarantined(
    chosen: list[tuple[str, Record | None]],
) -> list[tuple[str, Record | None]]:
    kept = [(key, record) for key, record in chosen if not (record and record.is_quarantined)]
    if left_out := len(chosen) - len(kept):
        click.echo(
            f"{left_out} left out, as their workers died three times in a row (`events show` may"
            " name the handler): --quarantined replays them, too",
            err=True,
        )
    return kept


def _act(
    room: Room,
    action: Literal["replay", "retry-now", "discard"],
    names: dict[str, str],
    records: dict[str, Record | None],
    keys: tuple[str, ...],
    given: dict[str, Any],
    on: dict[str, Any],
) -> NoReturn:
    """Do it, or say what would be done; print the result of each event, and exit."""
    if not names:
        click.echo("no event to do it with", err=True)
        if given["as_json"]:
            click.echo("[]")
        sys.exit(1)
    if given["dry_run"]:
        expected = [(name, _expected(action, records[name], names[name])) for name in names]
        _print(expected, given["as_json"])
        click.echo(f"{len(names)} events, and nothing was done (--dry-run)", err=True)
        good = {f"would {action}", *repair.SUCCESS[action]}
        sys.exit(0 if all(answer in good for _, answer in expected) else 1)
    if keys:
        on = {name: value for name, value in on.items() if name != "state"}
        described: dict[str, Any] = {"keys": " ".join(list(names)[:5])}
    else:
        described = {name: _plain(value) for name, value in given.items() if name in _FILTER}
    answers = _repair(room, given["by"]).run(
        action,
        names,
        described | on,
        rate=given["rate"] or 0,
        progress=_progress(len(names)),
    )
    _print(answers, given["as_json"])
    sys.exit(0 if all(answer in repair.SUCCESS[action] for _, answer in answers) else 1)


def _expected(
    action: Literal["replay", "retry-now", "discard"], record: Record | None, which: str
) -> str:
    """Return what a dry run says of an event: `would ...`, or why nothing would be done."""
    if record is None:
        return "gone"
    if record.is_claimed:
        return "leased"
    if action == "retry-now" and record.state != "pending":
        return record.state
    if action == "discard" and record.state == "done":
        return "done"
    if action == "replay" and not repair.would_replay(record, which):
        return "pending" if record.state == "pending" else "nothing"
    return f"would {action}"


_NOT_BOTH = "give event keys, or options that describe events; not both"
_FILTER = ("session", "account", "handler", "reason", "since", "until")


def _plain(value: Any) -> Any:
    return _iso(value) if isinstance(value, datetime) else value


def _repair(room: Room, by: str | None) -> Repair:
    return Repair(room.client, room.inbox, by or repair.operator())


def _progress(total: int) -> Callable[[int], None]:
    if total <= repair.BATCH:
        return lambda _: None
    if sys.stderr.isatty():
        return lambda done: click.echo(f"\r{done} of {total}", err=True, nl=done == total)

    def by_lines(done: int) -> None:
        if done % 1000 == 0 or done == total:
            click.echo(f"{done} of {total}", err=True)

    return by_lines


def _print(answers: list[repair.Answered], as_json: bool) -> None:
    if as_json:
        found = [{"key": key, "answer": answer} for key, answer in answers]
        click.echo(json.dumps(found, indent=2))
        return
    for key, answer in answers:
        click.echo(f"{key} {answer}")


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
