"""What is set for deliveries counts at both doors: our server's loop, and the route of Flask."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator

import pytest
import stripe
from flask import Flask
from pydantic import SecretStr
from redis import Redis
from werkzeug.test import TestResponse

from identity_webhooks.event import Event
from service import connection, findings
from service.app import create_app
from service.inbox import AcceptResult, Inbox, keys
from service.server.redis_link import RedisLink
from service.settings import VOUCHABLE, Settings
from service.signature import Secret
from tests.conftest import Server
from tests.integration.claims import claimed

SECRET = "whsec_q7H2kP9sXv4LbN8wRt3YcZ6m"
Door = Callable[[Settings, str], str]


def event(name: str) -> Event:
    return Event(f"evt_{name}", "verified", "snapshot", f"vs_{name}", 1_700_000_000, livemode=False)


def by_our_server(settings: Settings, name: str) -> str:
    """Accept an event as the loop does."""

    async def run() -> str:
        link, done = RedisLink(settings), asyncio.Event()
        try:
            # How many events may be pending is known once Redis was looked at.
            ready: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
            link.check(ready.set_result)
            await asyncio.wait_for(ready, 120)
            pipe = link.pipeline()
            reply = pipe.accept(event(name))
            link.send(pipe, done.set)
            await asyncio.wait_for(done.wait(), 120)
            return reply.result()
        finally:
            link.close()

    return asyncio.run(run())


@pytest.fixture
def served() -> Iterator[Callable[[Settings], Flask]]:
    """Make the application, as any other server does."""
    apps: list[Flask] = []

    def served(settings: Settings) -> Flask:
        apps.append(create_app(settings))
        return apps[-1]

    yield served
    for app in apps:
        app.extensions["identity_webhooks"].metrics.end()


@pytest.fixture
def by_the_route(served: Callable[[Settings], Flask]) -> Door:
    """Deliver an event to Flask."""
    return lambda settings, name: str(post(served(settings), name).json["answer"])


def post(app: Flask, name: str, *, age: int = 0, livemode: bool = False) -> TestResponse:
    about = event(name)
    body = json.dumps(
        {
            "id": about.id,
            "object": "event",
            "created": about.created,
            "livemode": livemode,
            "data": {"object": {"id": about.session, "object": "identity.verification_session"}},
            "type": "identity.verification_session.verified",
        }
    )
    signed = stripe.WebhookSignature.generate_signature_header(body, SECRET, int(time.time()) - age)
    headers = {"Stripe-Signature": signed}
    return app.test_client().post("/webhooks/stripe", data=body, headers=headers)


@pytest.fixture(params=["our server", "the route"])
def door(request: pytest.FixtureRequest) -> Door:
    if request.param == "our server":
        return by_our_server
    route: Door = request.getfixturevalue("by_the_route")
    return route


def settings(server: Server, **changes: object) -> Settings:
    secrets = (Secret("default", SECRET.encode()),)
    given = {"stripe_webhook_secret": secrets, "stripe_livemode": False}
    return Settings(**({"redis_url": server.url} | given | changes))


def end(inbox: Inbox, name: str, state: str) -> None:
    inbox.accept(event(name))
    inbox.finish(claimed(inbox, f"evt_{name}"), state, outcome="verified", reason="p.a: no")


@pytest.mark.parametrize("reopens", [False, True])
def test_a_dead_event_that_is_delivered_again_lives_again_only_if_so_set(
    door: Door, server: Server, redis: Redis, reopens: bool
) -> None:
    inbox = Inbox(redis)
    for name, state in (("dead", "dead"), ("bystander", "dead"), ("done", "done")):
        end(inbox, name, state)
    given = settings(server, reopen_dead_on_redelivery=reopens)
    answers = [door(given, name) for name in ("dead", "done", "new")]
    assert answers == ["reopened" if reopens else "dead", "done", "new"]
    found = [inbox.find(f"evt_{name}").state for name in ("dead", "bystander", "done")]
    assert found == ["pending" if reopens else "dead", "dead", "done"]


def test_what_reconciliation_lists_reopens_nothing_whatever_is_set(
    server: Server, redis: Redis
) -> None:
    """Stripe lists a dead event for a month: every pass would run it again."""
    end(Inbox(redis), "dead", "dead")
    inbox = connection.inbox(settings(server, reopen_dead_on_redelivery=True), redis)
    assert inbox.accept(event("dead")) is AcceptResult.DEAD
    assert inbox.find("evt_dead").state == "dead"


@pytest.mark.parametrize("days", [4, 35, 100])
def test_what_is_delivered_is_listed_for_as_long_as_is_set(
    door: Door, server: Server, redis: Redis, days: int
) -> None:
    assert door(settings(server, retention_days=days), "1") == "new"
    (hours,) = redis.keys("iw:log:*")
    expected = days * 86_400 + keys.HOUR + keys.DAY
    assert 0 <= expected - redis.ttl(hours) < 120


def test_no_more_are_pending_than_is_set(door: Door, server: Server, redis: Redis) -> None:
    given = settings(server, inbox_limit=2)
    assert [door(given, name) for name in "12213"] == ["new", "new", "pending", "pending", "full"]
    assert redis.zcard("iw:due") == 2


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [("maxmemory-policy", "allkeys-lru", "noeviction"), ("maxmemory", "1kb", "0")],
)
def test_the_route_takes_nothing_from_when_redis_would_lose_it_until_it_would_not(
    served: Callable[[Settings], Flask],
    new_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    name,
    bad,
    good,
) -> None:
    """Also where nobody asks /readyz."""
    monkeypatch.setattr(findings, "PERIOD", 0.0)
    own = new_server()
    app = served(settings(own))
    with own.client() as client:
        assert post(app, "1").status_code == 200
        client.config_set(name, bad)
        for _ in range(2):
            refused = post(app, "2")
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "30")
        assert client.zcard("iw:due") == 1
        client.config_set(name, good)
        assert post(app, "2").status_code == 200
        assert client.zcard("iw:due") == 2


@pytest.mark.parametrize("path", ["/readyz", "/metrics"])
def test_the_route_takes_nothing_from_one_that_another_request_found_unsafe(
    served: Callable[[Settings], Flask], new_server: Callable[..., Server], path: str
) -> None:
    """What was looked at is good for a while; what was found unsafe is looked at each time."""
    own = new_server()
    app = served(settings(own))
    with own.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        app.test_client().get(path)
        for _ in range(2):
            assert post(app, "1").status_code == 503
        client.config_set("maxmemory-policy", "noeviction")
        assert post(app, "1").status_code == 200


def test_the_route_is_ready_while_there_is_room(
    served: Callable[[Settings], Flask], server: Server, redis: Redis
) -> None:
    app = served(settings(server, inbox_limit=2))

    def ready() -> int:
        return app.test_client().get("/readyz").status_code

    for name, expected in (("1", 200), ("2", 503), ("3", 503)):
        post(app, name)
        assert ready() == expected
    assert Inbox(redis).discard("evt_1") == "discarded"
    assert ready() == 200


@pytest.mark.parametrize(
    ("given", "live"),
    [
        ({"stripe_livemode": True}, True),
        ({"stripe_livemode": False}, False),
        ({"stripe_livemode": None, "stripe_api_key": SecretStr("rk_live_51Hb")}, True),
        ({"stripe_livemode": None, "stripe_api_key": SecretStr("rk_test_51Hb")}, False),
    ],
)
def test_events_of_the_mode_that_is_set_are_taken_and_no_others(
    served: Callable[[Settings], Flask],
    server: Server,
    redis: Redis,
    given: dict[str, object],
    live: bool,
) -> None:
    app = served(settings(server, **given))
    answers = {
        livemode: post(app, str(livemode), livemode=livemode).json["answer"]
        for livemode in (True, False)
    }
    assert answers == {live: "new", not live: "other_mode"}
    assert Inbox(redis).find(f"evt_{live}").event.livemode == live
    assert redis.zcard("iw:due") == 1


@pytest.mark.parametrize("command", ["info", "config", "role"])
def test_a_user_who_may_not_ask_what_is_vouched_for_takes_deliveries(
    door: Door, server: Server, redis: Redis, command: str
) -> None:
    user = ("ACL", "SETUSER", "some", "on", ">word", "~*", "&*", "+@all", f"-{command}")
    redis.execute_command(*user)
    url = f"redis://some:word@127.0.0.1:{server.port}/0"
    try:
        given = settings(server, redis_url=url, redis_vouch_for=VOUCHABLE)
        assert [door(given, name) for name in "11"] == ["new", "pending"]
    finally:
        redis.execute_command("ACL", "DELUSER", "some")


@pytest.mark.parametrize(("tolerance", "age"), [(60, 120), (300, 400), (3600, 400)])
def test_a_delivery_may_be_as_old_as_is_set(
    served: Callable[[Settings], Flask], server: Server, redis: Redis, tolerance: int, age: int
) -> None:
    app = served(settings(server, stripe_webhook_tolerance=tolerance))
    taken = age < tolerance
    answer = post(app, "1", age=age)
    assert answer.status_code == (200 if taken else 400)
    assert redis.zcard("iw:due") == taken
