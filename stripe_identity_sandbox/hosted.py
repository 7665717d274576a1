"""The page a user would be sent to: here, the tester chooses what the checks will find."""

from typing import Any

from flask import Flask, redirect, render_template

from stripe_identity_sandbox import checks, given
from stripe_identity_sandbox.objects import Json, Session
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.wire import ApiError

#: What the tester can choose for the time processing takes, and what ``submit`` makes of it.
TIMES: dict[str, tuple[str, Json]] = {
    "now": ("At once", {}),
    "soon": ("After 10 seconds", {"delay": 10.0}),
    "hold": ("Stay in processing until told", {"hold": True}),
}


def install(app: Flask, world: World) -> None:
    """Add the page to the application."""

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
                errors=_errors(session),
            )

    @app.post("/start/test_<token>")
    def finish(token: str) -> Any:
        chosen = given.form()
        outcome = chosen.get("outcome", "")
        with world.step():
            session = world.links.session(token)
            if session is None:
                return _gone()
            if outcome == "leave":
                world.links.close(session)
                title = "You walked away"
                text = (
                    "Nothing was submitted, and the link is used up. Your app gets a new one when"
                    " it retrieves the session."
                )
            else:
                if outcome not in checks.OUTCOMES:
                    raise ApiError(400, f"There is no outcome '{outcome}'.")
                when = chosen.get("when", "now")
                if when not in TIMES:
                    raise ApiError(400, f"There is no time '{when}'.")
                world.submit(session, outcome, **TIMES[when][1])
                title = "Thank you"
                text = "The data was submitted. Your app would go on here: it gave no return_url."
            if session.return_url:
                return redirect(session.return_url, 303)
            return render_template("done.html", title=title, text=text, session=session)


def closed(title: str, text: str) -> tuple[str, int]:
    """Return a page that says why there is nothing."""
    return render_template("done.html", title=title, text=text, session=None), 404


def _gone() -> tuple[str, int]:
    return closed(
        "This link does not work any more",
        "It was used, it expired, or its session is closed. Retrieve the session for a new one.",
    )


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


def _errors(session: Session) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the error codes by the check that gives them, each with what it means."""
    asked = checks.parts_of(session.type, session.options, checks.VERIFIED)
    groups: dict[str, list[tuple[str, str]]] = {}
    for code, meaning in checks.LAST_ERRORS.items():
        part = checks.failed_part(code)
        name = f"The {part.replace('_', ' ')} check" if part else "The session as a whole"
        if part and part not in asked:
            name += ", which this session does not ask for"
        groups.setdefault(name, []).append((code, meaning))
    return sorted(groups.items(), key=lambda group: "does not ask" in group[0])
