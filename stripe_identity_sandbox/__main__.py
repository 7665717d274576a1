"""``stripe-identity-sandbox``: run the sandbox, and drive one that runs."""

import contextlib
import functools
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from stripe_identity_sandbox import lifetimes, versions
from stripe_identity_sandbox.checks import LAST_ERRORS, OUTCOMES
from stripe_identity_sandbox.endpoints import all_events
from stripe_identity_sandbox.objects import EVENT_TYPES
from stripe_identity_sandbox.remote import Remote, address, remote
from stripe_identity_sandbox.settings import Settings
from stripe_identity_sandbox.state import World

#: Stripe's hours between tries become seconds: 3600 s is 3.6 s.
RETRY_SCALE = 0.001


class Duration(click.ParamType[float]):
    """A number of seconds, or with a unit: 90, 15m, 2h, 4d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        try:
            return lifetimes.seconds(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time up to a year; try 90, 15m, 2h or 4d.", param, ctx)


def _finite(_: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse what no clock can count: FloatRange takes nan."""
    if not math.isfinite(value):
        raise click.BadParameter("it is no finite number.", param=parameter)
    return value


def _version(_: click.Context, parameter: click.Parameter, value: str) -> str:
    """Refuse a version that cannot exist."""
    if not versions.exists(value):
        raise click.BadParameter("it is no version of Stripe's API.", param=parameter)
    return value


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """A Stripe Identity on your own machine."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=12111,
    show_default=True,
    help="Port; 0 takes a free one.",
)
@click.option("--deliver-to", metavar="URL", callback=address, help="Send snapshot events there.")
@click.option("--secret", metavar="whsec_...", help="Sign them with this secret.")
@click.option("--deliver-thin-to", metavar="URL", callback=address, help="Send thin events there.")
@click.option("--thin-secret", metavar="whsec_...", help="Sign those with this secret.")
@click.option(
    "--retries",
    type=click.Choice(sorted(lifetimes.RETRIES)),
    default="test",
    show_default=True,
    help="Stripe's schedule: 3 tries in test mode, up to 3 days of them in live mode.",
)
@click.option(
    "--retry-after-scale",
    type=click.FloatRange(min=0),
    callback=_finite,
    default=RETRY_SCALE,
    show_default=True,
    help="Multiply the waits between tries by this; 1 waits as long as Stripe.",
)
@click.option(
    "--redaction-time",
    type=Duration(),
    default=lifetimes.REDACTION,
    show_default=True,
    help="What a redaction takes of the sandbox's clock, in seconds or as 15m, 2h, 4d.",
)
@click.option("--marker", default="", metavar="TEXT", help="Put TEXT into all personal data.")
@click.option(
    "--api-version",
    callback=_version,
    default="2026-10-28.endive",
    show_default=True,
    help="Of events.",
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the state in this SQLite file.",
)
@click.option(
    "--in-order", is_flag=True, help="Send one event at a time. Stripe promises no order."
)
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON.")
def serve(  # noqa: PLR0913, PLR0917 -- one argument an option
    host: str,
    port: int,
    deliver_to: str | None,
    secret: str | None,
    deliver_thin_to: str | None,
    thin_secret: str | None,
    retries: str,
    retry_after_scale: float,
    redaction_time: float,
    marker: str,
    api_version: str,
    state: Path | None,
    in_order: bool,
    as_json: bool,
) -> None:
    """Serve Stripe Identity until SIGTERM or SIGINT.

    \b
    Examples:
      stripe-identity-sandbox serve
      stripe-identity-sandbox serve --deliver-to http://127.0.0.1:8000/webhooks --secret whsec_x
    """
    targets = [
        (url, own_secret, form)
        for url, own_secret, form, names in (
            (deliver_to, secret, "snapshot", "--deliver-to and --secret"),
            (deliver_thin_to, thin_secret, "thin", "--deliver-thin-to and --thin-secret"),
        )
        if _both(url, own_secret, names)
    ]

    def make_world(base_url: str) -> World:
        settings = Settings(
            base_url=base_url,
            marker=marker,
            api_version=api_version,
            redaction_time=redaction_time,
            retries=tuple(wait * retry_after_scale for wait in lifetimes.RETRIES[retries]),
        )
        world = World(settings, save=store.save if store else None)
        world.load(records)
        with world.step():
            for url, own_secret, form in targets:
                known = (
                    e for e in world.endpoints.by_id.values() if (e.url, e.form) == (url, form)
                )
                if endpoint := next(known, None):
                    # From an earlier run: the secret given now is the one that counts.
                    world.outbox.change_endpoint(endpoint, secrets=[(own_secret, None)])
                else:
                    world.endpoints.add(
                        str(url), secret=own_secret, form=form, enabled_events=all_events(form)
                    )
        return world

    # The other commands need no server.
    from stripe_identity_sandbox.connections import CannotListen  # noqa: PLC0415
    from stripe_identity_sandbox.server import serve as run  # noqa: PLC0415
    from stripe_identity_sandbox.store import Store, Unusable  # noqa: PLC0415

    try:
        store = Store(state) if state else None
        records = store.load() if store else []
    except Unusable as error:
        raise click.BadParameter(str(error), param_hint="'--state'") from error
    close = store.close if store else None
    try:
        run(host, port, make_world, close, as_json=as_json, in_order=in_order)
    except CannotListen as error:
        raise click.BadParameter(str(error), param_hint=f"'{error.option}'") from error


def _both(url: str | None, secret: str | None, names: str) -> bool:
    if bool(url) != bool(secret):
        raise click.UsageError(f"{names} go together.")
    return bool(url)


# -- driving a sandbox that runs -------------------------------------------------------------

CHANGES = tuple(name.rpartition(".")[2] for name in EVENT_TYPES)


@main.command()
@click.option("--type", "kind", type=click.Choice(["document", "id_number"]), default="document")
@click.option("--selfie", is_flag=True, help="Require a matching selfie.")
@click.option("--id-number", is_flag=True, help="Require an ID number besides the document.")
@click.option("--return-url", metavar="URL", help="Where the hosted page sends the user.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="May be given again.")
@remote
def create(sandbox: Remote, /, **options: Any) -> None:
    """Create a session; print its id, status and hosted page.

    \b
    Example:
      stripe-identity-sandbox create --selfie --metadata user=42
    """
    form = {"type": options["kind"]}
    if options["selfie"]:
        form["options[document][require_matching_selfie]"] = "true"
    if options["id_number"]:
        form["options[document][require_id_number]"] = "true"
    if options["return_url"] is not None:
        form["return_url"] = options["return_url"]
    for pair in options["metadata"]:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE.", param_hint="'--metadata'")
        form[f"metadata[{name}]"] = value
    sandbox.show_session(sandbox.create(form))


@main.command()
@click.argument("session")
@click.argument("outcome", type=click.Choice(OUTCOMES), default="verified", metavar="[OUTCOME]")
@click.option("--hold", is_flag=True, help="Stay in processing, until `complete`.")
@click.option("--delay", type=float, default=0.0, help="Seconds of processing.")
@remote
def submit(sandbox: Remote, /, session: str, outcome: str, **how: Any) -> None:
    """Do what the user does on the hosted page.

    OUTCOME is what the check will find: verified (the default) or a last_error code.

    \b
    Examples:
      stripe-identity-sandbox submit vs_123
      stripe-identity-sandbox submit vs_123 selfie_face_mismatch
      stripe-identity-sandbox submit vs_123 --hold
    """
    sandbox.show_session(sandbox.control(f"sessions/{session}/submit", outcome=outcome, **how))


@main.command()
@click.argument("session")
@remote
def complete(sandbox: Remote, /, session: str) -> None:
    """End processing, or a redaction, now."""
    sandbox.show_session(sandbox.control(f"sessions/{session}/complete"))


@main.command()
@click.argument("event", type=click.Choice([*CHANGES, *EVENT_TYPES]), metavar="EVENT")
@click.option(
    "--outcome",
    type=click.Choice(list(LAST_ERRORS)),
    default="document_unverified_other",
    show_default=True,
    metavar="CODE",
    help="The error of requires_input.",
)
@remote
def trigger(sandbox: Remote, /, event: str, outcome: str) -> None:
    """Make an event happen, by taking a new session there step by step.

    EVENT is created, processing, verified, requires_input, canceled or redacted, with or without
    identity.verification_session. before it. Prints the session and every event on the way.

    \b
    Examples:
      stripe-identity-sandbox trigger verified
      stripe-identity-sandbox trigger requires_input --outcome document_expired
    """
    session = sandbox.create({"type": "document"})["id"]
    change = event.rpartition(".")[2]
    steps = {"created": [], "requires_input": [outcome], "redacted": ["verified", "redacted"]}
    for step in steps.get(change, [change]):
        sandbox.change(session, step)
    listed = sandbox.call("GET", "/v1/events?limit=100")["data"]
    events = [
        {"id": made["id"], "type": made["type"]}
        for made in reversed(listed)
        if made["data"]["object"]["id"] == session
    ]
    sandbox.show(
        {"session": session, "events": events},
        session,
        *[f"{made['id']}  {made['type']}" for made in events],
    )


@main.command()
@click.argument("duration", type=Duration())
@remote
def advance(sandbox: Remote, /, duration: float) -> None:
    """Move the sandbox's clock forward; what falls due on the way happens.

    \b
    Examples:
      stripe-identity-sandbox advance 4d
      stripe-identity-sandbox advance 90
    """
    clock = sandbox.control("clock", advance=duration)
    now = datetime.fromtimestamp(clock["now"], UTC).isoformat(timespec="seconds")
    sandbox.show(clock, f"It is {now}, {clock['ahead']:.0f} s ahead of this machine.")


@main.command()
@click.argument("event")
@remote
def resend(sandbox: Remote, /, event: str) -> None:
    """Deliver an event (evt_...) again."""
    deliveries = sandbox.control(f"events/{event}/resend")
    sandbox.show(deliveries, *[f"{d['event']}  {d['form']} to {d['url']}" for d in deliveries])


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--at-once", is_flag=True, help="Move the sandbox's clock instead of waiting.")
@click.option("--seed", type=int, help="Instead of the file's.")
@remote
def play(sandbox: Remote, /, file: Path, at_once: bool, seed: int | None) -> None:
    """Play a scenario: a YAML file of lives that sessions lead.

    \b
    Example of a file:
      sessions: 20
      every: 2s
      lives:
        - life: created, 3s, document_expired, 1h, verified, 4d, redacted
          share: 3
        - life: created, 10s, abandoned
      faults:
        - {kind: duplicate, rate: 0.2}
    """
    try:
        from stripe_identity_sandbox import scenario  # noqa: PLC0415 -- the image has no YAML
    except ModuleNotFoundError as error:
        raise click.ClickException("A scenario is YAML: pip install pyyaml") from error

    def advance(now: float, at: float) -> None:
        sandbox.control("clock", advance=at - now)

    def change(session: str | None, name: str) -> str:
        if session is None:
            return str(sandbox.create({"type": "document"})["id"])
        sandbox.change(session, name)
        return session

    try:
        played = scenario.read(file)
    except (ValueError, TypeError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    if seed is not None:
        played.seed = seed
    with contextlib.ExitStack() as undo:
        for fault in played.faults:
            id_ = sandbox.control("faults", **fault)["id"]
            undo.callback(sandbox.call, "DELETE", f"/_sandbox/faults/{id_}")
        sleep = functools.partial(scenario.sleep, time.monotonic())
        sessions = scenario.play(played, wait=advance if at_once else sleep, do=change)
    sandbox.show({"sessions": sessions}, *sessions)


if __name__ == "__main__":
    main(prog_name="stripe-identity-sandbox")
