"""`workers.doctor`: what it reads off Redis, and what it asks with which key."""

from __future__ import annotations

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
    fake.answer = lambda *_: Answer(403)
    found = of_keys(fake, stripe_connected_accounts=True)
    for what in READS:
        assert f"may not read {what} (" in found["STRIPE_API_KEY"].text


def test_with_an_organizations_key_nothing_is_asked_as_no_account_is_named(fake) -> None:
    assert of_keys(fake, key="sk_org_test_table", stripe_livemode=False) == {}
    assert fake.calls == []


@pytest.mark.usefixtures("within_an_hour")
def test_what_was_accepted_in_the_last_day_is_counted_and_nothing_before(redis) -> None:
    inbox = Inbox(redis)
    for number in range(3):
        inbox.accept(Event(f"evt_{number}", "verified", "snapshot", "vs_1", 1, False, None))
    now = inbox.now()
    redis.rpush(f"{keys.LOG}{now // keys.HOUR - 24}", "evt_yesterday")
    assert accepted_in_a_day(redis, now) == 3


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
