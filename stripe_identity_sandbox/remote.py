"""A sandbox that runs, as the command line drives it."""

import functools
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import click

from stripe_identity_sandbox.parameters import Url
from stripe_identity_sandbox.settings import COMMAND_LINE_KEY
from stripe_identity_sandbox.wire import ApiError


class Remote:
    """A running sandbox, and how its answers are printed."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        self.url = url.rstrip("/")
        self.as_json = as_json

    def call(
        self, method: str, path: str, *, form: dict[str, str] | None = None, **body: Any
    ) -> Any:
        """Return the answer's JSON.

        Raises:
            ClickException: nobody answers, or the answer is an error.
        """
        import urllib3  # noqa: PLC0415 -- ``serve`` starts without it

        headers = {"Authorization": f"Bearer {COMMAND_LINE_KEY}"}
        try:
            if form is not None:
                answer = urllib3.request(
                    method,
                    self.url + path,
                    body=urlencode(form),
                    headers=headers | {"Content-Type": "application/x-www-form-urlencoded"},
                )
            else:
                # A GET has no body at all.
                sent = body if method == "POST" else None
                answer = urllib3.request(method, self.url + path, headers=headers, json=sent)
            result = answer.json()
            refusal = result["error"]["message"] if answer.status >= 400 else None
        except (urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError) as error:
            raise click.ClickException(
                f"No sandbox answers at {self.url}; start one with: stripe-identity-sandbox serve"
            ) from error
        if refusal:
            raise click.ClickException(refusal)
        return result

    def create(self, form: dict[str, str]) -> Any:
        """Create a session."""
        return self.call("POST", "/v1/identity/verification_sessions", form=form)

    def control(self, path: str, **body: Any) -> Any:
        """Use a control route."""
        return self.call("POST", f"/_sandbox/{path}", **body)

    def change(self, session: str, name: str) -> None:
        """Make a change of a session: processing, canceled, redacted, or an outcome."""
        path = f"sessions/{session}"
        match name:
            case "processing":
                self.control(f"{path}/submit", hold=True)
            case "canceled":
                self.call("POST", f"/v1/identity/verification_{path}/cancel", form={})
            case "redacted":
                self.control(f"{path}/redact", delay=0)
            case outcome:
                found = self.call("GET", f"/v1/identity/verification_{path}")
                verb = "complete" if found["status"] == "processing" else "submit"
                self.control(f"{path}/{verb}", outcome=outcome)

    def show(self, result: Any, *lines: str) -> None:
        """Print the result as JSON, or these lines."""
        click.echo(json.dumps(result, indent=2) if self.as_json else "\n".join(lines))

    def show_session(self, session: Any) -> None:
        """Print a session."""
        lines = [f"{session['id']}  {session['status']}"]
        if session["last_error"]:
            lines.append(f"last_error: {session['last_error']['code']}")
        if session["redaction"]:
            lines.append(f"redaction: {session['redaction']['status']}")
        if session["url"]:
            lines.append(session["url"])
        self.show(session, *lines)


def address(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse what the API refuses as the address of an endpoint."""
    try:
        return None if value is None else Url(web=True).convert(value, "url")
    except ApiError as error:
        raise click.BadParameter(
            f"{value!r} is no address: it begins with http:// or https://.", param=parameter
        ) from error


Command = Callable[..., None]


def remote(command: Command) -> Command:
    """Give a command ``--url`` and ``--json``, and call it with a Remote."""

    @click.option(
        "--url",
        default="http://127.0.0.1:12111",
        show_default=True,
        envvar="SANDBOX_URL",
        callback=address,
        help="Where the sandbox runs (also: SANDBOX_URL).",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(command)
    def wrapped(url: str, as_json: bool, **options: Any) -> None:
        command(Remote(url, as_json=as_json), **options)

    return wrapped
