"""A model of the inbox in plain Python, driven side by side with the scripts on a real server.

After every step each field of every record, every list and every TTL is compared. The times of
the inbox are ten times as long as they are, and time moves in steps of fifty seconds, far coarser
than a test takes, so that the model need not know what passes meanwhile. Any reply may get lost,
so that the script is asked again.

Each transition of an event is noted with the one before it. First a few walks go through all pairs
that are possible, always the same ones; then come steps by chance.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from identity_webhooks.event import Event
from service.inbox import AcceptResult, Claim, ClaimResult, Inbox, Progress, Quarantined, Refused
from service.inbox import keys as times
from service.inbox.keys import HOUR, HOURS_OF, KEEP, KEEP_LAST, MAX_ACTS, MAX_LAPSES, MAX_TRAIL
from service.inbox.pipeline import save_progress_at_end
from service.inbox.record import fields_of, kept_fields
from service.inbox.search import Filter, deaths_of
from tests.integration.claims import claim_of
from tests.integration.inbox.transitions import HANDLER_TRANSITIONS, POSSIBLE_PAIRS, WALKS

SCALE = 10
LEASE, HORIZON, BUSY_DELAY, STEP = (
    SCALE * each for each in (times.LEASE, times.HORIZON, times.BUSY_DELAY, times.STEP)
)
NEAR = STEP / 2 - 1
WHO = "ann"
CAUSES = {"retry: a; b|c": "retry", "failed: KeyError at x.py:1": "failed KeyError", "": ""}
"""Reasons that handlers fail for, and what these have in common with others."""
NOTHING_RAN = {None, "", "discarded", "as_done"}
"""Outcomes of what ended before its handlers had their turn."""
LIMIT = 4
# Two sessions, so that events get in each other's way; more events than the inbox takes.
SESSION_OF = {f"evt_{n}": f"vs_{n % 2}" for n in range(6)}
# A change has two ids at most. The third event of each session is another change.
OTHER_FORM = {"evt_0": "evt_2", "evt_2": "evt_0", "evt_1": "evt_3", "evt_3": "evt_1"}
keys = st.sampled_from(sorted(SESSION_OF))
names = st.sampled_from(["a.one", "a.two"])
Life = tuple[str, str | None, str, str | None, str | None]
"""Key, state and outcome at the end, a handler that was done, and what of it is put back.

