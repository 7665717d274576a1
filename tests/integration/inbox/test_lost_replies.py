"""Every script, asked again because its reply was lost, answers as if nothing had been lost.

Two callers do their steps in every order. Of each run, the reply to one step is lost: its caller
asks again, at once or after the other's next steps. Answers and state must be those of a run in
which it was asked once, at the first moment or at the second.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from redis import Redis
from redis.connection import AbstractConnection

from identity_webhooks.event import Event
from service import inbox as inbox_package
from service.connection import TIMEOUT
from service.inbox import Claim, Inbox, Pipeline, Progress, Reply, keys
from service.inbox.pipeline import Limits, Memory
from service.inbox.scripts import Scripts, sources

LUA = Path(inbox_package.__file__).parent / "lua"

Step = Callable[[Pipeline], Reply[Any]]
Caller = Generator[Step | float, Any, None]
"""Yields what it asks for, or seconds that pass, and is sent the answers."""


def event(name: str, session: str = "1", form: str = "thin", **fields: Any) -> Event:
    return Event(f"evt_{name}", "verified", form, f"vs_{session}", 1_700_000_000, False, **fields)


def one(claims: list[Any]) -> Claim | None:
    return next((claim for claim in claims if isinstance(claim, Claim)), None)


def works() -> Caller:
    """Take an event in, hand it to a handler and end it."""
    yield lambda pipe: pipe.accept(event("1", account="acct_1"))
    if claim := one((yield lambda pipe: pipe.claim(2))):
        yield lambda pipe: pipe.save_progress(claim, "a.one", Progress("done"))
        yield lambda pipe: pipe.finish(claim, "done", outcome="verified")


def dies() -> Caller:
    """End an event as dead, with the result of its last handler."""
    yield lambda pipe: pipe.accept(event("1", account="acct_1"))
    if claim := one((yield lambda pipe: pipe.claim())):
        claim.unwritten = ("a.one", "dead", 3, 0, "no")
        yield lambda pipe: pipe.finish(claim, "dead", outcome="", reason="no")
    yield lambda pipe: pipe.accept(event("1", account="acct_1"))


def waits() -> Caller:
    """Hold an event for a while, and give it back."""
    yield lambda pipe: pipe.accept(event("2"))
    if claim := one((yield lambda pipe: pipe.claim())):
        yield lambda pipe: pipe.renew(claim)
        yield lambda pipe: pipe.release(claim, 5, "stripe: busy", is_fault=False)


def stops() -> Caller:
    """Give an event back at once, with a result, and take the next."""
    yield lambda pipe: pipe.accept(event("2", session="2"))
    if claim := one((yield lambda pipe: pipe.claim())):
        claim.unwritten = ("a.one", "done", 1, 0, "")
        yield lambda pipe: pipe.release(claim, 0, "worker stopped", is_fault=False)
        yield lambda pipe: pipe.claim()


def links(thin: str, snapshot: str) -> Caller:
    """Find out that an event is another's twin."""
    yield lambda pipe: pipe.accept(event(thin, session="3"))
    if claim := one((yield lambda pipe: pipe.claim())):
        yield lambda pipe: pipe.link(claim, f"evt_{snapshot}")
        yield lambda pipe: pipe.finish(claim, "done", outcome="verified")


def delivers() -> Caller:
    """Take in the other form, and another event of the session."""
    yield lambda pipe: pipe.accept(event("snap", session="3", form="snapshot"))
    yield lambda pipe: pipe.accept(event("other", session="3", form="snapshot"))
    yield lambda pipe: pipe.replay("evt_thin", "all")


def tends() -> Caller:
    """Wake what is past due, and put an event back."""
    yield keys.LEASE
    yield lambda pipe: pipe.sweep()
    yield lambda pipe: pipe.replay("evt_1", "all")
    yield lambda pipe: pipe.claim(2)


def follows() -> Caller:
    """Be the process that follows one that died with an event in hand."""
    yield lambda pipe: pipe.accept(event("5", session="5"))
    if claim := one((yield lambda pipe: pipe.claim())):
        yield lambda pipe: pipe.note_death(claim.event.key, claim.token, "a.deadly")
        yield lambda pipe: pipe.save_progress(claim, "a.one", Progress("done"))


