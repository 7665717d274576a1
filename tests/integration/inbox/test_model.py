"""A model of the inbox in plain Python, driven side by side with the scripts on a real server.

Time moves in steps of five seconds, far coarser than a test takes, so that the model need not
know the milliseconds that pass meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import Redis

from identity_webhooks.event import Event
from service.inbox import AcceptResult, Claim, Inbox, Progress, Refused
from service.inbox.keys import BUSY_DELAY, HORIZON, LEASE, MAX_LAPSES
from tests.integration.claims import claim_of

STEP = 5.0
LIMIT = 4
# Two sessions, so that events get in each other's way; more events than the inbox takes.
SESSION_OF = {f"evt_{n}": f"vs_{n % 2}" for n in range(6)}
keys = st.sampled_from(sorted(SESSION_OF))
names = st.sampled_from(["a.one", "a.two"])


@dataclass
class Modelled:
    """What the model knows of one event. Times count from the start of the run."""

    session: str
    state: str = "pending"
    due: float = 0.0
    wake: int = 0
    accepted: float = 0.0
    lease: float | None = None
    not_before: float = 0.0
    token: int = 0
    lapses: int = 0
    handlers: dict[str, str] = field(default_factory=dict)


class InboxMachine(RuleBasedStateMachine):
    """Whatever order things are done in, the scripts answer as the model does."""

    redis: Redis
    shift: Callable[[Redis, float], None]

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushdb()
        self.inbox = Inbox(self.redis, limit=LIMIT)
        self.now = 0.0
        self.events: dict[str, Modelled] = {}
        self.queue: list[tuple[str, int]] = []
        self.wakes = 0
        self.locks: dict[str, tuple[str, int, float]] = {}
        self.claims: list[Claim] = []
        # Who found a session busy, first come first.
        self.waiting: dict[str, list[str]] = {}

    def wake(self, key: str) -> None:
        self.wakes += 1
        self.queue.append((key, self.wakes))
        self.events[key].wake = self.wakes
        self.events[key].due = self.now + HORIZON

    def lock(self, session: str) -> tuple[str, int, float] | None:
        held = self.locks.get(session)
        return held if held and held[2] > self.now else None

    def owner(self, claim: Claim) -> Modelled | None:
        modelled = self.events[claim.event.key]
        mine = modelled.state == "pending" and modelled.token == int(claim.token)
        return modelled if mine and modelled.lease is not None else None

    def let_go(self, key: str, modelled: Modelled) -> None:
        modelled.lease = None
        held = self.lock(modelled.session)
        if not held or held[:2] != (key, modelled.token):
            return
        del self.locks[modelled.session]
        waiting = self.waiting.get(modelled.session)
        if waiting:
            waiter = waiting.pop(0)
            woken = self.events[waiter]
            if woken.state == "pending" and woken.lease is None:
                woken.not_before = 0.0
                self.wake(waiter)

    @rule(key=keys)
    def accept(self, key: str) -> None:
        known = self.events.get(key)
        pending = sum(e.state == "pending" for e in self.events.values())
        if known:
            expected = AcceptResult(known.state)
        elif pending >= LIMIT:
            expected = AcceptResult.FULL
        else:
            expected = AcceptResult.NEW
            self.events[key] = Modelled(SESSION_OF[key], accepted=self.now)
            self.wake(key)
        event = Event(key, "verified", "thin", SESSION_OF[key], 1_700_000_000, livemode=False)
        assert self.inbox.accept(event) is expected

    @rule(key=keys)
    def claim(self, key: str) -> None:
        self.check_claim(key, claim_of(self.inbox, key))

    @rule()
    def take(self) -> None:
        answer = next(iter(self.inbox.claim()), None)
        if not self.queue:
            assert answer is None
            return
        key, _ = self.queue.pop(0)
        assert answer is not None
        self.check_claim(key, answer)

    def check_claim(self, key: str, answer: Claim | Refused) -> None:
        modelled = self.events.get(key)
        if modelled is None:
            assert answer is Refused.GONE
        elif modelled.state != "pending":
            assert answer is Refused(modelled.state)
        elif modelled.lease is not None and modelled.lease > self.now:
            assert answer is Refused.LEASED
        elif modelled.not_before > self.now:
            assert answer is Refused.EARLY
        else:
            self.claim_free(key, modelled, answer)

    def claim_free(self, key: str, modelled: Modelled, answer: Claim | Refused) -> None:
        if modelled.lease is not None:
            self.let_go(key, modelled)
            modelled.lapses += 1
            if modelled.lapses >= MAX_LAPSES:
                assert answer is Refused.QUARANTINED
                modelled.state = "dead"
                return
        held = self.lock(modelled.session)
        if held and held[0] != key:
            assert answer is Refused.BUSY
            modelled.due = modelled.not_before = self.now + BUSY_DELAY
            waiting = self.waiting.setdefault(modelled.session, [])
            if key not in waiting:
                waiting.append(key)
            return
        assert isinstance(answer, Claim)
        modelled.token += 1
        assert int(answer.token) == modelled.token
        assert {n: p.status for n, p in answer.progress.items()} == modelled.handlers
        modelled.lease = modelled.due = self.now + LEASE
        modelled.not_before = 0.0
        self.locks[modelled.session] = (key, modelled.token, self.now + LEASE)
        if key in self.waiting.get(modelled.session, []):
            self.waiting[modelled.session].remove(key)
        self.claims.append(answer)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        modelled = self.owner(claim)
        held = self.lock(claim.event.session)
        mine = held is None or held[:2] == (claim.event.key, int(claim.token))
        if modelled and mine:
            modelled.lease = modelled.due = self.now + LEASE
            self.locks[modelled.session] = (claim.event.key, modelled.token, self.now + LEASE)
        claim.lost = False
        assert self.inbox.renew(claim) == bool(modelled and mine)

    @rule(data=st.data(), name=names, status=st.sampled_from(["done", "dead", "retry"]))
    def record(self, data: st.DataObject, name: str, status: str) -> None:
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        modelled = self.owner(claim)
        if modelled:
            modelled.handlers[name] = status
            modelled.lapses = 0
        written = self.inbox.save_progress(claim, name, Progress(status), delay=STEP)
        assert written == bool(modelled)

    @rule(data=st.data(), delay=st.sampled_from([0.0, STEP, 3 * STEP]))
    def release(self, data: st.DataObject, delay: float) -> None:
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        key, modelled = claim.event.key, self.owner(claim)
        if modelled:
            self.let_go(key, modelled)
            if delay:
                modelled.due = modelled.not_before = self.now + delay
            else:
                self.wake(key)
        assert self.inbox.release(claim, delay, "why") == bool(modelled)

    @rule(data=st.data(), state=st.sampled_from(["done", "dead"]))
    def finish(self, data: st.DataObject, state: str) -> None:
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        modelled = self.owner(claim)
        if modelled:
            self.let_go(claim.event.key, modelled)
            modelled.state = state
            modelled.lapses = 0
        took = self.inbox.finish(claim, state, outcome="verified")
        assert (took is not None) == bool(modelled)

    @rule()
    def sweep(self) -> None:
        swept = self.inbox.sweep()
        woken = postponed = 0
        overdue = [
            (modelled.due, key)
            for key, modelled in self.events.items()
            if modelled.state == "pending" and modelled.due <= self.now
        ]
        for _, key in sorted(overdue):
            modelled = self.events[key]
            if self.queue and modelled.wake >= self.queue[0][1]:
                modelled.due = self.now + max(HORIZON, (self.now - modelled.accepted) / 2)
                postponed += 1
            else:
                self.wake(key)
                woken += 1
        # Events that fell due together may be taken in either order, which changes no count
        # but the numbers of their wake-ups.
        assert (swept.woken, swept.postponed, swept.stale) == (woken, postponed, 0)
        self.learn_wakes()

    @rule(key=keys, which=st.sampled_from(["dead", "all", "a.one"]))
    def replay(self, key: str, which: str) -> None:
        answer = self.inbox.replay(key, which)
        modelled = self.events.get(key)
        if modelled is None:
            assert answer == "gone"
        elif modelled.state == "pending":
            assert answer == "pending"
        else:
            assert answer == "replayed"
            modelled.handlers = {
                name: status
                for name, status in modelled.handlers.items()
                if not (which == "all" or (which == "dead" and status == "dead") or which == name)
            }
            modelled.state, modelled.lapses, modelled.not_before = "pending", 0, 0.0
            self.wake(key)

    @rule(steps=st.integers(1, 4))
    def time_passes(self, steps: int) -> None:
        self.now += steps * STEP
        type(self).shift(self.redis, steps * STEP)

    @rule()
    def a_wakeup_is_taken(self) -> None:
        taken = self.redis.lpop("rq:queue:identity")
        assert (taken is None) == (not self.queue)
        if taken:
            assert taken.decode() == "{}-{}".format(*self.queue.pop(0))

    def learn_wakes(self) -> None:
        self.queue = []
        for item in self.redis.lrange("rq:queue:identity", 0, -1):
            key, _, number = item.decode().rpartition("-")
            self.queue.append((key, int(number)))
            self.events[key].wake = max(self.events[key].wake, 0)
        for key, modelled in self.events.items():
            if (wake := self.redis.hget(f"iw:evt:{key}", "wake")) is not None:
                modelled.wake = int(wake)

    @invariant()
    def a_pending_event_is_due_exactly_once_and_no_other_is(self) -> None:
        due = {member.decode() for member in self.redis.zrange("iw:due", 0, -1)}
        assert due == {k for k, e in self.events.items() if e.state == "pending"}

    @invariant()
    def the_dead_are_listed(self) -> None:
        dead = {member.decode() for member in self.redis.zrange("iw:dead", 0, -1)}
        assert dead == {k for k, e in self.events.items() if e.state == "dead"}

    @invariant()
    def records_agree(self) -> None:
        for key, modelled in self.events.items():
            record = self.inbox.find(key)
            assert record is not None
            assert record.state == modelled.state
            assert {n: p.status for n, p in record.handlers.items()} == modelled.handlers

    @invariant()
    def every_queued_wakeup_has_its_job(self) -> None:
        for item in self.redis.lrange("rq:queue:identity", 0, -1):
            assert self.redis.hget(b"rq:job:" + item, "status") == b"queued"

    @invariant()
    def only_done_records_expire(self) -> None:
        for key, modelled in self.events.items():
            is_done = modelled.state == "done"
            assert (self.redis.ttl(f"iw:done:{key}") > 0) == is_done
            assert self.redis.ttl(f"iw:evt:{key}") == (-2 if is_done else -1)


@pytest.mark.timeout(300)
def test_the_scripts_agree_with_the_model(redis, shifted) -> None:
    machine = type("Machine", (InboxMachine,), {"redis": redis, "shift": shifted})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