Without a state it is claimed, and has not come to its end.
"""
lives: st.SearchStrategy[Life] = st.tuples(
    keys,
    st.sampled_from(["done", "dead", None]),
    st.sampled_from(["verified", ""]),
    st.none() | names,
    st.sampled_from(["all", "dead", "a.one", None]),
)
steps = st.integers(1, 4)
lost = st.booleans()


@dataclass
class Handled:
    """What the record says of a handler."""

    status: str
    due: float | None = None
    attempts: int = 1
    reason: str = ""


@dataclass
class Modelled:
    """What the model knows of one event. Moments count from the start of the run."""

    session: str
    accepted: float
    order: int
    state: str = "pending"
    due: float = 0.0
    wake: int | None = None
    asked: bool = False
    lease: float | None = None
    not_before: float | None = None
    token: int = 0
    faults: int = 0
    lapses: int = 0
    suspect: bool = False
    reopened: float | None = None
    counted: bool = False
    settled: float | None = None
    outcome: str | None = None
    reason: str | None = None
    ran: str | None = None
    leads_to: str | None = None
    twin: str | None = None
    expires: bool = False
    handlers: dict[str, Handled] = field(default_factory=dict)
    trail: list[tuple[str, int, str]] = field(default_factory=list)
    acts: list[tuple[str, str, str]] = field(default_factory=list)

    def note(self, name: str, handled: Handled) -> None:
        """Note how a handler fared."""
        before = self.handlers.get(name)
        if before and before.attempts != handled.attempts:
            self.note_failed(name)
        self.handlers[name] = handled

    def note_failed(self, name: str) -> None:
        """Remember an attempt that another one takes the place of, if it failed."""
        before = self.handlers[name]
        if before.status != "done":
            self.trail = [*self.trail, (name, before.attempts, before.reason)][-MAX_TRAIL:]

    def act(self, what: str, which: str = "") -> None:
        """Note what a person had done."""
        self.acts = [*self.acts, (what, WHO, which)][-MAX_ACTS:]

    def deaths(self) -> set[tuple[str, str]]:
        """Return handler and cause of what it died of."""
        if (self.reason or "").startswith("quarantined"):
            return {(self.reason.split(" ")[-2] if "while" in self.reason else "", "quarantined")}
        dead = {n: h for n, h in self.handlers.items() if h.status == "dead"}
        return {(n, CAUSES[h.reason.replace("/", "|")]) for n, h in dead.items()} or {
            ("", self.reason or "")
        }

    def record(self) -> dict[str, Any]:
        """Return the fields of its record; moments are floats."""
        if self.state == "twin":
            return {"state": "twin", "twin": self.leads_to}
        fields = {
            "state": self.state,
            "trail": ANY if self.trail else None,
            "acts": ANY if self.acts else None,
            "kind": "verified",
            "form": "thin",
            "session": self.session,
            "created": "1700000000",
            "livemode": "0",
            "accepted": self.accepted,
            "token": str(self.token or "") or None,
            "settled": self.settled,
            "outcome": self.outcome,
            "reason": self.reason,
            "twin": self.twin,
        }
        if self.state != "done":
            fields |= {
                "reopened": self.reopened,
                "wake": None if self.wake is None else str(self.wake),
                "asked": ANY if self.asked else None,
                "lease": self.lease,
                "not_before": self.not_before,
                "faults": str(self.faults) if self.faults else None,
                "lapses": str(self.lapses) if self.lapses else None,
                "suspect": "1" if self.suspect else None,
                "counted": "1" if self.counted else None,
                "ran": self.ran,
            }
        elif not self.reason:
            del fields["reason"]
        return {name: value for name, value in fields.items() if value is not None}


class InboxMachine(RuleBasedStateMachine):
    """Whatever order things are done in, the scripts answer and write as the model does."""

    redis: Redis
    shift: Callable[[Redis, float], None]
    pairs: Counter[tuple[str, str]]
    """How often a transition of an event followed another one of it, in all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushdb()
        self.inbox = Inbox(self.redis, limit=LIMIT)
        self.reopening = Inbox(self.redis, limit=LIMIT, reopen_dead=True)
        self.lose_reply = False
        for inbox in (self.inbox, self.reopening):
            self.may_lose(inbox)
        self.inbox.sweep()
        self.now = 0.0
        self.ahead = 0.0
        self.paused_until = 0.0
        self.pause_kept_until = 0.0
        self.events: dict[str, Modelled] = {}
        self.queue: list[tuple[str, int]] = []
        self.wakes = 0
        self.locks: dict[str, tuple[str, int, float]] = {}
        self.claims: list[Claim] = []
        # Who found a session busy, first come first.
        self.waiting: dict[str, list[str]] = {}
        self.heard: set[str] = set()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.transitions: dict[str, list[str]] = {}

    def may_lose(self, inbox: Inbox) -> None:
        """Have commands sent twice while `lose_reply` is set; the first replies are dropped."""
        connections = inbox._connections
        once = connections.round_trip

        def sent(data: bytes, count: int) -> Any:
            if self.lose_reply:
                once(data, count)
            return once(data, count)

        connections.round_trip = sent

    # --- what several rules share --------------------------------------------------------------

    def happened(self, key: str, transition: str) -> None:
        """Note a transition of an event, of which each is noted when the model makes it."""
        before = self.transitions.setdefault(key, ["unknown"])
        self.pairs[before[-1], transition] += 1
        before.append(transition)

    def move_to(self, now: float) -> None:
        """Let time pass for the model."""
        before, self.now = self.now, now
        for key, modelled in self.pending().items():
            if modelled.lease is not None and before < modelled.lease <= now:
                self.happened(key, "lapsed")

    def find(self, key: str) -> tuple[str, Modelled | None]:
        modelled = self.events.get(key)
        if modelled and modelled.leads_to:
            return modelled.leads_to, self.events[modelled.leads_to]
        return key, modelled

    def pending(self) -> dict[str, Modelled]:
        return {key: event for key, event in self.events.items() if event.state == "pending"}

    def wake(self, key: str) -> None:
        self.wakes += 1
        self.queue.append((key, self.wakes))
        self.events[key].wake = self.wakes
        self.events[key].due = self.now + HORIZON

    def is_paused(self) -> bool:
        return min(self.paused_until, self.pause_kept_until) > self.now

    def lock(self, session: str) -> tuple[str, int, float] | None:
        held = self.locks.get(session)
        return held if held and held[2] > self.now else None

    def owner(self, claim: Claim) -> Modelled | None:
        modelled = self.events[claim.event.key]
        mine = modelled.state == "pending" and modelled.token == int(claim.token)
        return modelled if mine and modelled.lease is not None else None

    def draw_claim(self, data: st.DataObject, claims: list[Claim]) -> Claim:
        """Draw a claim, at least half of the times one that owns its event if there is any."""
        owning = [claim for claim in claims if self.owner(claim)]
        return data.draw(st.sampled_from(owning * len(claims) + claims))

    def let_go(self, key: str, modelled: Modelled, token: int) -> None:
        held = self.lock(modelled.session)
        if not held:
            return
        if held[:2] != (key, token):
            self.locks[modelled.session] = (*held[:2], self.now + LEASE)
            return
        del self.locks[modelled.session]
        waiting = self.waiting.get(modelled.session)
        if waiting:
            waiter = waiting.pop(0)
            woken = self.events[waiter]
            if woken.state == "pending" and not self.is_claimed(woken):
                woken.not_before = None
                self.wake(waiter)
                self.happened(waiter, "freed")

    def is_claimed(self, modelled: Modelled) -> bool:
        return modelled.lease is not None and modelled.lease > self.now

    def take_from_dead(self, key: str, modelled: Modelled) -> None:
        if modelled.lease is not None:
            self.let_go(key, modelled, modelled.token)
            modelled.lease = None
            modelled.suspect = True

    def leave_line(self, key: str, modelled: Modelled) -> None:
        line = self.waiting.get(modelled.session, [])
        if key in line:
            line.remove(key)

    def settle(self, key: str, state: str, outcome: str, reason: str, token: int) -> None:
        modelled = self.events[key]
        self.let_go(key, modelled, token)
        modelled.state, modelled.reason = state, reason
        modelled.outcome = outcome or modelled.outcome or ""
        modelled.ran = None
        modelled.settled = self.now
        modelled.lease = modelled.wake = None
        modelled.asked = False
        modelled.faults = modelled.lapses = 0
        if state == "done":
            if not modelled.counted and modelled.outcome not in NOTHING_RAN:
                self.outcomes["verified", modelled.outcome] += 1
            modelled.counted = False  # the line says it by its outcome
            modelled.not_before = modelled.reopened = None
            modelled.suspect = False
            self.heard.add(modelled.session)
            if modelled.twin:
                self.events[modelled.twin].expires = True
            modelled.twin = modelled.twin or None

    def lead(self, key: str, to: str) -> None:
        old = self.events.get(key)
        order = old.order if old else 0
        self.events[key] = Modelled(SESSION_OF[key], 0, order, "twin", leads_to=to)
        self.happened(key, "second")
        winner = self.events[to]
        if winner.state == "done" or winner.twin is not None:
            self.events[key].expires = True
        else:
            winner.twin = key
            self.happened(to, "first")

    def reopen(self, key: str, which: str) -> bool:
        modelled = self.events[key]
        again = {
            name
            for name, handled in modelled.handlers.items()
            if which in {"all", name} or (which == "dead" and handled.status in {"dead", "retry"})
        }
        cut_short = modelled.state == "dead" or modelled.outcome in {"discarded", "as_done"}
        anyway = {"dead": cut_short, "all": modelled.state != "pending"}.get(which, False)
        if not again and not anyway:
            return False
        modelled.counted |= modelled.state == "done" and modelled.outcome not in NOTHING_RAN
        self.take_from_dead(key, modelled)
        self.leave_line(key, modelled)
        for name in sorted(again):
            modelled.note_failed(name)
            del modelled.handlers[name]
        modelled.state, modelled.reopened = "pending", self.now
        modelled.reason = modelled.settled = modelled.not_before = modelled.ran = None
        modelled.faults = modelled.lapses = 0
        modelled.asked = False
        if modelled.outcome in NOTHING_RAN:
            modelled.outcome = None
        self.wake(key)
        return True

    def check_claim(self, key: str, answer: ClaimResult) -> None:
        key, modelled = self.find(key)
        if self.is_paused():
            assert answer is Refused.PAUSED
        elif modelled is None:
            assert answer is Refused.GONE
        elif modelled.state != "pending":
            assert answer is Refused(modelled.state)
        elif self.is_claimed(modelled):
            assert answer is Refused.LEASED
        elif modelled.not_before is not None and modelled.not_before > self.now:
            assert answer is Refused.EARLY
        else:
            self.claim_free(key, modelled, answer)

    def claim_free(self, key: str, modelled: Modelled, answer: ClaimResult) -> None:
        if modelled.lease is not None:
            modelled.lapses += 1
            if modelled.lapses >= MAX_LAPSES:
                assert isinstance(answer, Quarantined)
                assert answer.event.key == key
                ran = modelled.ran
                assert answer.ran == (ran or "")
                reason = f"quarantined: its worker died while {ran} ran" if ran else "quarantined"
                self.settle(key, "dead", "", reason, modelled.token)
                self.happened(key, "quarantined")
                return
            self.take_from_dead(key, modelled)
        held = self.lock(modelled.session)
        if held and held[0] != key:
            assert answer is Refused.BUSY
            modelled.due = modelled.not_before = self.now + BUSY_DELAY
            waiting = self.waiting.setdefault(modelled.session, [])
            if key not in waiting:
                waiting.append(key)
            self.happened(key, "busy")
            return
        assert isinstance(answer, Claim)
        modelled.token += 1
        assert int(answer.token) == modelled.token
        assert answer.event.key == key
        assert answer.twin == modelled.twin
        assert (answer.faults, answer.lapses) == (modelled.faults, modelled.lapses)
        assert answer.suspect == modelled.suspect
        assert set(answer.progress) == set(modelled.handlers)
        modelled.lease = modelled.due = self.now + LEASE
        if modelled.not_before is not None:
            self.leave_line(key, modelled)
        modelled.not_before = None
        self.locks[modelled.session] = (key, modelled.token, self.now + LEASE)
        self.claims.append(answer)
        self.happened(key, "claimed")

    # --- what can be asked ---------------------------------------------------------------------

    @rule(key=keys, reopen=st.booleans(), lose=lost)
    def accept(self, key: str, reopen: bool, lose: bool) -> None:
        canonical, known = self.find(key)
        is_full = len(self.pending()) >= LIMIT
        if known and (is_full or not (known.state == "dead" and reopen)):
            expected = AcceptResult(known.state)
        elif is_full:
            expected = AcceptResult.FULL
        elif known:
            expected = AcceptResult.REOPENED
            self.wakes += 1  # it makes sure that Redis takes something in
            self.reopen(canonical, "dead")
            known.asked = True
            self.happened(canonical, "reopened")
        else:
            expected = AcceptResult.NEW
            time.sleep(0.002)  # the moments of acceptance are milliseconds
            order = len(self.events) + self.wakes
            self.events[key] = Modelled(SESSION_OF[key], self.now, order, asked=True)
            self.wake(key)
            self.happened(key, "accepted")
        event = Event(key, "verified", "thin", SESSION_OF[key], 1_700_000_000, livemode=False)
        self.lose_reply = lose
        assert (self.reopening if reopen else self.inbox).accept(event) is expected

    @rule(key=keys, lose=lost)
    def claim(self, key: str, lose: bool) -> None:
        self.lose_reply = lose
        self.check_claim(key, claim_of(self.inbox, key))
        if self.is_paused():
            self.redis.lpop("rq:queue:identity")

    @rule(lose=lost)
    def take(self, lose: bool) -> None:
        self.lose_reply = lose
        answer = next(iter(self.inbox.claim()), None)
        if self.is_paused():
            assert answer is Refused.PAUSED
        elif not self.queue:
            assert answer is None
        else:
            key, _ = self.queue.pop(0)
            assert answer is not None
            self.check_claim(key, answer)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), lose=lost)
    def renew(self, data: st.DataObject, lose: bool) -> None:
        claim = self.draw_claim(data, self.claims)
        modelled = self.owner(claim)
        held = self.lock(claim.event.session)
        mine = held is None or held[:2] == (claim.event.key, int(claim.token))
        if modelled and mine:
            modelled.lease = modelled.due = self.now + LEASE
            self.locks[modelled.session] = (claim.event.key, modelled.token, self.now + LEASE)
            self.happened(claim.event.key, "renewed")
        claim.lost = False
        self.lose_reply = lose
        assert self.inbox.renew(claim) == bool(modelled and mine)

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        name=names,
        status=st.sampled_from(["done", "dead", "retry"]),
        attempts=st.integers(1, 3),
        why=st.sampled_from(sorted(CAUSES)),
        lose=lost,
    )
    def save_progress(
        self, data: st.DataObject, name: str, status: str, attempts: int, why: str, lose: bool
    ) -> None:
        claim = self.draw_claim(data, self.claims)
        modelled = self.owner(claim)
        why = "" if status == "done" else why
        kept = why.replace("|", "/")
        if modelled:
            due = self.now + STEP if status == "retry" else None
            modelled.note(name, Handled(status, due, attempts, kept))
            modelled.lapses = modelled.faults = 0
            modelled.ran = None
            self.happened(claim.event.key, HANDLER_TRANSITIONS[status])
        self.lose_reply = lose
        progress = Progress(status, attempts, reason=why)
        written = self.inbox.save_progress(claim, name, progress, delay=STEP)
        assert written == bool(modelled)

    def end_with_result(self, claim: Claim, name: str | None) -> None:
        """Have the last handler's result written with the end of the claim."""
        claim.unwritten = ()
        if name:
            save_progress_at_end(claim, name, Progress("done"))
            if modelled := self.owner(claim):
                modelled.note(name, Handled("done"))

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        delay=st.sampled_from([0.0, STEP, 3 * STEP]),
        name=st.none() | names,
        fault=st.booleans(),
        lose=lost,
    )
    def release(
        self, data: st.DataObject, delay: float, name: str | None, fault: bool, lose: bool
    ) -> None:
        claim = self.draw_claim(data, self.claims)
        self.end_with_result(claim, name)
        key, modelled = claim.event.key, self.owner(claim)
        if modelled:
            if name:
                modelled.faults = modelled.lapses = 0
                modelled.ran = None
            modelled.lease = None
            # It is not among those that the free session wakes.
            self.let_go(key, modelled, modelled.token)
            modelled.faults += fault
            if delay:
                modelled.reason = "why"
                modelled.due = modelled.not_before = self.now + delay
            else:
                self.wake(key)
            self.happened(key, "delayed" if delay else "released")
        self.lose_reply = lose
        released = self.inbox.release(claim, delay, "why", is_fault=fault)
        assert released == bool(modelled)

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        state=st.sampled_from(["done", "dead"]),
        outcome=st.sampled_from(["verified", ""]),
        reason=st.sampled_from(["", "because"]),
        name=st.none() | names,
        lose=lost,
    )
    def finish(
        self,
        data: st.DataObject,
        state: str,
        outcome: str,
        reason: str,
        name: str | None,
        lose: bool,
    ) -> None:
        self.end(self.draw_claim(data, self.claims), state, outcome, reason, name, lose)

    def end(
        self,
        claim: Claim,
        state: str,
        outcome: str,
        reason: str,
        name: str | None,
        lose: bool,
    ) -> None:
        self.end_with_result(claim, name)
        modelled = self.owner(claim)
        if modelled:
            self.settle(claim.event.key, state, outcome, reason, modelled.token)
            self.happened(claim.event.key, state)
        self.lose_reply = lose
        took = self.inbox.finish(claim, state, outcome=outcome, reason=reason)
        assert (took is not None) == bool(modelled)

    @initialize(some=st.lists(lives, min_size=2, max_size=4))
    def begin(self, some: list[Life]) -> None:
        """Steps by chance seldom bring an event to its end, and back."""
        for life in some:
            self.live(life)

    @rule(life=lives)
    def live(self, life: Life) -> None:
        """Accept an event and claim it; end it, and put it back."""
        key, state, outcome, name, again = life
        self.accept(key, reopen=False, lose=False)
        self.claim(key, lose=False)
        if state is None:
            return
        for claim in self.claims:
            if claim.event.key == self.find(key)[0] and self.owner(claim):
                self.end(claim, state, outcome, "", name, lose=False)
                if again:
                    self.replay(key, again, lose=False)
                break

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), name=names, lose=lost)
    def note_death(self, data: st.DataObject, name: str, lose: bool) -> None:
        claim = self.draw_claim(data, self.claims)
        modelled = self.owner(claim)
        if modelled:
            modelled.ran = name
            self.happened(claim.event.key, "noted")
        self.lose_reply = lose
        noted = self.inbox.note_death(claim.event.key, claim.token, name)
        assert noted == bool(modelled)

    @precondition(lambda self: self.claims_in_two_forms())
    @rule(data=st.data(), lose=lost)
    def link(self, data: st.DataObject, lose: bool) -> None:
        claim = self.draw_claim(data, self.claims_in_two_forms())
        key, modelled = claim.event.key, self.owner(claim)
        given = data.draw(st.sampled_from([OTHER_FORM[key], ""]))
        other, known = self.find(given) if given else (key, modelled)
        expected = "second" if modelled else "lost"
        if modelled and other == key:
            expected = "first"
            if not given and modelled.twin is None:
                modelled.twin = ""
                self.happened(key, "single")
        elif modelled and (
            known is None
            or (known.state == "pending" and not known.token and known.order > modelled.order)
        ):
            expected = "first"
            if known:
                self.leave_line(other, known)
            self.lead(other, key)
        elif modelled:
            self.let_go(key, modelled, modelled.token)
            self.lead(key, other)
        self.lose_reply = lose
        assert self.inbox.link(claim, given) == expected

    def claims_in_two_forms(self) -> list[Claim]:
        return [claim for claim in self.claims if claim.event.key in OTHER_FORM]

    @rule(key=keys, which=st.sampled_from(["dead", "all", "a.one"]), lose=lost)
    def replay(self, key: str, which: str, lose: bool) -> None:
        self.lose_reply = lose
        answer = self.inbox.replay(key, which, WHO)
        canonical, modelled = self.find(key)
        if modelled is None:
            assert answer == "gone"
        elif self.is_claimed(modelled):
            assert answer == "leased"
        else:
            left = "pending" if modelled.state == "pending" else "nothing"
            reopened = self.reopen(canonical, which)
            assert answer == ("replayed" if reopened else left)
            if reopened:
                modelled.act("replay", which)
                self.happened(canonical, "replayed")

    @rule(key=keys, lose=lost)
    def retry(self, key: str, lose: bool) -> None:
        self.lose_reply = lose
        answer = self.inbox.retry(key, WHO)
        canonical, modelled = self.find(key)
        if modelled is None or modelled.state != "pending":
            assert answer == (modelled.state if modelled else "gone")
        elif self.is_claimed(modelled):
            assert answer == "leased"
        else:
            assert answer == "retried"
            self.take_from_dead(canonical, modelled)
            for handled in modelled.handlers.values():
                if handled.due is not None:
                    handled.due = self.now
            self.leave_line(canonical, modelled)
            modelled.not_before = None
            modelled.act("retry")
            self.wake(canonical)
            self.happened(canonical, "retried")

    @rule(key=keys, lose=lost)
    def adopt(self, key: str, lose: bool) -> None:
        self.lose_reply = lose
        event = Event(key, "verified", "thin", SESSION_OF[key], 1_700_000_000, livemode=False)
        answer = self.inbox.adopt(event, WHO)
        _, modelled = self.find(key)
        if modelled:
            assert answer == modelled.state
            return
        assert answer == "adopted"
        adopted = Modelled(SESSION_OF[key], self.now, len(self.events) + self.wakes, "done")
        adopted.settled, adopted.outcome = self.now, "as_done"
        adopted.act("as-done")
        self.events[key] = adopted
        self.happened(key, "adopted")
        self.heard.add(adopted.session)

    @rule(some=st.lists(keys, max_size=3))
    def list_what_is_listed(self, some: list[str]) -> None:
        with self.inbox.pipeline() as pipe:
            listed = pipe.list_events(some)
        assert listed.result() == 0

    @rule(key=keys, lose=lost)
    def discard(self, key: str, lose: bool) -> None:
        self.lose_reply = lose
        answer = self.inbox.discard(key, WHO)
        canonical, modelled = self.find(key)
        if modelled is None:
            assert answer == "gone"
        elif modelled.state == "done":
            assert answer == "done"
        elif self.is_claimed(modelled):
            assert answer == "leased"
        else:
            assert answer == "discarded"
            self.leave_line(canonical, modelled)
            modelled.act("discard")
            self.settle(canonical, "done", "discarded", modelled.reason or "", modelled.token)
            self.happened(canonical, "discarded")

    @rule(lose=lost)
    def pause(self, lose: bool) -> None:
        self.lose_reply = lose
        self.inbox.pause(STEP, "why")
        # One that would end at the same moment was made a little earlier.
        if self.pause_kept_until <= self.now or self.paused_until <= self.now + STEP:
            self.paused_until = self.pause_kept_until = self.now + STEP

    @rule(lose=lost)
    def sweep(self, lose: bool) -> None:
        self.lose_reply = lose
        self.check_sweep(0.0)

    def check_sweep(self, clock_set: float) -> None:
        swept = self.inbox.sweep()
        woken, late = 0, []
        overdue = [(e.due, key) for key, e in self.pending().items() if e.due <= self.now]
        for _, key in sorted(overdue):
            modelled = self.events[key]
            if self.queue and modelled.wake and modelled.wake >= self.queue[0][1]:
                modelled.due = self.now + max(HORIZON, (self.now - modelled.accepted) / 2)
                late.append(key)
                self.happened(key, "postponed")
            else:
                self.wake(key)
                woken += 1
                self.happened(key, "woken")
        # Events that fell due together may be taken in either order, which changes no count
        # but the numbers of their wake-ups.
        assert (swept.woken, swept.postponed, swept.stale) == (woken, len(late), 0)
        assert abs(swept.clock_set - clock_set) < NEAR
        for key in late:
            # Half of what has really passed is in it: more than passes until it is due.
            due = self.clock() + self.events[key].due - self.now
            assert abs(self.redis.zscore("iw:due", key) / 1000 - due) < NEAR
            self.redis.zadd("iw:due", {key: int(due * 1000)})
        self.learn_wakes()

    def learn_wakes(self) -> None:
        self.queue = []
        for item in self.redis.lrange("rq:queue:identity", 0, -1):
            key, _, number = item.decode().rpartition("-")
            self.queue.append((key, int(number)))
        for key, modelled in self.pending().items():
            wake = self.redis.hget(f"iw:evt:{key}", "wake")
            modelled.wake = None if wake is None else int(wake)

    # --- what happens --------------------------------------------------------------------------

    @rule(steps=steps)
    def time_passes(self, steps: int) -> None:
        self.move_to(self.now + steps * STEP)
        type(self).shift(self.redis, steps * STEP)
        if last := self.inbox._memory.last_sweep:
            moment, clock = last
            passed = steps * STEP
            self.inbox._memory.last_sweep = moment - round(passed * 1000), clock - passed

    @rule(steps=st.integers(2, 700))
    def the_clock_is_set_back(self, steps: int) -> None:
        """To the inbox it is as if no time had passed."""
        self.the_clock_is_set(-steps * STEP)
        self.ahead += steps * STEP
        # Redis itself forgets later.
        if self.pause_kept_until > self.now:
            self.pause_kept_until += steps * STEP
        for session in list(self.locks):
            if self.lock(session):
                key, token, until = self.locks[session]
                self.locks[session] = key, token, until + steps * STEP
        self.holders_get_time_to_renew()
        self.check_sweep(-steps * STEP)

    @rule(steps=st.integers(2, 12))
    def the_clock_is_set_forward(self, steps: int) -> None:
        """What it was set back before is undone; for the rest, holders get time to renew."""
        if steps * STEP - self.ahead == STEP:
            steps += 1  # a millisecond would decide whether the rest is a change of the clock
        self.the_clock_is_set(steps * STEP)
        undone = min(self.ahead, steps * STEP)
        self.ahead -= undone
        # Redis itself forgets earlier: a pause may end, and a session be free.
        self.pause_kept_until -= undone
        for session in list(self.locks):
            key, token, until = self.locks[session]
            self.locks[session] = key, token, until - undone
        self.move_to(self.now + steps * STEP - undone)
        if steps * STEP - undone > STEP + NEAR:
            self.holders_get_time_to_renew()
        self.check_sweep(steps * STEP)

    def holders_get_time_to_renew(self) -> None:
        if self.pause_kept_until <= self.now:
            self.paused_until = self.pause_kept_until = self.now + LEASE

    def the_clock_is_set(self, seconds: float) -> None:
        self.lose_reply = False
        self.check_sweep(0.0)
        # A step is found to the millisecond; what is due at this moment must not become early.
        type(self).shift(self.redis, seconds + 0.1)
        moment, clock = self.inbox._memory.last_sweep
        self.inbox._memory.last_sweep = moment - round(seconds * 1000), clock

    @precondition(lambda self: self.queue)
    @rule()
    def a_wakeup_is_lost(self) -> None:
        taken = self.redis.lpop("rq:queue:identity")
        assert taken.decode() == "{}-{}".format(*self.queue.pop(0))

    # --- what Redis holds ----------------------------------------------------------------------

    def moment(self, text: str, clock: float) -> float:
        """Return when it is for the model: `clock` is the time of the inbox now, in seconds."""
        return self.now + int(text) / 1000 - clock

    def clock(self) -> float:
        seconds, micros = self.redis.time()
        ahead = (self.redis.get("iw:clock") or b"0").split()[0]
        return seconds + micros / 1e6 + int(ahead) / 1000

    @invariant()
    def every_field_of_every_record_is_as_modelled(self) -> None:
        clock = self.clock()
        known = {key.decode()[7:] for key in self.redis.scan_iter("iw:evt:*", count=1000)}
        done = {key.decode()[8:] for key in self.redis.scan_iter("iw:done:*", count=1000)}
        assert known | done == set(self.events)
        assert done == {k for k, e in self.events.items() if e.state == "done"}
        for key, modelled in self.events.items():
            fields = (
                kept_fields(self.redis.get(f"iw:done:{key}").decode())
                if modelled.state == "done"
                else fields_of(self.redis.hgetall(f"iw:evt:{key}"))
            )
            self.compare(key, fields, modelled, clock)

    @invariant()
    def each_outcome_is_counted_once(self) -> None:
        """Also of what was put back, and ended again."""
        counted: Counter[tuple[str, str]] = Counter()
        for day in self.redis.scan_iter("iw:outcomes:*", count=1000):
            for name, count in self.redis.hgetall(day).items():
                kind, outcome, _ = name.decode().split("|")
                counted[kind, outcome] += int(count)
        assert counted == self.outcomes

    @invariant()
    def what_happened_to_it_is_told(self) -> None:
        for key, modelled in self.events.items():
            if modelled.state != "twin":
                record = self.inbox.find(key)
                told = [(act.what, act.by, act.which) for act in record.acts]
                assert told == modelled.acts, key
                failed = [(a.handler, a.number, a.reason) for a in record.attempts]
                assert failed == [(h, n, r.replace(";", ",")) for h, n, r in modelled.trail], key

    def compare(
        self, key: str, fields: Mapping[str, str], modelled: Modelled, clock: float
    ) -> None:
        handlers = {n: Progress.parse(v) for n, v in fields.items() if n.startswith("h:")}
        expected = modelled.record()
        if modelled.state == "dead":
            fields = {name: value for name, value in fields.items() if value}
            expected = {
                name: value for name, value in expected.items() if value is ANY or value != ""
            }
        if modelled.state == "done":
            # It stands in the line in place of the moment.
            fields = {name: value for name, value in fields.items() if name != "took"}
            expected = {
                name: value for name, value in expected.items() if value is ANY or value != ""
            }
        assert set(fields) - set(handlers) == set(expected), (key, fields, expected)
        for name, value in expected.items():
            if isinstance(value, float):
                assert abs(self.moment(fields[name], clock) - value) < NEAR, (key, name, value)
            else:
                assert value == fields[name], (key, name)
        if modelled.state == "twin":
            return
        assert set(handlers) == {f"h:{name}" for name in modelled.handlers}
        for name, handled in modelled.handlers.items():
            progress = handlers[f"h:{name}"]
            seen = progress.status, progress.attempts, progress.reason
            assert seen == (handled.status, handled.attempts, handled.reason)
            assert bool(progress.due) == (handled.due is not None)
            if handled.due is not None:
                assert abs(self.moment(str(progress.due), clock) - handled.due) < NEAR

    @invariant()
    def either_id_finds_the_event(self) -> None:
        for key in SESSION_OF:
            canonical, modelled = self.find(key)
            record = self.inbox.find(key)
            assert (record is None) == (modelled is None)
            if record and modelled:
                assert (record.key, record.state) == (canonical, modelled.state)

    @invariant()
    def the_pending_are_due_exactly_once_and_no_others_are(self) -> None:
        clock = self.clock()
        due = self.redis.zrange("iw:due", 0, -1, withscores=True)
        pending = self.pending()
        assert sorted(member.decode() for member, _ in due) == sorted(pending)
        for member, score in due:
            expected = pending[member.decode()].due
            assert abs(self.moment(str(int(score)), clock) - expected) < NEAR, member

    @invariant()
    def the_dead_are_listed(self) -> None:
        dead = {member.decode() for member in self.redis.zrange("iw:dead", 0, -1)}
        assert dead == {k for k, e in self.events.items() if e.state == "dead"}
        of_sessions, of_causes = [], {}
        for name in self.redis.scan_iter("iw:dead*", count=1000):
            text = name.decode()
            if text.startswith("iw:dead-of:"):
                members = [key.decode() for key in self.redis.lrange(name, 0, -1)]
                assert {SESSION_OF[key][-2:] for key in members} == {text[-2:]}
                of_sessions += members
            elif text.startswith("iw:dead:"):
                handler, _, cause = text.removeprefix("iw:dead:").partition("|")
                for key, score in self.redis.zrange(name, 0, -1, withscores=True):
                    of_causes.setdefault((handler, cause), set()).add(key.decode())
                    assert score == self.redis.zscore("iw:dead", key)
        assert sorted(of_sessions) == sorted(dead)
        expected: dict[tuple[str, str], set[str]] = {}
        for key in dead:
            for pair in self.events[key].deaths():
                expected.setdefault(pair, set()).add(key)
            assert deaths_of(self.inbox.find(key)) == self.events[key].deaths()
        assert of_causes == expected
        assert self.inbox.search.deaths() == {pair: len(has) for pair, has in expected.items()}

    @invariant()
    def every_event_is_listed_once_by_hour_and_by_session(self) -> None:
        expected: dict[str, list[str]] = {}
        for key, modelled in self.events.items():
            name = f"iw:done:{key}" if modelled.state == "done" else f"iw:evt:{key}"
            if modelled.state == "twin":
                continue
            accepted = self.redis.get(name) if modelled.state == "done" else None
            ms = kept_fields(accepted.decode())["accepted"] if accepted else None
            hour = int(ms or self.redis.hget(name, "accepted")) // (HOUR * 1000)
            session = SESSION_OF[key]
            of = f"iw:of:{hour // HOURS_OF}:{session[-2:]}"
            expected.setdefault(f"iw:log:{hour}", []).append(key)
            expected.setdefault(of, []).append(f"{session[-5:-2]} {key}")
        hours = {hour.decode() for hour in self.redis.zrange("iw:hours", 0, -1)}
        found = {}
        for pattern in ("iw:log:*", "iw:of:*"):
            for name in self.redis.scan_iter(pattern, count=1000):
                entries = [entry.decode() for entry in self.redis.lrange(name, 0, -1)]
                # Those that lead to another event stay where they were.
                twins = {k for k, e in self.events.items() if e.state == "twin"}
                left = sorted(e for e in entries if e.rpartition(" ")[2] not in twins)
                if left:
                    found[name.decode()] = left
                assert self.redis.ttl(name) > KEEP - 10_000
        assert found == {name: sorted(entries) for name, entries in expected.items()}
        assert {name[7:] for name in found if name.startswith("iw:log:")} <= hours

    @invariant()
    def a_search_finds_what_there_is(self) -> None:
        for wanted in (
            Filter(),
            *(Filter(state=state) for state in ("pending", "done", "dead")),
            *(Filter(session=session) for session in ("vs_0", "vs_1")),
            *(Filter(state="dead", reason=cause) for cause in ("retry", "failed", "quarantined")),
            Filter(state="dead", handler="a.one"),
            Filter(handler="a.two"),
        ):
            records = {k: self.inbox.find(k) for k, e in self.events.items() if e.state != "twin"}
            matching = {key for key, record in records.items() if wanted.matches(record)}
            found = [record.key for record in self.inbox.search.all(wanted)]
            assert sorted(found) == sorted(matching), wanted
            pages, begin = [], None
            while True:
                page = self.inbox.search.page(wanted, 2, begin)
                pages += [record.key for record in page.records]
                if (begin := page.following) is None:
                    break
            assert pages == found, wanted

    @invariant()
    def sessions_are_held_and_waited_for_as_modelled(self) -> None:
        for session in set(SESSION_OF.values()):
            lock = f"iw:session::{session}"
            held = self.lock(session)
            value = self.redis.get(lock)
            assert (value and value.decode()) == (held and f"{held[0]} {held[1]}")
            if held:
                assert abs(self.redis.pttl(lock) / 1000 - (held[2] - self.now)) < NEAR
            waiting = [key.decode() for key in self.redis.lrange(f"iw:waiting::{session}", 0, -1)]
            assert waiting == self.waiting.get(session, [])

    @invariant()
    def every_queued_wakeup_has_its_job(self) -> None:
        queued = self.redis.lrange("rq:queue:identity", 0, -1)
        assert [item.decode() for item in queued] == [f"{k}-{n}" for k, n in self.queue]
        for item in queued:
            assert self.redis.hget(b"rq:job:" + item, "status") == b"queued"

    @invariant()
    def everything_is_kept_as_long_as_it_should(self) -> None:
        hour = 10_000  # that much time passes in a run at most
        for key, modelled in self.events.items():
            if modelled.state == "done":
                assert 0 <= KEEP - self.redis.ttl(f"iw:done:{key}") < hour
            elif modelled.expires:
                assert 0 <= KEEP - self.redis.ttl(f"iw:evt:{key}") < hour
            else:
                assert self.redis.ttl(f"iw:evt:{key}") == -1
        heard = {}
        for month in self.redis.scan_iter("iw:last:*", count=1000):
            heard |= self.redis.hgetall(month)
            assert 0 <= KEEP_LAST - self.redis.ttl(month) < hour
        assert heard == {f":{session}".encode(): b"verified" for session in self.heard}
        for key in self.redis.scan_iter("iw:answer:*", count=1000):
            assert self.redis.pttl(key) > 0