def asks_stripe() -> Caller:
    """Take calls out of the rate that all share: there is room for two at once."""
    yield lambda pipe: pipe.spend_call()
    yield lambda pipe: pipe.spend_call()
    yield lambda pipe: pipe.spend_call()
    yield lambda pipe: pipe.spend_call()


def decides() -> Caller:
    """End events, do a task, and have all wait."""
    yield lambda pipe: pipe.try_acquire("reconcile", 300)
    yield lambda pipe: pipe.discard("evt_1")
    yield lambda pipe: pipe.pause(30, "Stripe refuses our key")
    yield lambda pipe: pipe.try_acquire("reconcile", 300)


def mends() -> Caller:
    """Do what is left to a person: run at once, end, take in as done, list."""
    yield lambda pipe: pipe.retry("evt_2", "ann")
    yield lambda pipe: pipe.discard("evt_2", "ann")
    yield lambda pipe: pipe.adopt(event("9", session="9", account="acct_1"), "ann")
    yield lambda pipe: pipe.list_events(["evt_2", "acct_1-evt_9"])


PAIRS = {
    "two work": (works, waits),
    "one ends what the other puts back": (works, tends),
    "one dies and is reopened": (dies, tends),
    "one stops": (stops, tends),
    "leases run out": (waits, tends),
    "both forms come": (lambda: links("thin", "snap"), delivers),
    "two of one": (works, dies),
    "a person decides": (dies, decides),
    "a person mends": (waits, mends),
    "one follows a death": (follows, tends),
    "both take from the rate": (asks_stripe, works),
    "all take from the rate": (asks_stripe, asks_stripe),
}
STEPS = 4
"""Of a caller, at most."""
RATES = {name: 1 for name in PAIRS if "the rate" in name}
"""Calls of Stripe's API a second; elsewhere there is no limit."""


class Run:
    """One run of the callers on an empty database."""

    def __init__(self, redis: Redis, pass_time: Callable[[float], None], api_rate: int) -> None:
        self._redis, self._pass_time = redis, pass_time
        redis.flushdb()
        self._scripts = Scripts(sources())
        self._limits = Limits(reopen_dead=True, api_rate=api_rate)
        self.asked: set[str] = set()
        self._memory = Memory()
        self._connection = redis.connection_pool.get_connection()

    def close(self) -> None:
        self._redis.connection_pool.release(self._connection)

    def __call__(
        self, callers: list[Caller], order: tuple[int, ...], lost: int = -1, gap: int = 0
    ) -> tuple[list[str], dict[str, Any]] | None:
        """Run the steps in this order; the reply to the step `lost` comes `gap` steps later.

        Returns the answers of each caller and the state, or None where it makes no such run.
        """
        began = self._now()
        answers: list[list[str]] = [[] for _ in callers]
        steps: list[Step | float | None] = [next(caller) for caller in callers]
        again: tuple[int, Pipeline, Reply[Any]] | None = None
        for number, turn in enumerate(order):
            if again and (number - lost > gap or again[0] == turn):
                if number - lost <= gap:
                    return None  # a caller waits for its answer before it goes on
                self._receive(again, answers, steps, callers)
                again = None
            step = steps[turn]
            if step is None:
                continue
            if not callable(step):
                self._pass_time(step)
                steps[turn] = _next(callers[turn], None)
                continue
            pipe = Pipeline(self._scripts, self._limits, self._memory)
            asked = turn, pipe, step(pipe)
            self.asked.update(pipe.names)
            if number == lost:
                self._ask(pipe)
                again = asked
            else:
                self._receive(asked, answers, steps, callers)
        if again:
            self._receive(again, answers, steps, callers)
        assert steps == [None] * len(callers), "a caller has more steps than there are turns"
        return answers, self._state(began)

    def _receive(self, asked: Any, answers: Any, steps: Any, callers: Any) -> None:
        turn, pipe, reply = asked
        pipe.set_replies([self._ask(pipe)])
        answer = reply.result()
        answers[turn].append(_without_times(repr(answer)))
        steps[turn] = _next(callers[turn], answer)

    def _ask(self, pipe: Pipeline) -> Any:
        self._connection.send_packed_command([pipe.pack()])
        return self._connection.read_response()

    def _now(self) -> int:
        seconds, micros = self._redis.time()
        return seconds * 1000 + micros // 1000

    def _state(self, began: int) -> dict[str, Any]:
        readers = {
            b"string": self._redis.get,
            b"hash": lambda key: sorted(self._redis.hgetall(key).items()),
            b"list": lambda key: self._redis.lrange(key, 0, -1),
            b"set": self._redis.smembers,
            b"zset": lambda key: sorted(self._redis.zrange(key, 0, -1, withscores=True)),
        }
        state: dict[str, Any] = {}
        for key in sorted(self._redis.scan_iter(count=1000)):
            if key.startswith((b"iw:answer:", b"iw:clock")):
                continue
            value = readers[self._redis.type(key)](key)
            ttl = self._redis.pttl(key)
            # What is kept for days was begun a while ago, on a busy machine.
            unit = 5_000 if ttl < 3_600_000 else 300_000
            name, text = (_relative(_without_hour(repr(x), began), began) for x in (key, value))
            state[name] = text, ttl if ttl < 0 else round(ttl / unit)
        return state


