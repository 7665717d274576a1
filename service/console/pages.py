"""What each page of the console shows, and what its forms do.

Lists are cut where they would take long: a page reads about a thousand records, and says so.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import click
import redis
from flask import Blueprint, abort, g, redirect, render_template, request, url_for
from markupsafe import Markup
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from service import connection, logs, processes, repair, status
from service.arguments import ACCOUNT, EVENT, HANDLER, MOMENT, REASON, SESSION, fault_of_span
from service.console import access
from service.console.bulk import LOOK, MOST, Action, Bulk, Bulks
from service.description import next_run, timeline
from service.inbox import Filter, Inbox, Record, keys
from service.inbox.record import fields_of
from service.inbox.search import is_place
from service.redis_errors import explain
from service.settings import Settings

ROWS = 50
"""Events of a page."""

OF_A_SESSION = 200
"""Events of a session that are shown; a session has about ten."""

DAYS = 30
"""Days of the outcomes."""

LOOK_KEPT = 1.0
"""Seconds for which the overview shows one look at Redis, unless somebody had something done.
A look takes the interpreter from deliveries."""

OFFERED: dict[str, tuple[Action, ...]] = {
    "dead": ("replay", "discard"),
    "pending": ("retry-now", "discard"),
}
"""What can be done with events of a state."""

WORDS = {"replay": "Replay", "retry-now": "Retry now", "discard": "Discard"}
_TYPES: dict[str, click.ParamType[Any]] = {
    "session": SESSION,
    "account": ACCOUNT,
    "handler": HANDLER,
    "reason": REASON,
    "since": MOMENT,
    "until": MOMENT,
}
_STATES = ("all", "pending", "dead", "done")
_KNOWN = frozenset({"state", *_TYPES, "begin", "proof", "action"})
"""What an address or a form of filters may say."""
_DASHBOARD = "https://dashboard.stripe.com"

log = logs.get(__name__)


def blueprint(settings: Settings, client: redis.Redis) -> Blueprint:
    """Return the routes of the console, for the application of the web process."""
    inbox = connection.inbox(settings, client)
    logins = access.Access(settings, client)
    console = Blueprint(
        "console",
        __name__,
        url_prefix="/console",
        static_folder="static",
        template_folder="templates",
    )
    pages = Pages(settings, client, inbox)
    styles = (Path(__file__).parent / "static/console.css").read_bytes()
    version = hashlib.sha256(styles).hexdigest()[:12]
    console.before_request(logins.check)
    console.after_request(access.harden)
    console.context_processor(partial(_shared, version))
    console.app_template_filter("moment")(_moment)
    console.app_template_filter("age")(status.in_time)
    console.register_error_handler(HTTPException, _refused)
    console.register_error_handler(redis.RedisError, _redis_failed)
    for path, view, methods in (
        ("/", pages.overview, "GET"),
        ("/events", pages.events, "GET"),
        ("/events/<key>", pages.event, "GET"),
        ("/sessions/<session>", pages.session, "GET"),
        ("/handlers", pages.handlers, "GET"),
        ("/outcomes", pages.outcomes, "GET"),
        ("/actions", pages.begin, "POST"),
        ("/actions/<id_>", pages.action, "GET"),
        ("/actions/<id_>", pages.go_on, "POST"),
        ("/pause", pages.pause, "POST"),
        ("/login", partial(_log_in, logins), "GET"),
        ("/login", partial(_try_log_in, logins), "POST"),
        ("/logout", partial(_log_out, logins), "POST"),
    ):
        name = view.func.__name__.lstrip("_") if isinstance(view, partial) else view.__name__
        console.add_url_rule(path, name, cast("Any", view), methods=[methods])
    return console


@dataclass
class Asked:
    """What a form of filters says: as it was typed, what it means, and what is wrong with it."""

    given: dict[str, str]
    wanted: Filter
    faults: dict[str, str] = field(default_factory=dict)


def read_filter(given: Mapping[str, str]) -> Asked:
    """Read the filter in an address or a form, by the rules of the commands."""
    state = given.get("state") or "all"
    asked = Asked({"state": state}, Filter())
    if state not in _STATES:  # another one would match more than was asked for
        asked.given["state"] = "all"
        asked.faults["state"] = f"{state!r} is none of {', '.join(_STATES)}"
    if unknown := [name for name in given if name not in _KNOWN]:
        asked.faults["unknown"] = f"there is no filter {unknown[0]!r}"
    values: dict[str, Any] = {}
    for name, kind in _TYPES.items():
        if text := given.get(name, "").strip():
            asked.given[name] = text
            try:
                values[name] = kind.convert(text, None, None)
            except click.BadParameter as error:
                asked.faults[name] = error.message
    if fault := fault_of_span(values.get("since"), values.get("until")):
        asked.faults["since"] = fault
    asked.wanted = Filter(state=cast("Any", asked.given["state"]), **values)
    return asked


class _Look(NamedTuple):
    """What one look at Redis found, what people had done by then, and when that was."""

    status: status.Status
    hours: list[tuple[datetime, int, int]]
    done: tuple[Any, ...]
    at: float


class Pages:
    """The pages. Every method may raise `redis.RedisError`."""

    def __init__(self, settings: Settings, client: redis.Redis, inbox: Inbox) -> None:
        self._settings, self._redis, self._inbox = settings, client, inbox
        self._bulks = Bulks(client, inbox)
        self._look: _Look | None = None

    def overview(self) -> str:
        """Show what `python -m service status` says, the last day, and what people had done."""
        acts, bulks, paused = repair.audit(self._redis, 8), self._bulks.last(), self._inbox.paused()
        done = (acts, bulks, paused)
        look = self._look
        if look is None or look.done != done or time.monotonic() > look.at + LOOK_KEPT:
            found = status.take(self._redis, self._settings)
            look = self._look = _Look(found, self._last_day(), done, time.monotonic())
        return render_template(
            "console/overview.html",
            status=look.status,
            hours=look.hours,
            acts=acts,
            bulks=bulks,
            paused=paused,
        )

    def _last_day(self) -> list[tuple[datetime, int, int]]:
        """Return the hours of the last day: accepted, and died and still dead."""
        now = self._inbox.now() // keys.HOUR
        hours = range(now - 23, now + 1)
        with self._redis.pipeline(transaction=False) as pipe:
            for hour in hours:
                pipe.llen(f"{keys.LOG}{hour}")
            for hour in hours:
                begin = hour * keys.HOUR * 1000
                pipe.zcount(keys.DEAD, begin, f"({begin + keys.HOUR * 1000}")
            counts = list(map(int, pipe.execute()))
        moments = [datetime.fromtimestamp(hour * keys.HOUR, UTC) for hour in hours]
        return list(zip(moments, counts[:24], counts[24:], strict=True))

    def events(self) -> str:
        """Show what a filter matches, and what can be done with it."""
        asked = read_filter(request.args)
        page = None
        if not asked.faults:
            begin = request.args.get("begin") or None
            if begin and not is_place(begin, asked.wanted):
                abort(404, "There is no such page. Go back to the first one.")
            page = self._inbox.search.page(asked.wanted, ROWS, begin, look=LOOK)
        return render_template(
            "console/events.html",
            asked=asked,
            page=page,
            states=_STATES,
            offered=OFFERED.get(asked.wanted.state, ()),
            causes=self._inbox.search.deaths(),
            next_run=next_run,
            is_complete=self._inbox.search.is_complete(),
        )

    def event(self, key: str) -> str:
        """Show what happened to an event."""
        record = self._inbox.find(_checked(EVENT, key))
        if record is None:
            abort(404, f"No event {key} is in the inbox.")
        return render_template(
            "console/event.html",
            record=record,
            next=next_run(record),
            lines=_timelines([record]),
            offered=OFFERED.get(record.state, ()),
            dashboard=_dashboard(record, f"events/{record.event.id}"),
        )

    def session(self, session: str) -> str:
        """Show what happened to the events of a session."""
        wanted = Filter(session=_checked(SESSION, session))
        records = self._inbox.search.page(wanted, OF_A_SESSION).records
        if not records:
            abort(404, f"No event of {session} is in the inbox.")
        in_order = sorted(records, key=lambda each: (each.event.created, each.accepted))
        return render_template(
            "console/session.html",
            session=session,
            records=in_order,
            kinds={each.key: each.event.kind for each in in_order},
            reached={each.event.kind: each for each in in_order},
            lines=_timelines(records),
            dashboard=_dashboard(records[0], f"identity/verification-sessions/{session}"),
        )

    def handlers(self) -> str:
        """Show how each handler fares."""
        now = self._inbox.now()
        fields: dict[Any, Any] = self._redis.hgetall(keys.PROCESSES)
        alive = [
            each.process
            for each in processes.read(fields, now * 1000)
            if each.alive and each.process.role == "worker"
        ]
        counts: dict[str, float] = {}
        for process in alive:
            for name, count in process.counts.items():
                counts[name] = counts.get(name, 0) + count
        deaths: dict[str, dict[str, int]] = {}
        for (handler, cause), count in self._inbox.search.deaths().items():
            deaths.setdefault(handler, {})[cause] = count
        known = {*self._inbox.handlers(), *(h for each in alive for h in each.handlers)}
        names = sorted({*known, *filter(None, deaths)})
        return render_template(
            "console/handlers.html",
            since=max((now - each.started / 1000 for each in alive), default=None),
            handlers=[
                Handler(
                    name,
                    known=name in known,
                    runs=_runs(counts, name),
                    median=_quantile(counts, name, 0.5),
                    slow=_quantile(counts, name, 0.95),
                    deaths=deaths.get(name, {}),
                    last=self._last_death(name) if name in deaths else None,
                )
                for name in names
            ],
            others=deaths.get("", {}),
        )

    def _last_death(self, handler: str) -> Record | None:
        wanted = Filter(state="dead", handler=handler)
        return next(iter(self._inbox.search.page(wanted, 1, look=LOOK).records), None)

    def outcomes(self) -> str:
        """Show how verifications went, by day: counts alone."""
        today = self._inbox.now() // 86_400
        days = list(range(today - DAYS + 1, today + 1))
        with self._redis.pipeline(transaction=False) as pipe:
            for day in days:
                pipe.hgetall(f"{keys.OUTCOMES}{day}")
            found = [fields_of(each) for each in pipe.execute()]
        rows: dict[tuple[str, str], list[int]] = {}
        for place, counts in enumerate(found):
            for name, count in counts.items():
                _, outcome, reason = name.split("|")
                row = rows.setdefault((outcome, reason), [0] * len(days))
                row[place] += int(count)
        return render_template(
            "console/outcomes.html",
            days=[datetime.fromtimestamp(day * 86_400, UTC) for day in days],
            rows=sorted(rows.items(), key=lambda each: -sum(each[1])),
            total=lambda outcome: [
                sum(row[place] for (name, _), row in rows.items() if name == outcome)
                for place in range(len(days))
            ],
        )

    # --- actions --------------------------------------------------------------------------------

    def begin(self) -> Response:
        """Begin an action on one event, or on all that a filter matches."""
        action = cast("Action", request.form.get("action", ""))
        if action not in get_args(Action):
            abort(400, "There is no such action.")
        if key := request.form.get("key"):
            record = self._inbox.find(_checked(EVENT, key))
            if record is None or action not in OFFERED.get(record.state, ()):
                abort(409, "The event has changed meanwhile. Go back, and look at it again.")
            id_ = self._bulks.begin(g.person.name, action, "dead", {"keys": key}, [record.key])
            return redirect(url_for("console.action", id_=id_), 303)
        asked = read_filter(request.form)
        if asked.faults or action not in OFFERED.get(asked.wanted.state, ()):
            abort(400, "This cannot be done with what the filter matches.")
        handler, known = asked.wanted.handler, self._inbox.handlers()
        if action == "replay" and handler and known and handler not in known:
            abort(
                409,
                f"No worker has started with a handler {handler}. Discard its events, or"
                " give them its new name: python -m service events replay --to.",
            )
        on = asked.given | {
            name: moment.isoformat(timespec="milliseconds")
            for name in ("since", "until")
            if (moment := getattr(asked.wanted, name))
        }
        id_ = self._bulks.begin(g.person.name, action, handler or "dead", on, ())
        self._bulks.step(self._found(id_), asked.wanted)
        return redirect(url_for("console.action", id_=id_), 303)

    def action(self, id_: str) -> str:
        """Show how far an action is: what is asked, what was done."""
        bulk = self._found(id_)
        return render_template(
            "console/action.html", bulk=bulk, words=WORDS[bulk.action], most=MOST
        )

    def go_on(self, id_: str) -> Response:
        """Confirm an action, make a step of it, or stop it."""
        bulk = self._found(id_)
        if request.form.get("do") == "stop":
            self._bulks.stop(bulk, g.person.name)
        else:
            if request.form.get("do") == "confirm":
                self._bulks.confirm(bulk, g.person.name)
            self._bulks.step(bulk, read_filter(bulk.on).wanted)
        return redirect(url_for("console.action", id_=id_), 303)

    def _found(self, id_: str) -> Bulk:
        bulk = self._bulks.find(id_)
        if bulk is None:
            abort(404, "This action is not known, or no longer: they are kept for a day.")
        return bulk

    def pause(self) -> Response:
        """Pause the workers for an hour, or have them go on."""
        acting = repair.Repair(self._redis, self._inbox, g.person.name)
        match request.form.get("do"):
            case "resume":
                acting.resume()
            case "pause":
                acting.pause(3600)
            case _:
                abort(400, "There is no such action.")
        return redirect(url_for("console.overview"), 303)


@dataclass(frozen=True)
class Handler:
    """How a handler fares, as the living workers and the dead events tell.

    Attributes:
        name: its name.
        known: whether a worker runs it.
        runs: status -> how often.
        median, slow: seconds within which half, and 95 of 100, of its runs ended; None for no runs.
        deaths: cause -> events that are dead of it.
        last: the event that died of it last.
    """

    name: str
    known: bool
    runs: dict[str, int]
    median: str | None
    slow: str | None
    deaths: dict[str, int]
    last: Record | None


def _runs(counts: Mapping[str, float], handler: str) -> dict[str, int]:
    prefix = f"handler_runs|{handler}|"
    return {
        name.removeprefix(prefix): int(count)
        for name, count in counts.items()
        if name.startswith(prefix)
    }


def _quantile(counts: Mapping[str, float], handler: str, share: float) -> str | None:
    """Return the bound of the bucket in which so large a share of the runs has ended."""
    prefix = f"handler_seconds|{handler}|"
    buckets = {
        name.removeprefix(prefix): count
        for name, count in counts.items()
        if name.startswith(prefix) and not name.endswith("|sum")
    }
    total, seen = sum(buckets.values()), 0.0
    for bound in sorted(buckets, key=float):
        seen += buckets[bound]
        if seen >= share * total:
            return "over 300 s" if bound == "+Inf" else f"{bound} s"
    return None


def _timelines(records: list[Record]) -> list[tuple[datetime, str, str]]:
    return sorted((line for each in records for line in timeline(each)), key=lambda e: e[0])


def _dashboard(record: Record, path: str) -> str:
    """Return where Stripe's Dashboard shows it."""
    event = record.event
    account = f"/{event.account.rpartition('/')[2]}" if event.account else ""
    return f"{_DASHBOARD}{account}{'' if event.livemode else '/test'}/{path}"