class Drawn:
    """What a rule draws, decided beforehand."""

    def __init__(self, *values: Any) -> None:
        self.values = list(values)

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        """Return the next value."""
        return self.values.pop(0)


class Walker:
    """Has transitions of one event happen in a given order, by the rules of the machine.

    `second` is the other id of the same change, and `rival` another event of the session. The
    invariants are looked at after every rule.
    """

    key, second, rival = "evt_0", "evt_2", "evt_4"

    def __init__(self, machine: InboxMachine) -> None:
        self.machine = machine
        self.session = SESSION_OF[self.key]

    def walk(self, transitions: list[str]) -> None:
        """Have these happen, one after the other and no others between them."""
        if "second" in transitions:
            self.do("accept", self.second, reopen=False)  # the one of the two that was first
        for number, transition in enumerate(transitions, 1):
            getattr(self, f"have_{transition}")()
            assert self.machine.transitions[self.key] == ["unknown", *transitions[:number]]

    def do(self, rule_name: str, *args: Any, **kwargs: Any) -> None:
        if rule_name not in {"a_wakeup_is_lost", "time_passes"}:
            kwargs["lose"] = False
        getattr(self.machine, rule_name)(*args, **kwargs)
        for each in self.machine.invariants:
            each.function(self.machine)

    @property
    def event(self) -> Modelled:
        return self.machine.events[self.key]

    def claim_on(self, key: str) -> Claim | None:
        """Return the claim that owns this event, also one whose lease ran out."""
        owned = (c for c in self.machine.claims if c.event.key == key and self.machine.owner(c))
        return next(owned, None)

    def have(self, rule_name: str, **kwargs: Any) -> None:
        """Have the claim on the event do something."""
        self.do(rule_name, Drawn(self.claim_on(self.key)), **kwargs)

    def wait_until(self, moment: float) -> None:
        if moment > self.machine.now:
            self.do("time_passes", math.ceil((moment - self.machine.now) / STEP))

    def wait_for_session(self, key: str) -> None:
        """Wait until no other event holds the session."""
        held = self.machine.lock(self.session)
        if held and held[0] != key:
            self.wait_until(held[2])

    def claim(self, key: str) -> None:
        self.wait_until(self.machine.events[key].not_before or 0)
        self.wait_for_session(key)
        self.do("claim", key)

    def have_rival_hold_session(self) -> None:
        self.wait_for_session(self.rival)
        if self.machine.lock(self.session):
            return
        if claim := self.claim_on(self.rival):
            self.do("renew", Drawn(claim))
        else:
            self.do("accept", self.rival, reopen=False)
            self.claim(self.rival)

    def have_second_claimed(self) -> Claim:
        """Have the other id claimed, by a worker that is late: it frees no session."""
        if self.second not in self.machine.events:
            self.do("accept", self.second, reopen=False)
        self.wait_for_session(self.second)
        self.claim(self.second)
        self.wait_until(self.machine.events[self.second].lease or 0)
        claim = self.claim_on(self.second)
        assert claim
        return claim

    def have_accepted(self) -> None:
        self.do("accept", self.key, reopen=False)

    def have_adopted(self) -> None:
        self.do("adopt", self.key)

    def have_claimed(self) -> None:
        self.claim(self.key)

    have_quarantined = have_claimed

    def have_busy(self) -> None:
        self.wait_until(self.event.not_before or 0)
        self.have_rival_hold_session()
        self.do("claim", self.key)

    def have_freed(self) -> None:
        self.have_rival_hold_session()
        claim = self.claim_on(self.rival)
        self.do("release", Drawn(claim), delay=0.0, name=None, fault=False)

    def have_renewed(self) -> None:
        self.wait_for_session(self.key)
        self.have("renew")

    def have_lapsed(self) -> None:
        self.wait_until(self.event.lease or 0)

    def save(self, status: str, why: str) -> None:
        """Write down how a handler fared that had no turn yet, or how another attempt did."""
        name = next((n for n in ("a.one", "a.two") if n not in self.event.handlers), "a.one")
        before = self.event.handlers.get(name)
        attempts = before.attempts + 1 if before else 1
        self.have("save_progress", name=name, status=status, attempts=attempts, why=why)

    def have_succeeded(self) -> None:
        self.save("done", "")

    def have_failed(self) -> None:
        self.save("retry", "retry: a; b|c")

    def have_died(self) -> None:
        self.save("dead", "failed: KeyError at x.py:1")

    def have_noted(self) -> None:
        self.have("note_death", name="a.two")

    def have_released(self) -> None:
        self.have("release", delay=0.0, name=None, fault=True)

    def have_delayed(self) -> None:
        self.have("release", delay=STEP, name=None, fault=False)

    def have_done(self) -> None:
        self.have("finish", state="done", outcome="verified", reason="", name=None)

    def have_dead(self) -> None:
        self.have("finish", state="dead", outcome="", reason="because", name=None)

    def have_single(self) -> None:
        self.do("link", Drawn(self.claim_on(self.key), ""))

    def have_first(self) -> None:
        if claim := self.claim_on(self.key):
            self.do("link", Drawn(claim, self.second))
        else:
            self.do("link", Drawn(self.have_second_claimed(), self.key))

    def have_second(self) -> None:
        if claim := self.claim_on(self.key):
            self.do("link", Drawn(claim, self.second))
        else:
            self.do("link", Drawn(self.have_second_claimed(), self.key))

    def have_replayed(self) -> None:
        self.do("replay", self.key, next(iter(sorted(self.event.handlers)), "all"))

    def have_reopened(self) -> None:
        self.do("accept", self.key, reopen=True)

    def have_retried(self) -> None:
        self.do("retry", self.key)

    def have_discarded(self) -> None:
        self.do("discard", self.key)

    def have_postponed(self) -> None:
        self.wait_until(self.event.due)
        self.do("sweep")

    def have_woken(self) -> None:
        self.wait_until(self.event.due)
        while self.machine.queue:
            self.do("a_wakeup_is_lost")
        self.do("sweep")


@pytest.mark.timeout(900)
def test_the_scripts_agree_with_the_model(redis, shifted, monkeypatch) -> None:
    for name in ("LEASE", "HORIZON", "BUSY_DELAY", "STEP"):
        monkeypatch.setattr(times, name, SCALE * getattr(times, name))
    # Moments that fall together must not come apart again.
    monkeypatch.setattr(times, "CATCH_UP", 0)
    pairs: Counter[tuple[str, str]] = Counter()
    machine = type("Machine", (InboxMachine,), {"redis": redis, "shift": shifted, "pairs": pairs})
    for walk in WALKS:
        Walker(machine()).walk(walk.split())
    assert pairs.keys() == POSSIBLE_PAIRS
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60 if os.environ.get("CI") else 20,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # Shrinking takes minutes: a long example says enough.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
    assert pairs.keys() == POSSIBLE_PAIRS  # steps by chance have added none