def _next(caller: Caller, answer: Any) -> Step | float | None:
    try:
        return caller.send(answer)
    except StopIteration:
        return None


def _without_hour(text: str, began: int) -> str:
    """Replace the hour of the beginning, and its months: they may end between two runs."""
    hour = began // (keys.HOUR * 1000)
    of = f"iw:of:{hour // keys.HOURS_OF}:"
    last = time.strftime("iw:last:%Y-%m:", time.gmtime(began / 1000))
    text = re.sub(rf"(?<!\d){hour}(?!\d)", "hour", text)  # and no part of a moment
    return text.replace(of, "iw:of:month:").replace(last, "iw:last:month:")


def _relative(text: str, began: int) -> str:
    """Replace moments by seconds since the beginning: a run takes less than half a second."""
    text = re.sub(r"20\d\d-\d\d-\d\dT[\d:.]+Z", "now", text)
    text = re.sub(r"1[789]\d{11}", lambda m: f"+{round((int(m[0]) - began) / 1000)}s", text)
    # How long a result or the end took, in milliseconds.
    text = re.sub(r"b'asked', b'[^']+'", "b'asked', nonce", text)
    text = re.sub(r"(done|dead|retry|skipped|a\.one)\|(\d+)\|\d{1,5}", r"\1|\2|ms", text)
    return re.sub(r"(\+-?\d+s\\t\d*\\t)\d+\\t", r"\1ms\\t", text)


def _in_one_word(result: Any) -> Any:
    """Return a run in which accepting, if it accepted, answered just that."""
    answers, state = result
    accepted = r"<AcceptResult\.(?!FULL)\w+: '\w+'>"
    return [[re.sub(accepted, "accepted", each) for each in own] for own in answers], state


def _without_times(text: str) -> str:
    text = re.sub(r"\b(now|since|due)=\d{5,}", r"\1=moment", text)
    text = re.sub(r"\b(claimed_age|replayed_after)=[\d.]+", r"\1=some", text)
    text = re.sub(r"^\d+\.\d+$", lambda m: f"{float(m[0]):.0f} s", text)
    return re.sub(r"\bms=\d+", "ms=some", text)


