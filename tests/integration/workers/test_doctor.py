"""`workers.doctor`: what it reads off Redis, and what it asks with which key."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import SecretStr

from identity_webhooks.event import Event
from service.findings import Finding
from service.inbox import Inbox, keys
from service.settings import Settings
from tests.integration.workers.fake_stripe import KEY, RESTRICTED_KEY, Answer, Fault
from workers import doctor
from workers.doctor import _of_redis, accepted_in_a_day
from workers.stripe_api import EVENT_TYPES, StripeApi, WebhookEndpoint

NAME = {KEY: "STRIPE_API_KEY", RESTRICTED_KEY: "STRIPE_RESTRICTED_KEY"}
READS = {
    "sessions": "/v1/identity/verification_sessions",
    "reports": "/v1/identity/verification_reports",
    "events": "/v1/events",
    "accounts": "/v1/accounts",
}
"""What a key has to be able to read, and where that is. The restricted key: sessions alone."""


def of_keys(fake: Any, **given: Any) -> dict[str, Finding]:
    """Return what is found of each key."""
    settings = Settings(
        stripe_api_base=fake.url,
        stripe_api_key=SecretStr(given.pop("key", KEY)),
        stripe_restricted_key=SecretStr(RESTRICTED_KEY),
        **given,
    )
    return {each.name: each for each in doctor._of_keys(settings)}


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (401, "bad", "is revoked, expired or mistyped (key 401, req_fake)"),
        (403, "bad", "may not read {what} (forbidden 403, req_fake)"),
        (400, "unknown", "Stripe does not answer as hoped"),
    ],
)
@pytest.mark.parametrize(
    ("key", "what"), [*((KEY, each) for each in READS), (RESTRICTED_KEY, "sessions")]
)
def test_what_a_key_may_not_do_is_said_of_that_key(key, what, status, state, words, fake) -> None:
    fake.fault = Fault("list", key, READS[what], Answer(status))
    found = of_keys(fake, stripe_connected_accounts=True)
    other = found.pop(NAME[RESTRICTED_KEY if key == KEY else KEY])
    (about,) = found.values()
    assert (about.name, about.state) == (NAME[key], state)
    assert words.format(what=what) in about.text.replace("(list: ", "(").replace(" list: ", " ")
    assert other.state == "good"


def test_each_right_that_is_lacking_is_named_and_nothing_else_is_asked_for(fake) -> None:
    found = of_keys(fake)
    assert found["STRIPE_API_KEY"].text == "may read sessions, reports, events"
    assert found["STRIPE_RESTRICTED_KEY"].text == "may read sessions"
    asked = {(key, about) for _, key, about in fake.calls}
    assert asked == {
        *((KEY, READS[each]) for each in ("sessions", "reports", "events")),
        (RESTRICTED_KEY, READS["sessions"]),
    }
    assert time.time() - fake.since[0] < 600, "not a month of them"
    fake.answer = lambda *_: Answer(403)
    found = of_keys(fake, stripe_connected_accounts=True)
    for what in READS:
        assert f"may not read {what} (" in found["STRIPE_API_KEY"].text


def test_with_an_organizations_key_nothing_is_asked_as_no_account_is_named(fake) -> None:
    assert of_keys(fake, key="sk_org_test_table", stripe_livemode=False) == {}
    assert fake.calls == []


@pytest.mark.parametrize(("key", "calls"), [(KEY, 2), (RESTRICTED_KEY, 1)])
def test_each_key_is_asked_with_as_often_as_by_a_worker(key, calls, fake) -> None:
    fake.fault = fault = Fault("list", key, READS["sessions"], Answer(500))
    assert of_keys(fake)[NAME[key]].state == "unknown"
    assert fault.struck == calls


def test_without_a_key_it_is_said_that_stripe_was_not_asked() -> None:
    settings = Settings(stripe_restricted_key=SecretStr(RESTRICTED_KEY))
    (found,) = doctor._of_keys(settings)
    assert (found.name, found.state) == ("STRIPE_API_KEY", "unknown")
    assert found.text == "not set here: Stripe was not asked"
    assert list(doctor._of_endpoints(settings)) == []


@pytest.mark.parametrize("of_live_mode", [False, True])
@pytest.mark.parametrize("livemode", [False, True])
def test_endpoints_are_judged_by_the_mode_that_is_processed(
    livemode, of_live_mode, monkeypatch
) -> None:
    url, events = "https://shop.example.com/webhooks/stripe", frozenset(EVENT_TYPES)
    each = WebhookEndpoint("we_1", "snapshot", url, events, of_live_mode, "enabled")
    monkeypatch.setattr(StripeApi, "endpoints", lambda _: [each])
    settings = Settings(stripe_api_key=SecretStr(KEY), stripe_livemode=livemode)
    (found,) = doctor._of_endpoints(settings)
    assert found.state == ("good" if livemode == of_live_mode else "bad")


def test_of_an_organization_no_endpoint_is_asked_for(fake) -> None:
    key = SecretStr("sk_org_test_table")
    settings = Settings(stripe_api_base=fake.url, stripe_api_key=key, stripe_livemode=False)
    assert list(doctor._of_endpoints(settings)) == []
    assert fake.calls == []


def test_of_a_redis_that_cannot_be_asked_nothing_else_is_said(free_port) -> None:
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    (found,) = _of_redis(settings)
    assert (found.name, found.state) == ("redis", "bad")
    assert found.text.startswith("cannot be asked: nothing listens there")


@pytest.mark.usefixtures("within_an_hour")
def test_what_was_accepted_in_the_last_day_is_counted_and_nothing_before(redis) -> None:
    inbox = Inbox(redis)
    for number in range(3):
        inbox.accept(Event(f"evt_{number}", "verified", "snapshot", "vs_1", 1, False, None))
    now = inbox.now()
    redis.rpush(f"{keys.LOG}{now // keys.HOUR - 24}", "evt_yesterday")
    assert accepted_in_a_day(redis, now) == 3
    for hours in (1, 12, 23):
        redis.rpush(f"{keys.LOG}{now // keys.HOUR - hours}", f"evt_{hours}a", f"evt_{hours}b")
    assert accepted_in_a_day(redis, now) == 3 + 6


@pytest.mark.parametrize(("days", "state"), [("", "good"), ("5", "good"), ("400", "bad")])
def test_memory_is_reckoned_for_as_long_as_the_setting_says(
    new_server, monkeypatch, days, state
) -> None:
    """Thirty events a day: 35 days of them fit into 6 MB, and 400 do not."""
    server = new_server("--maxmemory", "6mb")
    with server.client() as client:
        for number in range(30):
            event = Event(f"evt_{number}", "verified", "snapshot", f"vs_{number}", 1, False, None)
            Inbox(client).accept(event)
    monkeypatch.setenv("REDIS_URL", server.url)
    if days:
        monkeypatch.setenv("RETENTION_DAYS", days)
    found = {each.name: each for each in _of_redis(Settings.load("tool"))}
    assert found["memory for the rate"].state == state
