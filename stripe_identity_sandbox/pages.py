"""The pages of whoever runs the sandbox: sessions, requests, set-up.

Rendered here, usable without JavaScript; with it they show changes as they happen.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
from flask import Flask, Response, redirect, render_template, request
from markupsafe import Markup
from werkzeug.wrappers import Response as Redirect

from stripe_identity_sandbox import faults, given
from stripe_identity_sandbox.control import delivery_view, event_of, session_of
from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.hosted import closed
from stripe_identity_sandbox.lifetimes import DAY, Seconds
from stripe_identity_sandbox.objects import (
    REPORT_EXPANDS,
    Delivery,
    Event,
    Illegal,
    Json,
    Session,
    report_view,
)
from stripe_identity_sandbox.recorder import view
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.wire import ApiError

ROWS = 25
CLOCK_STEPS = (("+ 1 minute", 60), ("+ 1 hour", 3600), ("+ 1 day", DAY), ("+ 4 days", 4 * DAY))
#: Milliseconds after which a page asks anew whether something changed.
WATCH = 500


def install(app: Flask, world: World, set_faults: Faults) -> None:
    """Add the pages to the application."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.add_template_filter(_moment, "moment")
    app.add_template_filter(_duration, "duration")
    app.add_template_filter(_breakable, "breakable")

    def show(template: str, **values: Any) -> str:
        return render_template(
            template,
            message=request.args.get("message"),
            version=world.version,
            now=world.now(),
            ahead=world.journal.offset,
            **values,
        )

    @app.get("/")
    def front() -> Redirect:
        # What the sandbox prints is opened in a browser, too.
        return redirect("/_sandbox/")

    @app.get("/_sandbox")
    @app.get("/_sandbox/")
    def sessions() -> str:
        with world.step():
            newest = list(world.sessions.values())[::-1]
            pages = max(-(-len(newest) // ROWS), 1)
            page = min(max(request.args.get("page", 1, int), 1), pages)
            rows = newest[(page - 1) * ROWS : page * ROWS]
            return show(
                "sessions.html",
                base_url=world.settings.base_url,
                rows=[(session, _delivered(world, session)) for session in rows],
                count=len(newest),
                page=page,
                pages=pages,
            )

    @app.get("/_sandbox/sessions/<id_>")
    def session_page(id_: str) -> Any:
        with world.step():
            session = world.sessions.get(id_)
            if session is None:
                return closed(
                    "There is no such session",
                    "A sandbox that was started without --state forgets its sessions when it ends.",
                )
            return show(
                "session.html",
                session=session,
                view=json.dumps(world.view(session), indent=2),
                reports=[
                    {"id": r.id, "text": json.dumps(report_view(r, REPORT_EXPANDS), indent=2)}
                    for r in world.reports.of(session)[::-1]
                ],
                events=[_event(world, event) for event in world.events.of(session)[::-1]],
                requests=[view(one) for one in world.recorder.of(id_)[::-1]],
            )

    @app.get("/_sandbox/log")
    def log_page() -> str:
        with world.step():
            newest = world.recorder.all()[: -ROWS * 2 - 1 : -1]
            return show("log.html", requests=[view(one) for one in newest])

    @app.get("/_sandbox/setup")
    def setup_page() -> str:
        with world.step():
            return show(
                "setup.html",
                endpoints=list(world.endpoints.by_id.values()),
                faults=set_faults.all(),
                delivery_faults=faults.DELIVERY,
                api_faults=faults.API,
                steps=CLOCK_STEPS,
            )

    @app.get("/_sandbox/changes")
    def changes() -> Response:
        """Say whether something changed after ``since``, and end: the browser asks again.

        A stream that stays open would hold a thread of the server for each page, also for those
        that nobody looks at any more.
        """
        version = world.version
        told = "" if version == request.args.get("since", 0, int) else f"data: {version}\n\n"
        return Response(f"retry: {WATCH}\n\n{told}", mimetype="text/event-stream")

    @app.post("/_sandbox/")
    def act() -> Redirect:
        form = given.form()
        back = form.get("back", "/_sandbox/")
        with world.step():
            action = ACTIONS.get(form.get("action", ""))
            if action is None or not back.startswith("/_sandbox/") or not back.isprintable():
                raise ApiError(400, "There is no such action.")
            try:
                return redirect(action(world, set_faults, form) or back, 303)
            except (ApiError, Illegal, ValueError) as refusal:
                return redirect(f"{back}?message={quote(str(refusal))}", 303)


# -- what the buttons do ---------------------------------------------------------------------
# Each returns where to go next, None for where the button was.


def _create(world: World, _: Faults, form: dict[str, str]) -> str:
    wanted = {"require_matching_selfie": "selfie", "require_id_number": "id_number"}
    document = {option: True for option, field in wanted.items() if field in form}
    kind = form.get("type", "document")
    if kind not in {"document", "id_number"}:
        raise ApiError(400, f"There is no type '{kind}'.")
    options = {"document": document} if document else {}
    return f"/_sandbox/sessions/{world.create({'type': kind, 'options': options}).id}"


def _open(world: World, _: Faults, form: dict[str, str]) -> str:
    session = session_of(world, form.get("session", ""))
    world.refresh(session)
    return f"/start/test_{world.links.link_of(session)}"


def _cancel(world: World, _: Faults, form: dict[str, str]) -> None:
    world.cancel(session_of(world, form.get("session", "")))


def _redact(world: World, _: Faults, form: dict[str, str]) -> None:
    world.redact(session_of(world, form.get("session", "")))


def _override(world: World, _: Faults, form: dict[str, str]) -> None:
    to = form.get("to", "")
    if to not in {"verified", "requires_input"}:
        raise ApiError(400, f"There is no override to '{to}'.")
    world.override(session_of(world, form.get("session", "")), verified=to == "verified")


def _complete(world: World, _: Faults, form: dict[str, str]) -> None:
    world.complete(session_of(world, form.get("session", "")))


def _resend(world: World, _: Faults, form: dict[str, str]) -> None:
    world.outbox.send(event_of(world, form.get("event", "")), manual=True)


def _advance(world: World, _: Faults, form: dict[str, str]) -> None:
    world.advance(msgspec.convert(form.get("seconds", "0"), Seconds, strict=False))


def _add_fault(_: World, set_faults: Faults, form: dict[str, str]) -> None:
    set_faults.add({name: form[name] for name in ("kind", "next") if form.get(name)})


def _clear_fault(_: World, set_faults: Faults, form: dict[str, str]) -> None:
    set_faults.clear(form.get("fault"))


ACTIONS: dict[str, Callable[[World, Faults, dict[str, str]], str | None]] = {
    "create": _create,
    "open": _open,
    "cancel": _cancel,
    "redact": _redact,
    "override": _override,
    "complete": _complete,
    "resend": _resend,
    "advance": _advance,
    "add_fault": _add_fault,
    "clear_fault": _clear_fault,
}


# -- what the pages show ---------------------------------------------------------------------


def _delivered(world: World, session: Session) -> str:
    """Sum up the deliveries of a session's events in a word."""
    states = {
        _told(world.outbox.by_id[id_])
        for event in world.events.of(session)
        for id_ in event.deliveries
    }
    for state in ("failed", "dropped", "retrying", "pending", "sending", "delivered"):
        if state in states:
            return state
    return ""


def _told(delivery: Delivery) -> str:
    """Return the state of a delivery; one that waits after a try that failed is told apart."""
    return "retrying" if delivery.state == "pending" and delivery.attempts else delivery.state


def _event(world: World, event: Event) -> Json:
    shown: Json = msgspec.to_builtins(event)
    deliveries = [world.outbox.by_id[id_] for id_ in event.deliveries]
    return shown | {
        "change": event.type.rpartition(".")[2],
        "deliveries": [
            delivery_view(world, one) | {"payload": _payload(world, one), "told": _told(one)}
            for one in deliveries
        ],
    }


def _payload(world: World, delivery: Delivery) -> str | None:
    known = delivery.endpoint in world.endpoints.by_id
    return json.dumps(world.outbox.payload(delivery), indent=2) if known else None


def _breakable(path: str) -> str:
    """Let a line break after a slash."""
    return Markup("/<wbr>").join(path.split("/"))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %b %H:%M:%S")


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), int(DAY))
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    units = ((days, "d"), (hours, "h"), (minutes, "min"), (left, "s"))
    return " ".join(f"{number} {unit}" for number, unit in units if number)