def orders(first: int, second: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to interleave so many steps of two callers."""
    for places in itertools.combinations(range(first + second), first):
        yield tuple(0 if place in places else 1 for place in range(first + second))


def moved(order: tuple[int, ...], lost: int, gap: int) -> tuple[int, ...]:
    """Return the order in which the step is asked only when it was asked again."""
    rest = order[:lost] + order[lost + 1 :]
    return (*rest[: lost + gap], order[lost], *rest[lost + gap :])


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, marks=() if number % 3 == 0 else pytest.mark.walk)
        for number, pair in enumerate(PAIRS)
    ],
)
def test_whichever_reply_is_lost_it_is_as_if_none_was(redis, server, pass_time, pair) -> None:
    Inbox(redis).sweep()  # loads the scripts
    whole = {}
    lossy = 0

    def run(*args: Any) -> Any:
        while True:
            began, hour = time.monotonic(), time.time() // keys.HOUR
            with closing(Run(redis, pass_time, RATES.get(pair, 0))) as asked:
                result = asked([make() for make in PAIRS[pair]], *args)
            # Moments are compared by the second, and lists are named after the hour.
            if time.monotonic() - began < 0.4 and time.time() // keys.HOUR == hour:
                return result

    for order in orders(STEPS, STEPS):
        whole[order] = run(order)
    for order, lost, gap in itertools.product(whole, range(2 * STEPS), (0, 2)):
        result = run(order, lost, gap)
        if result is None:
            continue
        lossy += 1
        if result in (whole[order], whole[moved(order, lost, gap)]):
            continue
        if gap:  # an event may have gone on before it is accepted again
            assert _in_one_word(result) == _in_one_word(whole[order]), (order, lost, gap)
        else:
            assert result == whole[order], (order, lost, gap)
    assert lossy > 400


def test_and_every_script_is_among_them(redis, pass_time) -> None:
    Inbox(redis).sweep()
    asked: set[str] = set()
    for pair, both in PAIRS.items():
        with closing(Run(redis, pass_time, RATES.get(pair, 0))) as run:
            run([make() for make in both], (0, 1) * STEPS)
            asked |= run.asked
    files = {path.stem for path in LUA.glob("*.lua")}
    # What a process says of itself is written over each time, and nothing hangs on the answer.
    assert asked | {"report"} == set(sources()) == files - {"lib", "once"}


def test_an_answer_is_kept_until_it_is_asked_for_again(redis) -> None:
    """After a reply that did not come in time, on a connection that took as long to come."""
    inbox = Inbox(redis)
    inbox.accept(event("a"))
    (claim,) = inbox.claim()
    inbox.finish(claim, "done", outcome="verified")
    kept = [redis.pttl(key) for key in redis.keys("iw:answer:*")]
    assert min(kept) > 2 * TIMEOUT * 1000


def test_a_claim_that_nobody_heard_of_is_that_of_the_next_who_claims(redis, monkeypatch) -> None:
    inbox = Inbox(redis)
    for name in "abc":
        inbox.accept(event(name, session=name))
    read = AbstractConnection.read_response

    def lose(*args: Any, **kwargs: Any) -> Any:
        read(*args, **kwargs)
        raise redis_py.ConnectionError("the reply was lost")

    with monkeypatch.context() as patch:
        patch.setattr(AbstractConnection, "read_response", lose)
        with pytest.raises(redis_py.ConnectionError):
            inbox.claim(2)  # asked twice, and neither reply comes

    assert [claim.event.id for claim in inbox.claim()] == ["evt_c"], "who can take one asks for one"
    assert [(claim.event.id, claim.lapses) for claim in inbox.claim(2)] == [
        ("evt_a", 0),
        ("evt_b", 0),
    ]
    assert inbox.claim(2) == []


@pytest.mark.parametrize("later", [1, 2])
def test_what_was_held_up_for_too_long_changes_nothing(redis, later) -> None:
    """A command that arrives behind the next ones of its caller, which was asked again since."""
    inbox = Inbox(redis)
    inbox.accept(event("1"))
    with inbox.pipeline() as late:
        late.claim()
    for number in range(later):
        assert inbox.try_acquire(f"task {number}", 60)
    state = {key: redis.dump(key) for key in redis.keys("*")}
    (answer,) = inbox._connections.round_trip(late.pack(), 1)
    assert str(answer).startswith("STALE")
    assert {key: redis.dump(key) for key in redis.keys("*")} == state


def test_a_forked_process_asks_in_slots_of_its_own(redis, server) -> None:
    inbox = Inbox(redis)
    assert inbox.try_acquire("task", 60)
    child = os.fork()
    if child == 0:
        with server.client() as client:
            mine = Inbox(client)
            mine._memory = inbox._memory
            answers = [mine.try_acquire(f"task {number}", 60) for number in range(3)]
            os._exit(0 if all(answers) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert inbox.try_acquire("task 4", 60), "it is not behind what the other has asked"
