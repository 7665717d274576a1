"""`python -m workers doctor`: everything that can be checked, and for each fault what to do.

Changes nothing. Beside what `python -m service status` sees in Redis it looks at the settings of
both roles, the plugins, and at Stripe: what each key may read, and which endpoints are registered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import click
import redis

from service import connection, findings, status
from service.findings import Finding
from service.inbox import asking, keys
from service.inbox.inbox import MEMORY_LIMIT
from service.redis_errors import explain
from service.settings import Role, Settings, SettingsError
from service.survey import Survey, survey
from workers import endpoints, plugins
from workers.exits import refuse_or
from workers.failures import StripeFailure
from workers.stripe_api import StripeApi

DONE_EVENT = 477
"""Bytes of Redis that a done event takes: the larger figure of docs/performance.md."""

SAME_TIME = 5.0
"""Seconds by which two clocks may differ."""


@click.command("doctor")
@click.option(
    "--before-start",
    is_flag=True,
    help="Settings, plugins and what the keys may read only: what need not run yet.",
)
@click.option("--json", "as_json", is_flag=True, help="An array of objects instead of lines.")
def command(before_start: bool, as_json: bool) -> None:
    """Check settings, Redis, processes, plugins, keys and Stripe's endpoints; change nothing.

    What is wrong comes first, each with what to do. Run it where the worker's settings are. Exit
    code: 0 nothing is wrong, 1 something is. With --before-start, Redis is left to `python -m
    service check`, and a Stripe that does not answer is no fault.
    """

    def run() -> int:
        found = list(examine(before_start=before_start))
        if as_json:
            click.echo(json.dumps([asdict(each) for each in found], indent=2))
        else:
            click.echo(endpoints.in_words(found))
        return int(any(each.state == "bad" and not each.vouched for each in found))

    refuse_or(run)


def examine(*, before_start: bool = False) -> Iterator[Finding]:
    """Yield what is found; before a start, of settings, plugins and keys only.

    Raises:
        SettingsError: the settings cannot be read at all.
    """
    settings = Settings.load("tool")
    yield from _of_settings(settings)
    yield from _of_plugins(settings)
    if before_start:
        yield from _of_keys(settings)
        return
    yield from _of_redis(settings)
    yield from _of_keys(settings)
    yield from _of_endpoints(settings)


def _of_settings(settings: Settings) -> Iterator[Finding]:
    # A machine has the secrets of its own role: what it has nothing of belongs to another one.
    roles: list[Role] = ["web"] if settings.stripe_webhook_secret else []
    roles += ["worker"] if settings.stripe_api_key else []
    for role in roles or ["worker"]:
        try:
            Settings.load(role)
        except SettingsError as error:
            for fault in str(error).splitlines()[1:]:
                yield Finding("settings", "bad", f"{fault} (for {role})")
        else:
            yield Finding("settings", "good", f"complete for {role}")
    mode = {True: "live", False: "test"}.get(settings.livemode or False)
    if settings.livemode is not None:
        yield Finding("mode", "good", f"events of {mode} mode are processed")


def _of_plugins(settings: Settings) -> Iterator[Finding]:
    try:
        handlers = plugins.load(settings).handlers
    except plugins.PluginError as error:
        for fault in str(error).splitlines():
            yield Finding("plugins", "bad", fault)
        return
    names = ", ".join(each.name for each in handlers)
    if handlers:
        yield Finding("plugins", "good", f"{len(handlers)} handlers: {names}")
    else:
        yield Finding("plugins", "bad", "no handler: nothing happens with events. Set HANDLERS")


def _of_redis(settings: Settings) -> Iterator[Finding]:
    with connection.connect(settings) as client:
        try:
            ask = asking(client)
            yield from findings.look(ask, settings).found
            yield from findings.look_for_workers(ask)
            seen = survey(client)
            a_day = accepted_in_a_day(client, seen.now)
        except redis.RedisError as error:
            yield Finding("redis", "bad", f"cannot be asked: {explain(error)}")
            return
        for problem in status.problems_of(seen, settings):
            yield Finding(problem.alert, "bad", f"{problem.text}: {problem.cure}")
        yield _clock(seen)
        yield from memory_for_the_rate(seen, settings.keep, a_day)


def _clock(seen: Survey) -> Finding:
    apart = abs(time.time() - seen.now + seen.clock_ahead)
    if apart <= SAME_TIME:
        return Finding("clock", "good", "this machine and Redis agree")
    text = (
        f"this machine and Redis differ by {apart:.0f} s: set both by NTP. Signatures of deliveries"
        " are refused when the clock of a web process is off by minutes"
    )
    return Finding("clock", "bad", text)


def accepted_in_a_day(client: redis.Redis, now: float) -> int:
    """Return how many events were accepted in the last 24 hours, by the clock of the inbox.

    Counts of a process would not tell it: one that has just begun works off what waited.
    """
    hour = int(now) // keys.HOUR
    with client.pipeline(transaction=False) as pipe:
        for each in range(hour - 23, hour + 1):
            pipe.llen(f"{keys.LOG}{each}")
        return sum(map(int, pipe.execute()))


def memory_for_the_rate(seen: Survey, keep: int, a_day: int) -> Iterator[Finding]:
    """Compare what events take until they are forgotten with the memory there is.

    `keep`: seconds that a done event is kept. `a_day`: events that are accepted in a day.
    """
    if not seen.memory_limit or not a_day:
        return
    needed = a_day * keep / 86_400 * DONE_EVENT
    room = seen.memory_limit * MEMORY_LIMIT
    text = f"{a_day} events a day take {needed / 2**20:.0f} MB in the end, of {room / 2**20:.0f}"
    if needed > room:
        text += ": give Redis more memory (maxmemory) before it is full"
    yield Finding("memory for the rate", "bad" if needed > room else "good", text)


def _of_keys(settings: Settings) -> Iterator[Finding]:
    key, restricted = settings.stripe_api_key, settings.stripe_restricted_key
    if key is None:
        yield Finding("STRIPE_API_KEY", "unknown", "not set here: Stripe was not asked")
        return
    api = StripeApi.from_settings(settings)
    if api.is_organization:
        return
    reads: dict[str, Callable[[], object]] = {
        "sessions": lambda: api.list_sessions({"limit": 1}),
        "reports": lambda: api.list_reports({"limit": 1}),
        "events": lambda: next(api.events_since(int(time.time()) - 60), None),
    }
    if settings.stripe_connected_accounts:
        reads["accounts"] = lambda: next(api.connected_accounts(), None)
    yield _rights("STRIPE_API_KEY", reads)
    if restricted is not None:
        other = StripeApi(restricted.get_secret_value(), base=settings.stripe_api_base, retries=0)
        yield _rights(
            "STRIPE_RESTRICTED_KEY", {"sessions": lambda: other.list_sessions({"limit": 1})}
        )


def _of_endpoints(settings: Settings) -> Iterator[Finding]:
    if settings.stripe_api_key is None:
        return
    api = StripeApi.from_settings(settings)
    if not api.is_organization:
        yield from endpoints.look(api, livemode=bool(settings.livemode))


def _rights(name: str, reads: dict[str, Callable[[], object]]) -> Finding:
    """Try what a key has to be able to read."""
    refused = []
    for what, read in reads.items():
        try:
            read()
        except StripeFailure as failure:
            asked = f"{failure}, {failure.request_id or 'no answer'}"
            if failure.kind == "key":
                text = f"is revoked, expired or mistyped ({asked}): put a valid one in its place"
                return Finding(name, "bad", text)
            if failure.kind != "forbidden":
                return Finding(name, "unknown", f"Stripe does not answer as hoped ({asked})")
            refused.append(f"may not read {what} ({asked}): give it read access to that in Stripe")
    if refused:
        return Finding(name, "bad", "; ".join(refused))
    return Finding(name, "good", f"may read {', '.join(reads)}")