def _checked(kind: click.ParamType[Any], text: str) -> str:
    try:
        return str(kind.convert(text, None, None))
    except click.BadParameter as error:
        abort(404, error.message)


# --- the frame --------------------------------------------------------------------------------


def _shared(version: str) -> dict[str, Any]:
    person = g.get("person")
    return {
        "person": person,
        "may_act": person is not None and person.may_act,
        "proof_field": _proof_field,
        "version": version,
        "words_of": WORDS,
    }


def _proof_field() -> Markup:
    return Markup('<input type="hidden" name="proof" value="{}">').format(access.proof())


def _moment(moment: datetime | str) -> str:
    text = moment if isinstance(moment, str) else moment.isoformat(sep=" ", timespec="seconds")
    return text.replace("T", " ").removesuffix("+00:00")


def _refused(error: HTTPException) -> tuple[str, int]:
    code = error.code or 500
    return render_template("console/refused.html", code=code, said=error.description), code


def _redis_failed(error: redis.RedisError) -> tuple[str, int]:
    said = explain(error)
    log.warning("console_failed", **said.fields())
    g.setdefault("person", None)
    return render_template(
        "console/refused.html", code=503, said=f"Redis cannot be asked: {said}"
    ), 503


def _log_in(logins: access.Access) -> str | Response:
    if g.person:
        return redirect(url_for("console.overview"), 303)
    return render_template("console/login.html", logins=logins, next=request.args.get("next", ""))


def _try_log_in(logins: access.Access) -> tuple[str, int, dict[str, str]] | Response:
    answer = logins.log_in(request.form.get("name", ""), request.form.get("password", ""))
    there = request.form.get("next", "")
    if answer:
        # A path of ours, and not `//another.host`.
        ours = there.startswith(url_for("console.overview")) and "\\" not in there
        return redirect(there if ours else url_for("console.overview"), 303)
    if answer is None:
        said, code = f"Too many tries. Wait {access.WINDOW // 60} minutes.", 429
    else:
        said, code = "Name and password do not fit.", 403
    page = render_template("console/login.html", logins=logins, next=there, said=said)
    return page, code, {"Retry-After": str(access.WINDOW)} if code == 429 else {}


def _log_out(logins: access.Access) -> Response:
    logins.log_out()
    return redirect(url_for("console.log_in"), 303)
