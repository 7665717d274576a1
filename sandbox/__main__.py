"""``python -m sandbox``: run the sandbox, and drive one that runs."""

from pathlib import Path

import click

from sandbox.state import REDACTION_TIME, RETRIES, Settings, World, all_events

#: Stripe's hours between tries become seconds: 3600 s is 3.6 s.
RETRY_SCALE = 0.001


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """A Stripe Identity on your own machine."""


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=12111, show_default=True, help="Port; 0 takes a free one.")
@click.option("--deliver-to", metavar="URL", help="Send snapshot events there.")
@click.option("--secret", metavar="whsec_...", help="Sign them with this secret.")
@click.option("--deliver-thin-to", metavar="URL", help="Send thin events there.")
@click.option("--thin-secret", metavar="whsec_...", help="Sign those with this secret.")
@click.option(
    "--retries",
    type=click.Choice(sorted(RETRIES)),
    default="test",
    show_default=True,
    help="Stripe's schedule: 3 tries in test mode, up to 3 days of them in live mode.",
)
@click.option(
    "--retry-after-scale",
    type=click.FloatRange(min=0),
    default=RETRY_SCALE,
    show_default=True,
    help="Multiply the waits between tries by this; 1 waits as long as Stripe.",
)
@click.option(
    "--redaction-time",
    type=click.FloatRange(min=0),
    default=REDACTION_TIME,
    show_default=True,
    help="Seconds of the sandbox's clock that a redaction takes.",
)
@click.option("--marker", default="", metavar="TEXT", help="Put TEXT into all personal data.")
@click.option("--api-version", default="2026-10-28.endive", show_default=True, help="Of events.")
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the state in this SQLite file.",
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
    as_json: bool,
) -> None:
    """Serve Stripe Identity until SIGTERM or SIGINT.

    \b
    Examples:
      python -m sandbox serve
      python -m sandbox serve --deliver-to http://127.0.0.1:8000/webhooks/stripe --secret whsec_x
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
            retries=tuple(wait * retry_after_scale for wait in RETRIES[retries]),
        )
        world = World(settings, save=store.save if store else None)
        if store:
            world.load(store.load())
        with world.step():
            for url, own_secret, form in targets:
                if all((e.url, e.form) != (url, form) for e in world.endpoints.values()):
                    world.add_endpoint(
                        str(url), secret=own_secret, form=form, enabled_events=all_events(form)
                    )
        return world

    from sandbox.server import serve as run  # noqa: PLC0415 -- the other commands need no server
    from sandbox.store import Store  # noqa: PLC0415

    store = Store(state) if state else None
    run(host, port, make_world, as_json=as_json)


def _both(url: str | None, secret: str | None, names: str) -> bool:
    if bool(url) != bool(secret):
        raise click.UsageError(f"{names} go together.")
    return bool(url)


if __name__ == "__main__":
    main(prog_name="python -m sandbox")
