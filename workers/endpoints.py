"""Where Stripe sends events: making an endpoint as the service needs it, and judging what is there.

Snapshot events go to webhook endpoints (/v1), thin ones to event destinations (/v2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal
from urllib.parse import urlsplit

import click

from identity_webhooks.event import Form
from service.findings import Finding
from service.settings import Settings
from workers.exits import refuse_or
from workers.failures import StripeFailure
from workers.stripe_api import EVENT_TYPES, StripeApi, WebhookEndpoint

PATH = "/webhooks/stripe"


@click.group("endpoint")
def commands() -> None:
    """Make the endpoint at Stripe that this service needs, or check those that are there."""


@commands.command("create")
@click.argument("url")
@click.option("--thin", is_flag=True, help="For thin events. Default: snapshots.")
@click.option("--connect", is_flag=True, help="For the events of connected accounts.")
@click.option("--json", "as_json", is_flag=True, help="An object instead of lines.")
def create(url: str, thin: bool, connect: bool, as_json: bool) -> None:
    """Make an endpoint with exactly the six events. URL: https://your-host/webhooks/stripe

    Needs a key that may write webhook endpoints, which no process of the service needs: give it to
    this command alone. Prints the signing secret, which Stripe shows this once.

    \b
    STRIPE_API_KEY=rk_... python -m workers endpoint create https://your-host/webhooks/stripe
    """
    try:
        path = urlsplit(url).path
    except ValueError as error:
        raise click.UsageError(f"{url!r} is no URL: {error}") from None
    if path != PATH:
        raise click.UsageError(f"{url!r}: the path should be {PATH}")

    def run() -> int:
        api = StripeApi.from_settings(Settings.load("worker"))
        form: Form = "thin" if thin else "snapshot"
        try:
            made = api.create_endpoint(url, form=form, connect=connect)
        except StripeFailure as failure:
            click.echo(_refused(failure, "write"), err=True)
            return 1
        if as_json:
            click.echo(_json(asdict(made)))
            return 0
        click.echo(f"{made.id} sends {made.form} events to {made.url}")
        click.echo(f"STRIPE_WEBHOOK_SECRET={made.secret}")
        return 0

    refuse_or(run)


@commands.command("check")
@click.option("--json", "as_json", is_flag=True, help="An array of objects instead of lines.")
def check(as_json: bool) -> None:
    """Check what is registered at Stripe: the six events, and no others, of the right mode.

    Needs a key that may read webhook endpoints. Exit code: 1 when something is to be changed.
    """

    def run() -> int:
        settings = Settings.load("worker")
        api = StripeApi.from_settings(settings)
        found = look(api, livemode=bool(settings.livemode))
        click.echo(_json([asdict(each) for each in found]) if as_json else in_words(found))
        return int(any(each.state != "good" for each in found))

    refuse_or(run)


def look(api: StripeApi, *, livemode: bool) -> list[Finding]:
    """Return what is found of the endpoints at Stripe that concern Identity."""
    try:
        endpoints = list(api.endpoints())
    except StripeFailure as failure:
        return [Finding("endpoint", "unknown", _refused(failure, "read"))]
    return judge(endpoints, livemode=livemode)


def judge(endpoints: Iterable[WebhookEndpoint], *, livemode: bool) -> list[Finding]:
    """Judge those that send anything of Identity, or send to our path."""
    ours = [
        each for each in endpoints if each.is_of_identity or urlsplit(each.url or "").path == PATH
    ]
    if not ours:
        text = (
            "nothing at Stripe sends events of Identity:"
            f" python -m workers endpoint create https://your-host{PATH}"
        )
        return [Finding("endpoint", "bad", text)]
    return [_judge(each, livemode=livemode) for each in ours]


def _judge(endpoint: WebhookEndpoint, *, livemode: bool) -> Finding:
    wanted = {f"v1.{each}" if endpoint.form == "thin" else each for each in EVENT_TYPES}
    faults = []
    if endpoint.status != "enabled":
        faults.append(f"is {endpoint.status}: enable it")
    if missing := wanted - endpoint.events:
        if "*" in endpoint.events:
            faults.append("sends every event there is: choose the six of Identity")
        else:
            faults.append(f"lacks {', '.join(sorted(missing))}: add it")
    elif surplus := endpoint.events - wanted:
        faults.append(f"sends {', '.join(sorted(surplus))} beside: take it out")
    if endpoint.livemode != livemode:
        mode = "live" if endpoint.livemode else "test"
        faults.append(f"is of {mode} mode, which is not processed here (STRIPE_LIVEMODE)")
    if endpoint.url is not None and urlsplit(endpoint.url).path != PATH:
        faults.append(f"sends to another path than {PATH}: correct its URL")
    what = f"{endpoint.id} ({endpoint.form})"
    state: Literal["bad", "good"] = "bad" if faults else "good"
    version = f", version {endpoint.api_version}" if endpoint.api_version else ""
    text = "; ".join(faults) if faults else f"sends the six events{version}"
    return Finding("endpoint", state, f"{what} {text}")


def in_words(found: Iterable[Finding]) -> str:
    """Return findings a line each, what is wrong first."""
    order = {"bad": 0, "unknown": 1, "good": 2}
    return "\n".join(
        f"{each.state:8} {each.name}: {each.text}"
        for each in sorted(found, key=lambda each: order[each.state])
    )


def _refused(failure: StripeFailure, right: str) -> str:
    asked = f"{failure.what} ({failure.request_id or 'no answer'})"
    if failure.kind == "forbidden":
        return f"STRIPE_API_KEY may not {right} webhook endpoints: {asked}"
    return f"Stripe, asked to {right} webhook endpoints: {asked}"


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=sorted)
