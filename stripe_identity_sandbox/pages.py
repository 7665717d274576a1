"""The pages: the one a user would be sent to, and an overview for who runs the sandbox.

Rendered here, usable without JavaScript.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
from flask import Flask, redirect, render_template, request
from werkzeug.wrappers import Response

from stripe_identity_sandbox import checks, faults
from stripe_identity_sandbox.control import delivery_view, event_of, session_of
from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.lifetimes import DAY
from stripe_identity_sandbox.objects import (
    REPORT_EXPANDS,
    Event,
    Illegal,
    Json,
    Session,
    report_view,
)
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.wire import ApiError

#: How many of the newest the overview shows.
SESSIONS_SHOWN, EVENTS_SHOWN = 50, 20
#: What the tester can choose for the time processing takes, and what ``submit`` makes of it.
TIMES: dict[str, tuple[str, Json]] = {
    "now": ("At once", {}),
    "soon": ("After 10 seconds", {"delay": 10.0}),
    "hold": ("Stay in processing until told", {"hold": True}),
}
CLOCK_STEPS = (("+ 1 minute", 60), ("+ 1 hour", 3600), ("+ 1 day", DAY), ("+ 4 days", 4 * DAY))


def install(app: Flask, world: World, set_faults: Faults) -> None:
    """Add the pages to the application."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.add_template_filter(_moment, "moment")
    app.add_template_filter(_duration, "duration")

    @app.get("/start/test_<token>")
    def start(token: str) -> Any:
        with world.step():
            session = world.links.session(token)
            if session is None:
                return _gone()
            return render_template(
                "start.html",
                session=session,
                steps=_steps(session),
                times=[(value, text) for value, (text, _) in TIMES.items()],
                errors=_errors(),
            )

    @app.post("/start/test_<token>")
    def finish(token: str) -> Any:
        choice = request.form.get("do", "")
        with world.step():
            session = world.links.session(token)
            if session is None:
                return _gone()
            if choice == "leave":
                world.links.close(session)
            else:
                code = request.form.get("code", "") if choice == "fail" else choice
                if code not in checks.OUTCOMES:
                    raise ApiError(400, f"There is no outcome '{code}'.")
                _, how = TIMES.get(request.form.get("when", ""), TIMES["now"])
                world.submit(session, code, **how)
            if session.return_url:
                return redirect(session.return_url, 303)
            title = "You walked away" if choice == "leave" else "Thank you"
            text = (
                "Nothing was submitted, and the link is used up. Your app gets a new one when it"
                " retrieves the session."
                if choice == "leave"
                else "The data was submitted. Your app would go on here: it gave no return_url."
            )
            return render_template("done.html", title=title, text=text, session=session)

    @app.get("/_sandbox")
    @app.get("/_sandbox/")
    def overview() -> str:
        with world.step():
            sessions = list(world.sessions.values())
            events = list(world.events.by_id.values())
            return render_template(
                "overview.html",
                base_url=world.settings.base_url,
                message=request.args.get("message"),
                sessions=sessions[: -SESSIONS_SHOWN - 1 : -1],
                count=len(sessions),
                events=[_event(world, event) for event in events[: -EVENTS_SHOWN - 1 : -1]],
                endpoints=list(world.endpoints.by_id.values()),
                faults=set_faults.all(),
                delivery_faults=faults.DELIVERY,
                api_faults=faults.API,
                now=world.now(),
                ahead=world.journal.offset,
                steps=CLOCK_STEPS,
            )

    @app.get("/_sandbox/sessions/<id_>")
    def session_page(id_: str) -> Any:
        with world.step():
            session = world.sessions.get(id_)
            if session is None:
                return _gone()
            reports = [
                {"id": r.id, "text": json.dumps(report_view(r, REPORT_EXPANDS), indent=2)}
                for r in world.reports.by_id.values()
                if r.session == id_
            ]
            return render_template(
                "session.html",
                session=session,
                message=request.args.get("message"),
                view=json.dumps(world.view(session), indent=2),
                reports=reports[::-1],
                events=[_event(world, event) for event in world.events.of(session)[::-1]],
            )

    @app.post("/_sandbox/")
    def act() -> Response:
        form = request.form.to_dict()
        back = form.get("back", "/_sandbox/")
        with world.step():
            action = ACTIONS.get(form.get("action", ""))
            if action is None or not back.startswith("/_sandbox/"):
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
    kind = "id_number" if form.get("type") == "id_number" else "document"
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


def _complete(world: World, _: Faults, form: dict[str, str]) -> None:
    world.complete(session_of(world, form.get("session", "")))


def _resend(world: World, _: Faults, form: dict[str, str]) -> None:
    world.outbox.send(event_of(world, form.get("event", "")), manual=True)


def _advance(world: World, _: Faults, form: dict[str, str]) -> None:
    world.advance(max(0.0, float(form.get("seconds", 0))))


def _add_fault(_: World, set_faults: Faults, form: dict[str, str]) -> None:
    set_faults.add({name: form[name] for name in ("kind", "next") if form.get(name)})


def _clear_fault(_: World, set_faults: Faults, form: dict[str, str]) -> None:
    set_faults.clear(form.get("fault"))


ACTIONS: dict[str, Callable[[World, Faults, dict[str, str]], str | None]] = {
    "create": _create,
    "open": _open,
    "cancel": _cancel,
    "redact": _redact,
    "complete": _complete,
    "resend": _resend,
    "advance": _advance,
    "add_fault": _add_fault,
    "clear_fault": _clear_fault,
}


# -- what the pages show ---------------------------------------------------------------------


def _gone() -> tuple[str, int]:
    title = "This link does not work any more"
    text = "It was used, it expired, or its session is closed. Retrieve the session for a new one."
    return render_template("done.html", title=title, text=text, session=None), 404


def _steps(session: Session) -> list[tuple[str, str]]:
    document = session.options.get("document") or {}
    allowed = document.get("allowed_types") or ["passport", "driving_license", "id_card"]
    named = ", ".join(name.replace("_", " ") for name in allowed)
    texts = {
        "document": ("A photo ID", f"One of: {named}."),
        "selfie": ("A selfie", "It is compared with the photo on the document."),
        "id_number": ("An ID number", "With name and date of birth."),
        "email": ("An e-mail address", "Confirmed by a code."),
        "phone": ("A phone number", "Confirmed by a code."),
    }
    return [texts[part] for part in checks.parts_of(session.type, session.options, "verified")]


def _errors() -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for code in checks.LAST_ERRORS:
        part = checks.failed_part(code)
        groups.setdefault(part.replace("_", " ").capitalize() if part else "User", []).append(code)
    return list(groups.items())


def _event(world: World, event: Event) -> Json:
    shown: Json = msgspec.to_builtins(event)
    return shown | {
        "change": event.type.rpartition(".")[2],
        "deliveries": [delivery_view(world, world.outbox.by_id[id_]) for id_ in event.deliveries],
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %b %H:%M:%S")


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), int(DAY))
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    units = ((days, "d"), (hours, "h"), (minutes, "min"), (left, "s"))
    return " ".join(f"{number} {unit}" for number, unit in units if number)
