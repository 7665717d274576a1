"""`workers.jobs`: one event from claimed to settled, against a real Redis and the sandbox."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from typing import Any

import pytest
import redis as redis_py

from identity_webhooks import Discard, Retry, Verification, on
from identity_webhooks.event import Event, Kind
from identity_webhooks.verification import Sensitive
from service.inbox import AcceptResult, Inbox, Pipeline, Refused
from tests.conftest import CANARY, free_port, wait_until
from workers import (
    dispatch,
    ending,
    failures,
    fetching,
    heartbeat,
    http,
    jobs,
    router,
    stop,
    stripe_api,
)
from workers.failures import StripeFailure
from workers.in_hand import InHand
from workers.jobs import Processor
from workers.own_process import NotRun, OwnProcess
from workers.stripe_api import StripeApi

DOB = "verified_outputs.dob"
NUMBER = "last_verification_report.document.number"


class Seen(list[Verification]):
    """What a handler was given, run by run."""

    def handler(self, *events: Any, name: str = "handle", **words: Any) -> Callable[..., None]:
        def handle(v: Verification) -> None:
            self.append(v)

        handle.__name__ = name
        return on(*events, **words)(handle)


def looked_twice(desk, processor: Processor, event: Event, kind: str) -> None:
    """Take turns until Stripe was asked a second time, after which the event still waits."""

    def asked_again() -> bool:
        desk.turn(processor)
        return desk.counts().get(f"fetches|{kind}", 0) > 1

    wait_until(asked_again)
    assert desk.record(event).state == "pending"


def make_older(desk, event: Event, seconds: float) -> None:
    """Have the event accepted so much earlier."""
    desk.redis.hincrby(f"iw:evt:{event.key}", "accepted", int(-seconds * 1000))


def raising(error: Callable[[Verification], BaseException], **words: Any) -> Callable[..., None]:
    """Return a handler that raises what this makes."""

    @on("*", **words)
    def failing(v: Verification) -> None:
        raise error(v)

    return failing


def first_name(v: Verification) -> str:
    name = v.session.verified_outputs.first_name
    assert CANARY in name, "the handler does see it"
    return name


def statuses(record: Any) -> dict[str, tuple[str, int]]:
    return {name: (p.status, p.attempts) for name, p in record.handlers.items()}


class TestOneEvent:
    def test_every_handler_sees_the_session_as_it_is_now(self, desk) -> None:
        session = desk.sandbox.session("verified", client_reference_id="u-1")
        seen = Seen()
        event = desk.accept("verified", session)
        record = desk.settle(desk.processor(seen.handler("verified")), event)
        assert (record.state, record.outcome, record.reason) == ("done", "verified", "")
        assert statuses(record) == {"p.handle": ("done", 1)}
        (v,) = seen
        assert v.event == event
        assert (v.subject, v.outcome.kind, v.attempt, v.superseded) == ("u-1", "verified", 1, False)
        assert v.idempotency_key == f"{event.key}:p.handle"
        assert CANARY in v.session.verified_outputs.last_name
        assert v.report.document.status == "verified"

    def test_is_fetched_once_for_all_its_handlers(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(*(seen.handler("*", name=name) for name in "abc"))
        record = desk.settle(processor, desk.accept("verified", desk.sandbox.session("verified")))
        assert list(statuses(record)) == ["p.a", "p.b", "p.c"]
        assert len(seen) == 3
        assert desk.counts()["fetches|ok"] == 1

    def test_a_surplus_wake_up_runs_nothing_again(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(seen.handler("*"))
        event = desk.accept("created", desk.sandbox.session())
        desk.settle(processor, event)
        for key in (event.key, "evt_unknown"):
            desk.wake(key)
            desk.turn(processor)
        assert len(seen) == 1
        counts = desk.counts()
        assert (counts["claims|done"], counts["claims|gone"]) == (1, 1)

    def test_of_a_connected_account_is_fetched_there(self, desk) -> None:
        account = "acct_1Connected"
        session = desk.sandbox.session("verified", account=account)
        seen = Seen()
        processor = desk.processor(seen.handler("*"), restricted_key="rk_test_x")
        event = desk.accept("verified", session, account=account)
        assert desk.settle(processor, event).state == "done"
        assert seen[0].idempotency_key == f"acct_1Connected-{event.id}:p.handle"

    def test_without_a_handler_is_settled_unfetched(self, desk) -> None:
        processor = desk.processor(Seen().handler("canceled"))
        record = desk.settle(processor, desk.accept("verified", "vs_nowhere"))
        assert (record.state, record.outcome, record.handlers) == ("done", "no_handler", {})
        assert not any(name.startswith("fetches") for name in desk.counts())

    def test_a_reason_filter_skips_what_does_not_fit(self, desk) -> None:
        session = desk.sandbox.session("document_expired")
        seen = Seen()
        processor = desk.processor(
            seen.handler("requires_input", name="expired", reason=["document_expired"]),
            seen.handler("requires_input", name="left", reason=["abandoned", "consent_declined"]),
        )
        record = desk.settle(processor, desk.accept("requires_input", session))
        assert statuses(record) == {"p.expired": ("done", 1), "p.left": ("skipped", 0)}
        assert (record.state, record.outcome) == ("done", "needs_input")
        assert record.reason == "document_expired"
        assert [v.outcome.user_can_retry for v in seen] == [True]

    def test_is_counted_and_logged(self, desk) -> None:
        event = desk.accept("verified", desk.sandbox.session("verified"))
        desk.settle(desk.processor(Seen().handler("*")), event)
        counts = desk.counts()
        assert counts["settled|done|verified"] == counts["handler_runs|p.handle|done"] == 1
        (line,) = desk.logged("event_settled")
        assert (line["event_id"], line["state"]) == (event.id, "done")

    def test_each_run_is_timed_once_however_it_ends(self, desk) -> None:
        def observed() -> dict[str, int]:
            found: Counter[str] = Counter()
            for name, by in desk.counts().items():
                if not name.endswith("|sum") and "_seconds|" in name:
                    found[name.rpartition("|")[0]] += int(by)
            return dict(found)

        unsteady = raising(lambda v: Retry("", delay=0) if v.attempt == 1 else Discard("no"))
        handlers = Seen().handler("*"), unsteady, Seen().handler("canceled", name="beside")
        event = desk.accept("verified", desk.sandbox.session("verified"))
        desk.settle(desk.processor(*handlers), event)
        assert observed() == {
            "handler_seconds|p.handle": 1,
            "handler_seconds|p.failing": 2,
            "wait_seconds": 1,
            "start_seconds": 2,
            "settle_seconds": 1,
        }, "of two claims, the second of which waited for a retry"

    @pytest.mark.parametrize("again", ["Stripe fails", "a retry", "its worker dies"])
    def test_how_long_it_waited_for_a_worker_is_observed_once(
        self, again, desk, monkeypatch
    ) -> None:
        """At the first claim: what it waits for after that is no want of workers."""
        event = desk.accept("verified", desk.sandbox.session("verified"))
        first = raising(lambda v: Retry("", delay=0)) if again == "a retry" else Seen().handler("*")
        processor = desk.processor(first)
        if again == "Stripe fails":
            desk.sandbox.fault("error", status=500)
        if again == "its worker dies":
            monkeypatch.setattr(OwnProcess, "run", lambda *_: None)
            (claim,) = processor.claim()
            processor._heartbeat.end(claim)
            desk.redis.hset(f"iw:evt:{event.key}", "lease", 1)
            desk.wake(event.key)
        else:
            desk.turn(processor)
        desk.settle(desk.processor(Seen().handler("*", name=first.__name__)), event)
        waits = {
            name: by
            for name, by in desk.counts().items()
            if name.startswith("wait_seconds|") and not name.endswith("|sum")
        }
        assert sum(waits.values()) == 1

    def test_of_two_runs_for_a_session_the_later_has_the_larger_order(self, desk) -> None:
        """Also of one event: whoever wrote first with an older reading is told apart."""
        orders: list[int] = []

        @on("*", superseded=True)
        def unsteady(v: Verification) -> None:
            orders.append(v.order)
            if v.attempt == 1:
                raise Retry("later", delay=0)

        session = desk.sandbox.session("verified")
        processor = desk.processor(unsteady)
        events = [desk.accept(kind, session, age=9) for kind in ("verified", "processing")]
        began = desk.now()
        for event in events:
            desk.settle(processor, event)
            time.sleep(0.01)
        assert len(orders) == 4
        assert orders == sorted(set(orders))
        assert began <= orders[0] <= orders[-1] <= desk.now()

    def test_a_handler_that_runs_for_long_keeps_its_event(self, desk) -> None:
        """And the claim that waits for a thread meanwhile: both are renewed before they end."""
        done = threading.Event()

        @on("*")
        def slow(_: Verification) -> None:
            done.wait(120)

        events = [desk.accept("created", desk.sandbox.session()) for _ in range(2)]
        processor = desk.processor(slow)
        claims = processor.claim(2)
        leases = [int(desk.fields(event)[b"lease"]) for event in events]
        thread = threading.Thread(target=processor.process, args=(claims[0],))
        thread.start()
        try:
            for event, lease in zip(events, leases, strict=True):
                wait_until(lambda e=event, x=lease: int(desk.fields(e)[b"lease"]) > x)
                assert desk.now() < lease, "nobody could have taken it"
        finally:
            done.set()
            thread.join()
        processor.process(claims[1])
        assert [desk.record(event).state for event in events] == ["done", "done"]
        assert [desk.record(event).claims for event in events] == [1, 1]


class TestBothForms:
    """An account with destinations of both forms gets each change twice, under two ids."""

    @pytest.mark.parametrize("first", ["thin", "snapshot"])
    def test_one_change_is_handled_once(self, first, desk) -> None:
        session, thin_id = desk.sandbox.session_and_thin_event()
        snapshot_id = desk.sandbox.api().retrieve_thin_event(thin_id).snapshot_event
        forms = [("thin", thin_id), ("snapshot", snapshot_id)]
        for form, id_ in forms if first == "thin" else reversed(forms):
            desk.accept("created", session, id=id_, form=form)
        seen = Seen()
        processor = desk.processor(seen.handler("*"))
        for _ in range(3):
            desk.turn(processor)
        assert [v.idempotency_key for v in seen] == [f"{snapshot_id}:p.handle"]
        thin, snapshot = (desk.inbox.find(id_) for _, id_ in forms)
        assert thin == snapshot, "either id means the one that was accepted first"
        assert thin.event.form == first
        twin = [("thin", "done", "twin")] if first == "snapshot" else []
        ended = [
            (each["form"], each["state"], each["outcome"]) for each in desk.logged("event_settled")
        ]
        assert ended == [(first, "done", "created"), *twin]
        counted = {name: n for name, n in desk.counts().items() if name.startswith("settled|")}
        assert counted == {f"settled|{state}|{outcome}": 1 for _, state, outcome in ended}
        assert (thin.state, statuses(thin)) == ("done", {"p.handle": ("done", 1)})

    def test_its_other_form_may_come_days_later(self, desk) -> None:
        session, thin_id = desk.sandbox.session_and_thin_event()
        seen = Seen()
        thin = desk.accept("created", session, id=thin_id, form="thin")
        assert desk.settle(desk.processor(seen.handler("*")), thin).state == "done"
        snapshot_id = desk.sandbox.api().retrieve_thin_event(thin_id).snapshot_event
        assert seen[0].idempotency_key == f"{snapshot_id}:p.handle"
        late = dataclasses.replace(thin, id=snapshot_id, form="snapshot")
        assert desk.inbox.accept(late) is AcceptResult.DONE

    def test_one_that_stripe_keeps_no_more_is_its_own(self, desk, monkeypatch) -> None:
        monkeypatch.setattr(failures, "backoff", lambda *_: 0.1)
        seen = Seen()
        event = desk.accept("created", desk.sandbox.session(), form="thin")
        accepted = int(desk.fields(event)[b"accepted"]) - failures.RECHECK * 1000
        desk.redis.hset(f"iw:evt:{event.key}", "accepted", accepted)
        assert desk.settle(desk.processor(seen.handler("*")), event).state == "done"
        assert seen[0].idempotency_key == f"{event.id}:p.handle"


class TestAnswers:
    def test_retry_runs_it_again_and_no_other(self, desk) -> None:
        runs = []
        seen = Seen()

        @on("*")
        def unsteady(v: Verification) -> None:
            runs.append(v.attempt)
            if v.attempt < 3:
                raise Retry("ledger is closed", delay=0)

        processor = desk.processor(seen.handler("*", name="a"), unsteady)
        event = desk.accept("created", desk.sandbox.session())
        desk.turn(processor)
        halfway = desk.record(event)
        assert statuses(halfway) == {"p.a": ("done", 1), "p.unsteady": ("retry", 1)}
        assert halfway.handlers["p.unsteady"].reason == "retry: ledger is closed"
        record = desk.settle(processor, event)
        assert statuses(record) == {"p.a": ("done", 1), "p.unsteady": ("done", 3)}
        assert (record.state, runs, len(seen)) == ("done", [1, 2, 3], 1)

    def test_retry_waits_as_long_as_it_says(self, desk) -> None:
        event = desk.accept("created", desk.sandbox.session())
        processor = desk.processor(raising(lambda _: Retry("later", delay=30)))
        began = desk.now()
        desk.turn(processor)
        assert began + 30_000 <= desk.due(event) <= desk.now() + 30_000
        desk.wake(event.key)
        desk.turn(processor)
        assert desk.counts()["claims|early"] == 1
        assert statuses(desk.record(event)) == {"p.failing": ("retry", 1)}

    def test_the_shortest_of_several_waits_counts(self, desk) -> None:
        soon, late = (
            raising(lambda _, delay=delay: Retry("", delay=delay)) for delay in (20, 3000)
        )
        soon.__name__, late.__name__ = "soon", "late"
        event = desk.accept("created", desk.sandbox.session())
        began = desk.now()
        desk.turn(desk.processor(late, soon))
        assert began + 20_000 <= desk.due(event) <= desk.now() + 20_000

    def test_discard_is_dead_at_once(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(
            raising(lambda _: Discard("no such user")), seen.handler("*", name="z")
        )
        record = desk.settle(processor, desk.accept("created", desk.sandbox.session()))
        assert (record.state, record.outcome) == ("dead", "created")
        assert record.reason == "p.failing: discarded: no such user"
        assert statuses(record) == {"p.failing": ("dead", 1), "p.z": ("done", 1)}

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_a_timeout_holds_up_no_handler_after_it(self, desk, monkeypatch) -> None:
        """The process ends with it; the next one runs the others at once."""
        left, seen = threading.Event(), Seen()

        def leave(_: int) -> None:
            left.set()
            raise SystemExit  # ends the thread, in place of the process

        monkeypatch.setattr(heartbeat.os, "_exit", leave)
        monkeypatch.setattr(router, "backoff", lambda *_: 1000.0)

        @on("*", timeout=0.3)
        def hanging(_: Verification) -> None:
            left.wait(120)

        event = desk.accept("created", desk.sandbox.session())
        began = desk.now()
        desk.turn(desk.processor(hanging, seen.handler("*", name="z")))
        assert statuses(desk.record(event)) == {"p.hanging": ("retry", 1)}
        desk.turn(desk.processor(hanging, seen.handler("*", name="z")))
        assert statuses(desk.record(event)) == {"p.hanging": ("retry", 1), "p.z": ("done", 1)}
        assert began + 1_000_000 <= desk.due(event) <= desk.now() + 1_000_000

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize("why", ["timeout", "grace"])
    def test_all_that_its_process_had_in_hand_is_given_back_and_spent_no_attempt(
        self, why, desk, monkeypatch
    ) -> None:
        """One is run, with more time than the one that hangs, and one waits for a thread."""
        left, go_on, running = threading.Event(), threading.Event(), threading.Event()

        def leave(_: int) -> None:
            left.set()
            raise SystemExit  # ends the thread, in place of the process

        monkeypatch.setattr(heartbeat.os, "_exit", leave)

        @on("verified", timeout=0.3 if why == "timeout" else 60)
        def hanging(_: Verification) -> None:
            go_on.wait(120)

        @on("created")
        def slow(_: Verification) -> None:
            running.set()
            go_on.wait(120)

        processor = desk.processor(hanging, slow)
        created = [desk.accept("created", desk.sandbox.session()) for _ in range(2)]
        hung = desk.accept("verified", desk.sandbox.session("verified"))
        claims = {claim.event.key: claim for claim in processor.claim(3)}
        threads = [
            threading.Thread(target=processor.process, args=(claims[event.key],))
            for event in (created[0], hung)
        ]
        try:
            threads[0].start()
            assert running.wait(120)
            threads[1].start()
            if why == "grace":
                desk.stop.requested_at = time.monotonic() - stop.GRACE - 1
            assert left.wait(120)
            spent = {"p.hanging": ("retry", 1)} if why == "timeout" else {}
            for event, expected in [(created[0], {}), (created[1], {}), (hung, spent)]:
                record = desk.record(event)
                assert (record.state, statuses(record)) == ("pending", expected)
                assert not desk.fields(event).keys() & {b"lease", b"lapses", b"suspect"}
            assert desk.redis.llen("rq:queue:identity") == 3, "each is woken at once"
            assert len(desk.logged("handler_timeout")) == len(spent)
        finally:
            go_on.set()
            for thread in threads:
                if thread.ident:
                    thread.join()
        assert statuses(desk.record(created[0])) == {}, "a late result does not count"

    def test_three_days_count_from_its_first_failure(self, desk, redis) -> None:
        """What it waited for Stripe before is no failure of its own."""
        last: list[bool] = []

        def attempt(v: Verification) -> Exception:
            last.append(v.last_attempt)
            return Retry("closed", delay=0)

        processor = desk.processor(raising(attempt))
        event = desk.accept("created", desk.sandbox.session())
        record, days = f"iw:evt:{event.key}", 4 * 86_400_000

        def earlier(name: str, moment: str | bytes) -> int:
            return redis.hset(record, name, int(moment) - days)

        earlier("accepted", desk.fields(event)[b"accepted"])
        desk.turn(processor)
        assert statuses(desk.record(event)) == {"p.failing": ("retry", 1)}
        *parts, since = desk.fields(event)[b"h:p.failing"].split(b"|")
        redis.hset(record, "h:p.failing", b"|".join([*parts, b"%d" % (int(since) - days)]))
        assert statuses(desk.settle(processor, event)) == {"p.failing": ("dead", 2)}
        assert last == [False, True]

    def test_exhausted_retries_are_dead(self, desk) -> None:
        processor = desk.processor(raising(lambda _: Retry("closed", delay=0), retries=2))
        record = desk.settle(processor, desk.accept("created", desk.sandbox.session()))
        assert statuses(record) == {"p.failing": ("dead", 3)}
        assert record.reason == "p.failing: retry: closed"

    @pytest.mark.parametrize("answer", [Retry, Discard])
    @pytest.mark.parametrize(
        "text",
        ["a|b|c", "a\nb", "\udcff", "x" * 5_000_000, ""],
        ids=["bars", "lines", "surrogate", "5 MB", "nothing"],
    )
    def test_any_reason_can_be_written_down(self, answer, text, desk) -> None:
        event = desk.accept("created", desk.sandbox.session())
        processor = desk.processor(raising(lambda _: answer(text), retries=0))
        record = desk.settle(processor, event)
        assert statuses(record) == {"p.failing": ("dead", 1)}
        assert len(record.handlers["p.failing"].reason) <= 220
        assert "\n" not in record.reason


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Uninitialised(Retry):
    def __init__(self) -> None: ...


ERRORS: dict[str, Callable[[Verification], BaseException]] = {
    "Exception": lambda v: ValueError(first_name(v)),
    "SystemExit": lambda v: SystemExit(first_name(v)),
    "BaseException": lambda v: BaseException(first_name(v)),
    "KeyboardInterrupt": lambda v: KeyboardInterrupt(first_name(v)),
    "GeneratorExit": lambda _: GeneratorExit(),
    "unprintable": lambda _: Unprintable(),
    "huge": lambda v: RuntimeError(first_name(v) * 200_000),
    "type": lambda v: type(first_name(v), (Exception,), {})(),
    "Retry": lambda v: Retry(f"no account for {first_name(v)}"),
    "Discard": lambda v: Discard(first_name(v).upper()),
    "Retry of an object": lambda v: Retry(v.session),  # type: ignore[arg-type]
    "Discard of the unprintable": lambda _: Discard(Unprintable()),  # type: ignore[arg-type]
    "Retry uninitialised": lambda _: Uninitialised(),
    "group": lambda v: BaseExceptionGroup(first_name(v), [ValueError(first_name(v))]),
}


class TestFailures:
    """That neither log nor Redis holds the canary is looked at after each test."""

    @pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
    def test_hurts_neither_the_worker_nor_the_others_nor_anyones_privacy(self, error, desk) -> None:
        seen = Seen()
        processor = desk.processor(
            raising(error, retries=1), seen.handler("*", name="a"), seen.handler("*", name="z")
        )
        event = desk.accept("verified", desk.sandbox.session("verified"))
        record = desk.settle(processor, event)
        ran = 1 if "discarded" in record.reason else 2
        assert statuses(record) == {
            "p.failing": ("dead", ran),
            "p.a": ("done", 1),
            "p.z": ("done", 1),
        }
        assert (record.state, record.outcome, len(seen)) == ("dead", "verified", 2)
        assert len(desk.logged("handler_failed")) == ran

    def test_the_reason_is_a_type_and_a_place(self, desk) -> None:
        processor = desk.processor(raising(lambda v: ValueError(first_name(v)), retries=0))
        record = desk.settle(processor, desk.accept("verified", desk.sandbox.session("verified")))
        kind, _, place = record.handlers["p.failing"].reason.partition(" at ")
        assert kind == "failed: ValueError"
        assert place.endswith(" failing")
        assert "test_processor.py:" in place

    def test_sys_exit_is_the_handlers_failure(self, desk) -> None:
        @on("*", retries=0)
        def leaving(_: Verification) -> None:
            sys.exit(0)

        record = desk.settle(
            desk.processor(leaving), desk.accept("created", desk.sandbox.session())
        )
        assert record.reason.startswith("p.leaving: failed: SystemExit at ")

    def test_handlers_own_logs_are_masked(self, desk) -> None:
        @on("*")
        def chatty(v: Verification) -> None:
            v.log.info(f"hello {first_name(v)}", reason=str(v.session))  # noqa: G004

        desk.settle(
            desk.processor(chatty), desk.accept("verified", desk.sandbox.session("verified"))
        )
        (line,) = desk.logged("hello [personal]")
        assert (line["handler"], line["attempt"]) == ("p.chatty", 1)
        assert line["event_id"] == "evt_1"


class TestTime:
    """Handlers see no state from before another they saw, and none twice at once."""

    def test_what_a_later_state_has_overtaken(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(
            seen.handler("*", name="usual"), seen.handler("*", name="all", superseded=True)
        )
        event = desk.accept("processing", desk.sandbox.session("verified"))
        record = desk.settle(processor, event)
        assert statuses(record) == {"p.all": ("done", 1), "p.usual": ("superseded", 0)}
        assert (record.state, record.outcome) == ("done", "superseded")
        (v,) = seen
        assert (v.superseded, v.outcome.kind) == (True, "verified")
        assert desk.logged("handler_superseded") == [], "nothing had failed"

    def test_a_read_from_before_the_event_is_repeated(self, desk) -> None:
        session = desk.sandbox.session()
        seen = Seen()
        processor = desk.processor(seen.handler("*"))
        event = desk.accept("verified", session)
        desk.turn(processor)
        assert (desk.record(event).reason, seen) == ("stripe: stale", [])
        desk.sandbox.control(f"sessions/{session.id}/submit", outcome="verified")
        assert desk.settle(processor, event).outcome == "verified"
        assert [v.attempt for v in seen] == [1]

    def test_but_not_for_ever(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(seen.handler("*", superseded=True))
        event = desk.accept("verified", desk.sandbox.session())
        looked_twice(desk, processor, event, "stale")
        make_older(desk, event, failures.STALE_FOR)
        record = desk.settle(processor, event)
        assert (record.state, record.outcome) == ("done", "superseded")
        assert seen[0].outcome.kind == "needs_input", "it has been more than created"

    def test_a_late_event_is_read_once_more_and_believed(self, desk, monkeypatch) -> None:
        """Its session may have gone back since: a person can set it back in the Dashboard.

        The first read may be behind all the same, whenever it comes.
        """
        monkeypatch.setattr(failures, "backoff", lambda *_: 0.1)
        event = desk.accept("verified", desk.sandbox.session("document_expired"))
        accepted = int(desk.fields(event)[b"accepted"]) - failures.STALE_FOR * 1000
        desk.redis.hset(f"iw:evt:{event.key}", "accepted", accepted)
        processor = desk.processor(Seen().handler("*"))
        desk.turn(processor)
        assert (desk.record(event).state, desk.record(event).reason) == ("pending", "stripe: stale")
        record = desk.settle(processor, event)
        assert (record.state, record.outcome) == ("done", "superseded")

    def test_a_status_that_was_set_back_reaches_its_handlers(self, desk) -> None:
        """In the Dashboard's override the session has no `last_error`, as if it were new."""
        seen = Seen()
        processor = desk.processor(seen.handler("requires_input"))
        event = desk.accept("requires_input", desk.sandbox.session())
        desk.turn(processor)
        record = desk.record(event)
        assert (record.state, record.outcome, record.reason) == ("done", "needs_input", "")
        (v,) = seen
        assert (v.outcome.kind, v.outcome.reason, v.superseded) == ("needs_input", None, False)
        assert desk.counts().get("fetches|stale") is None

    def test_redaction_unverifies_nobody(self, desk) -> None:
        session = desk.sandbox.session("verified")
        desk.sandbox.api().redact_session(session.id)
        desk.sandbox.control(f"sessions/{session.id}/complete")
        seen = Seen()
        processor = desk.processor(
            seen.handler("verified", name="grant", needs=[DOB, NUMBER]),
            seen.handler("redacted", name="forget"),
            restricted_key="rk_test_x",
        )
        for kind in ("verified", "redacted"):
            record = desk.settle(processor, desk.accept(kind, session))
            assert (record.state, record.outcome) == ("done", kind)
        granted, forgotten = seen
        assert (granted.outcome.kind, granted.redacted, granted.superseded) == (
            *("verified", True, False),
        )
        assert granted.session.verified_outputs.first_name is None
        assert granted.report.document.last_name is None
        assert (granted.sensitive.dob, granted.sensitive.document_number) == (None, None)
        assert (forgotten.outcome.kind, forgotten.redacted) == ("redacted", True)

    def test_what_failed_and_is_then_overtaken_is_seen(self, desk) -> None:
        session = desk.sandbox.session("document_expired")
        processor = desk.processor(raising(lambda _: Retry("mail is down", delay=0)))
        event = desk.accept("requires_input", session)
        desk.turn(processor)
        desk.sandbox.control(f"sessions/{session.id}/submit", outcome="verified")
        accepted = int(desk.fields(event)[b"accepted"]) - failures.STALE_FOR * 1000
        desk.redis.hset(f"iw:evt:{event.key}", "accepted", accepted)
        record = desk.settle(processor, event)
        assert statuses(record) == {"p.failing": ("superseded", 1)}
        assert record.handlers["p.failing"].reason == "retry: mail is down"
        (line,) = desk.logged("handler_superseded")
        assert (line["handler"], line["attempt"], line["event_id"]) == ("p.failing", 1, event.id)
        assert (line["status"], line["reason"]) == ("superseded", "retry: mail is down")
        assert desk.counts()["handler_runs|p.failing|superseded"] == 1

    def test_two_events_of_one_session_never_run_at_once(self, desk) -> None:
        session = desk.sandbox.session("verified")
        running, go_on = threading.Event(), threading.Event()
        runs: list[str] = []

        @on("*", superseded=True)
        def slow(v: Verification) -> None:
            runs.append(f"{v.event.id} begins")
            if v.event.id == "evt_1":
                running.set()
                assert go_on.wait(120)
            runs.append(f"{v.event.id} ends")

        processor = desk.processor(slow)
        _, second = (desk.accept(kind, session) for kind in ("processing", "verified"))
        other = desk.accept("created", desk.sandbox.session())
        thread = threading.Thread(target=desk.turn, args=(processor,))
        thread.start()
        assert running.wait(120)
        desk.turn(processor)
        assert desk.counts()["claims|busy"] == 1
        assert desk.record(second).handlers == {}
        assert desk.record(other).state == "done", "another session does not wait"
        go_on.set()
        thread.join()
        assert statuses(desk.settle(processor, second)) == {"p.slow": ("done", 1)}
        assert [run for run in runs if not run.startswith(other.id)] == [
            *("evt_1 begins", "evt_1 ends", "evt_2 begins", "evt_2 ends")
        ]

    def test_a_claim_that_was_lost_starts_nothing_more(self, desk) -> None:
        seen = Seen()

        @on("*")
        def slow(v: Verification) -> None:
            # Meanwhile another worker got the event: its token is higher.
            desk.redis.hincrby(f"iw:evt:{v.event.key}", "token", 1)

        event = desk.accept("created", desk.sandbox.session())
        desk.turn(desk.processor(slow, seen.handler("*", name="z")))
        assert (desk.record(event).state, desk.record(event).handlers, seen) == ("pending", {}, [])
        (line,) = desk.logged("claim_lost")
        assert (line["handler"], line["event_id"]) == ("p.slow", event.id)
        assert line["session_id"] == event.session
        assert desk.counts()["handler_runs|p.slow|lost"] == 1

    def test_the_end_of_a_late_run_leaves_the_next_claim_of_its_process_alive(self, desk) -> None:
        running, go_on = threading.Event(), threading.Event()

        @on("*")
        def slow(_: Verification) -> None:
            running.set()
            assert go_on.wait(120)

        event = desk.accept("created", desk.sandbox.session())
        processor = desk.processor(slow)
        (late,) = processor.claim()
        thread = threading.Thread(target=processor.process, args=(late,))
        thread.start()
        assert running.wait(120)
        desk.redis.hset(f"iw:evt:{event.key}", "lease", 1)
        desk.wake(event.key)
        (claim,) = processor.claim()
        go_on.set()
        thread.join()
        assert claim.token != late.token
        assert processor._heartbeat.count() == 1, "or its lease would run out while it is run"

    @pytest.mark.parametrize("noticed", [False, True])
    def test_nor_is_the_result_of_the_last_handler_counted_as_done(self, noticed, desk) -> None:
        """Whether the heartbeat has seen it meanwhile or not."""
        claims = []

        @on("*")
        def slow(v: Verification) -> None:
            desk.redis.hincrby(f"iw:evt:{v.event.key}", "token", 1)
            if noticed:
                assert not desk.inbox.renew(claims[0])

        event = desk.accept("created", desk.sandbox.session())
        processor = desk.processor(slow)
        claims += processor.claim()
        processor.process(claims[0])
        assert desk.record(event).state == "pending"
        assert [line["handler"] for line in desk.logged("claim_lost")] == ["p.slow"]
        runs = {name: by for name, by in desk.counts().items() if name.startswith("handler_runs")}
        assert runs == {"handler_runs|p.slow|lost": 1}

    @pytest.mark.parametrize("when", ["it is released", "it is dead", "its other form is known"])
    def test_what_is_lost_before_a_handler_runs_ends_for_nobody(
        self, when, desk, monkeypatch
    ) -> None:
        """Another worker has the event, and says how it went."""
        form = "thin" if when == "its other form is known" else "snapshot"
        event = desk.accept("created", desk.sandbox.session(), form=form)
        before = desk.fields(event).get(b"token", b"0")
        api = desk.sandbox.api()

        def lose(*_: object) -> None:
            desk.redis.hincrby(f"iw:evt:{event.key}", "token", 1)
            if form == "snapshot":
                raise StripeFailure("broken" if when == "it is released" else "invalid")

        monkeypatch.setattr(api, "snapshot_of" if form == "thin" else "fetch", lose)
        seen = Seen()
        desk.turn(desk.processor(seen.handler("*"), api=api))
        record = desk.record(event)
        assert (record.state, record.reason, record.handlers, seen) == ("pending", "", {}, [])
        assert int(desk.fields(event)[b"token"]) == int(before) + 2, "of the other's claim"
        (line,) = desk.logged("claim_lost")
        assert (line.get("handler"), line["event_id"]) == (None, event.id)
        assert desk.logged("event_settled") == []
        ends = ("settled|", "settle_seconds|", "handler_runs|")
        assert not any(name.startswith(ends) for name in desk.counts())


class TestStripeFails:
    """No failure of Stripe's is the handler's: it spends no attempt."""

    def released(self, desk, event: Event, reason: str) -> None:
        record = desk.record(event)
        assert (record.state, record.reason, record.handlers) == ("pending", reason, {})

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            ({"kind": "rate_limit"}, "stripe: limited 429 rate_limit"),
            ({"kind": "lock_timeout"}, "stripe: locked 429 lock_timeout"),
            ({"kind": "error", "status": 409}, "stripe: locked 409"),
            ({"kind": "error", "status": 500}, "stripe: broken 500"),
            ({"kind": "error", "status": 503}, "stripe: broken 503"),
            ({"kind": "timeout", "seconds": 30}, "stripe: unreachable TIMEOUT"),
            ({"kind": "cut"}, "stripe: unreachable"),
        ],
        ids=str,
    )
    def test_for_a_while(self, fault, reason, desk, monkeypatch) -> None:
        event = desk.accept("verified", desk.sandbox.session("verified"))
        seen = Seen()
        processor = desk.processor(seen.handler("*"))
        desk.sandbox.fault(**fault)
        with monkeypatch.context() as patch:
            if fault["kind"] == "timeout":
                patch.setattr(http, "READ_TIMEOUT", 0.3)
            desk.turn(processor)
        self.released(desk, event, reason)
        assert desk.settle(processor, event).state == "done"
        assert [v.attempt for v in seen] == [1]

    def test_not_answering_at_all(self, desk) -> None:
        event = desk.accept("created", "vs_1")
        nobody = StripeApi("sk_test_x", base=f"http://127.0.0.1:{free_port()}")
        desk.turn(desk.processor(Seen().handler("*"), api=nobody))
        self.released(desk, event, "stripe: unreachable ECONNREFUSED")

    def test_a_hanging_connection_ends(self, desk, monkeypatch) -> None:
        monkeypatch.setattr(http, "READ_TIMEOUT", 0.3)
        event = desk.accept("created", "vs_1")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            api = StripeApi("sk_test_x", base=f"http://127.0.0.1:{port}")
            processor = desk.processor(Seen().handler("*"), api=api)
            started = time.monotonic()
            desk.turn(processor)
        assert time.monotonic() - started < 8, "not the ten seconds of before"
        self.released(desk, event, "stripe: unreachable TIMEOUT")

    def test_retry_after_is_honoured(self, desk) -> None:
        event = desk.accept("created", desk.sandbox.session())
        desk.sandbox.fault("rate_limit", retry_after=7)
        began = desk.now()
        desk.turn(desk.processor(Seen().handler("*")))
        assert began + 6_500 <= desk.due(event) <= desk.now() + 7_100
        assert desk.inbox.claim() == [Refused.PAUSED], "the limit is everyone's"
        assert began + 7_000 <= desk.inbox.paused()[0] * 1000 <= desk.due(event)

    @pytest.mark.parametrize("delay", [0.0, 0.0001])
    def test_the_shortest_wait_is_one_too(self, delay, desk, monkeypatch) -> None:
        monkeypatch.setattr(failures, "backoff", lambda *_: delay)
        event = desk.accept("created", desk.sandbox.session())
        desk.sandbox.fault("rate_limit")
        desk.turn(desk.processor(Seen().handler("*")))
        self.released(desk, event, "")

    def test_the_sdk_tries_twice(self, desk, monkeypatch) -> None:
        monkeypatch.setattr(stripe_api, "NETWORK_RETRIES", 1)
        event = desk.accept("created", desk.sandbox.session())
        desk.sandbox.fault("error", status=500)
        desk.turn(desk.processor(Seen().handler("*")))
        assert desk.record(event).state == "done"

    def test_a_revoked_key_waits_for_a_person(self, desk) -> None:
        key = desk.sandbox.control("keys", kind="secret")["key"]
        event = desk.accept("created", desk.sandbox.session())
        desk.sandbox.control("keys/revoke", key=key)
        began = desk.now()
        desk.turn(desk.processor(Seen().handler("*"), key=key))
        self.released(desk, event, "stripe: key 401")
        assert began + 60_000 <= desk.due(event) <= desk.now() + 60_000
        (line,) = desk.logged("stripe_refuses_our_key")
        assert (line["level"], line["status"]) == ("error", 401)
        assert line["request_id"].startswith("req_")
        desk.accept("created", desk.sandbox.session())
        assert desk.inbox.claim() == [Refused.PAUSED], "every other event would run into it"

    def test_a_key_that_may_not_waits_for_a_person(self, desk) -> None:
        made = desk.sandbox.control("keys", kind="restricted", permissions=["event_read"])
        event = desk.accept("created", desk.sandbox.session())
        began = desk.now()
        desk.turn(desk.processor(Seen().handler("*"), key=made["key"]))
        self.released(desk, event, "stripe: forbidden 403")
        assert began + 60_000 <= desk.due(event) <= desk.now() + 60_000

    def test_an_account_that_left_stops_nobody_else(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(seen.handler("*"))
        gone = desk.accept("created", "vs_1", account="left_1Account")
        event = desk.accept("created", desk.sandbox.session())
        desk.turn(processor)
        self.released(desk, gone, "stripe: account 403 account_invalid")
        assert desk.settle(processor, event).state == "done"

    def test_a_session_that_stays_missing_is_dead(self, desk) -> None:
        processor = desk.processor(Seen().handler("*"))
        event = desk.accept("verified", "vs_nowhere")
        looked_twice(desk, processor, event, "missing")
        make_older(desk, event, failures.RECHECK)
        record = desk.settle(processor, event)
        assert (record.state, record.handlers) == ("dead", {})
        assert record.reason == (
            "stripe: missing 404 resource_missing: STRIPE_API_KEY sees no such session: is it of"
            " this account and mode?"
        )

    def test_a_session_is_asked_for_twice_whatever_was_missing_before(self, desk) -> None:
        """A thin event's own 404, that was waited for, says nothing of its session."""
        processor = desk.processor(Seen().handler("*"))
        event = desk.accept("verified", "vs_nowhere", id="evt_nowhere", form="thin")
        desk.turn(processor)
        reason = desk.record(event).reason
        assert reason == "stripe: thin event: missing 404 not_found"
        make_older(desk, event, failures.RECHECK)
        wait_until(lambda: desk.turn(processor) or desk.record(event).reason != reason)
        assert desk.record(event).state == "pending"
        assert desk.record(event).reason == "stripe: missing 404 resource_missing"
        assert desk.settle(processor, event).state == "dead"

    def test_a_request_stripe_calls_invalid_is_dead(self, desk) -> None:
        event = desk.accept("created", desk.sandbox.session())
        desk.sandbox.fault("error", status=400)
        desk.turn(desk.processor(Seen().handler("*")))
        assert desk.record(event).state == "dead"
        assert desk.record(event).reason.startswith("stripe: invalid 400: Stripe does not show")

    def test_and_replayed_after_that(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(seen.handler("*"))
        event = desk.accept("created", desk.sandbox.session())
        desk.sandbox.fault("error", status=400)
        desk.turn(processor)
        assert desk.inbox.replay(event.key) == "replayed"
        assert statuses(desk.settle(processor, event)) == {"p.handle": ("done", 1)}


class TestSensitive:
    def test_goes_only_to_the_handler_that_declared_it(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(
            seen.handler("*", name="born", needs=[DOB]),
            seen.handler("*", name="numbered", needs=[NUMBER]),
            seen.handler("*", name="plain"),
            restricted_key="rk_test_x",
        )
        desk.settle(processor, desk.accept("verified", desk.sandbox.session("verified")))
        # Who needs nothing runs first.
        plain, born, numbered = (v.sensitive for v in seen)
        assert born.dob == date(1990, 7, 17)
        assert CANARY in numbered.document_number
        for sensitive, name in [(born, "document_number"), (numbered, "dob"), (plain, "dob")]:
            with pytest.raises(AttributeError, match="was not fetched: declare needs="):
                getattr(sensitive, name)
        assert not hasattr(seen[1].session.verified_outputs, "dob"), "the session is the plain one"

    def test_quoted_it_is_masked(self, desk) -> None:
        def quote(v: Verification) -> Discard:
            assert CANARY in v.sensitive.document_number
            return Discard(f"{v.sensitive.document_number} of {v.sensitive.dob}")

        processor = desk.processor(raising(quote, needs=[NUMBER, DOB]), restricted_key="rk_test_x")
        record = desk.settle(processor, desk.accept("verified", desk.sandbox.session("verified")))
        assert record.reason == "p.failing: discarded: [personal] of [personal]"

    @pytest.mark.parametrize("why", ["its reason does not fit", "the event is superseded"])
    def test_for_a_handler_that_is_not_run_nothing_is_asked(self, why, desk) -> None:
        fits = why != "its reason does not fit"
        kind: Kind = "processing" if fits else "requires_input"
        needy = Seen().handler(kind, needs=[DOB], reason=None if fits else ["abandoned"])
        session = desk.sandbox.session("verified" if fits else "document_expired")
        event = desk.accept(kind, session)
        desk.settle(desk.processor(needy, restricted_key="rk_test_x"), event)
        (line,) = desk.logged("event_settled")
        assert len(line["request_ids"]) == 1, "that for the session"
        assert statuses(desk.record(event))["p.handle"][0] == ("superseded" if fits else "skipped")

    def test_who_needs_nothing_does_not_wait_for_it(self, desk, monkeypatch) -> None:
        seen, order = Seen(), []

        @on("*")
        def plain(_: Verification) -> None:
            order.append("plain")

        def hang(*_: object) -> None:
            order.append("asked")
            raise StripeFailure("unreachable", call="sensitive")

        restricted = desk.sandbox.api("rk_test_x")
        monkeypatch.setattr(restricted, "fetch_sensitive", hang)
        processor = desk.processor(seen.handler("*", needs=[DOB]), plain, restricted_api=restricted)
        event = desk.accept("verified", desk.sandbox.session("verified"))
        desk.turn(processor)
        assert order == ["plain", "asked"]
        assert statuses(desk.record(event)) == {"p.plain": ("done", 1), "p.handle": ("retry", 0)}

    @pytest.mark.parametrize("why", ["the worker stops", "the claim is lost"])
    def test_is_not_asked_for_when_nothing_more_is_started(self, why, desk, monkeypatch) -> None:
        asked: list[object] = []

        def ask(*_: object) -> Sensitive:
            asked.append(1)
            return Sensitive({})

        @on("*")
        def plain(v: Verification) -> None:
            if why == "the worker stops":
                desk.stop.request()
            else:
                desk.redis.hincrby(f"iw:evt:{v.event.key}", "token", 1)

        restricted = desk.sandbox.api("rk_test_x")
        monkeypatch.setattr(restricted, "fetch_sensitive", ask)
        needy = Seen().handler("*", needs=[DOB])
        event = desk.accept("verified", desk.sandbox.session("verified"))
        desk.turn(desk.processor(plain, needy, restricted_api=restricted))
        assert (asked, desk.record(event).state) == ([], "pending")

    def test_is_not_asked_for_when_nobody_will_get_it(self, desk) -> None:
        seen = Seen()
        processor = desk.processor(
            seen.handler("*", needs=[DOB]),
            seen.handler("*", name="all", superseded=True),
            restricted_key="rk_test_revoked",
        )
        desk.sandbox.control("keys/revoke", key="rk_test_revoked")
        record = desk.settle(processor, desk.accept("processing", desk.sandbox.session("verified")))
        assert statuses(record) == {"p.handle": ("superseded", 0), "p.all": ("done", 1)}


class TestComingBack:
    def test_a_stop_between_handlers_gives_the_rest_back(self, desk) -> None:
        seen = Seen()

        @on("*")
        def first(_: Verification) -> None:
            desk.stop.request()

        handlers = (first, seen.handler("*", name="second"))
        event = desk.accept("created", desk.sandbox.session())
        desk.turn(desk.processor(*handlers))
        assert statuses(desk.record(event)) == {"p.first": ("done", 1)}
        assert desk.record(event).state == "pending"
        assert desk.redis.llen("rq:queue:identity") == 1, "somebody else is woken at once"
        desk.stop.requested_at = None
        record = desk.settle(desk.processor(*handlers), event)
        assert statuses(record) == {"p.first": ("done", 1), "p.second": ("done", 1)}

    @pytest.mark.parametrize(
        "fail",
        [lambda: 1 / 0, sys.exit, lambda: "a value", lambda: os.kill(os.getpid(), 999)],
        ids=["raises", "exits", "returns", "fails in the system"],
    )
    @pytest.mark.parametrize("late", [False, True], ids=["before", "right after"])
    def test_a_failure_while_the_worker_stops_does_not_count(
        self, desk, fail, late, monkeypatch
    ) -> None:
        """The stop may be its cause: it reaches what a handler has started, too."""
        monkeypatch.setattr(stop, "ARRIVES_WITHIN", 60)  # on a busy machine it comes late
        failing, runs = [True], list[int]()

        @on("*", retries=0)
        def handle(v: Verification) -> object:
            runs.append(v.attempt)
            if not failing:
                return None
            failing.clear()
            if late:
                threading.Timer(0.02, desk.stop.request).start()
            else:
                desk.stop.request()
            return fail()

        seen = Seen()
        handlers = (handle, seen.handler("*", name="z"))
        event = desk.accept("created", desk.sandbox.session())
        desk.turn(desk.processor(*handlers))
        record = desk.record(event)
        assert (record.state, record.handlers) == ("pending", {})
        assert desk.logged("handler_failed") == []
        (line,) = desk.logged("handler_stopped")
        assert (line["handler"], line["event_id"]) == ("p.handle", event.id)
        assert desk.counts()["handler_runs|p.handle|stopped"] == 1
        desk.stop.requested_at = None
        record = desk.settle(desk.processor(*handlers), event)
        assert statuses(record) == {"p.handle": ("done", 1), "p.z": ("done", 1)}
        assert runs == [1, 1]

    @pytest.mark.parametrize(
        ("answer", "status"), [(Retry("later", delay=9), "retry"), (Discard("never"), "dead")]
    )
    def test_what_a_handler_answers_then_does(self, desk, answer, status) -> None:
        def error(_: Verification) -> BaseException:
            desk.stop.request()
            return answer

        event = desk.accept("created", desk.sandbox.session())
        desk.turn(desk.processor(raising(error)))
        assert statuses(desk.record(event)) == {"p.failing": (status, 1)}

    def test_a_worker_that_stops_claims_no_other(self, desk) -> None:
        @on("*")
        def handle(_: Verification) -> None:
            desk.stop.request()

        first, other = (desk.accept("created", desk.sandbox.session()) for _ in range(2))
        processor = desk.processor(handle)
        (claim,) = processor.claim()
        assert processor.process(claim, and_claim=True) is None
        assert desk.record(first).state == "done"
        assert b"lease" not in desk.fields(other), "nobody had it"

    def test_one_whose_process_does_not_start_waits_and_spends_no_attempt(
        self, desk, monkeypatch
    ) -> None:
        @on("*", own_process=True, retries=0)
        def alone(_: Verification) -> None:
            """Run elsewhere."""

        def run(*_: object) -> None:
            raise NotRun("its process did not start (exit code 1)")

        seen = Seen()
        processor = desk.processor(alone, seen.handler("*", name="other"))
        monkeypatch.setattr(processor._dispatcher._own_processes["p.alone"], "run", run)
        monkeypatch.setattr(dispatch, "busy_wait", lambda _: 0.01)
        monkeypatch.setattr(dispatch, "RETRY_FOR", 120)
        event = desk.accept("created", desk.sandbox.session())
        for _ in range(4):
            desk.turn(processor)
            time.sleep(0.06)
        record = desk.record(event)
        assert statuses(record) == {"p.alone": ("retry", 0), "p.other": ("done", 1)}
        reason = "failed: its process did not start (exit code 1)"
        assert record.handlers["p.alone"].reason == record.reason == reason
        assert desk.counts()["handler_runs|p.alone|retry"] >= 2, "somebody is told"
        assert len(seen) == 1
        monkeypatch.setattr(dispatch, "RETRY_FOR", 0)
        record = desk.settle(processor, event)
        assert statuses(record) == {"p.alone": ("dead", 0), "p.other": ("done", 1)}
        assert record.reason == f"p.alone: {reason}"

    @pytest.mark.parametrize("hindrance", ["no fields", "no process", "its process is busy"])
    def test_what_is_no_attempt_changes_nothing_of_those_before(
        self, desk, monkeypatch, hindrance
    ) -> None:
        """The three days begin with the first failure, whatever comes between."""

        @on("*", own_process=True, needs=[DOB])
        def alone(_: Verification) -> None:
            """Run elsewhere."""

        def raises(error: BaseException) -> Callable[..., None]:
            def fail(*_: object) -> None:
                raise error

            return fail

        restricted = desk.sandbox.api("rk_test_x")
        processor = desk.processor(alone, restricted_api=restricted)
        own = processor._dispatcher._own_processes["p.alone"]
        monkeypatch.setattr(own, "run", raises(Retry("", delay=0)))
        event = desk.accept("verified", desk.sandbox.session("verified"))
        desk.turn(processor)
        first = desk.record(event).handlers["p.alone"]
        assert (first.attempts, first.since > 0) == (1, True)
        time.sleep(0.06)
        unreachable = StripeFailure("unreachable", call="sensitive")
        where, name, hinder = {
            "no fields": (restricted, "fetch_sensitive", raises(unreachable)),
            "no process": (own, "run", raises(NotRun("its process did not start"))),
            "its process is busy": (own, "turn", lambda: nullcontext(enter_result=False)),
        }[hindrance]
        monkeypatch.setattr(where, name, hinder)
        desk.turn(processor)
        hindered = desk.record(event).handlers["p.alone"]
        assert hindered.reason != first.reason
        assert (hindered.status, hindered.attempts, hindered.since) == ("retry", 1, first.since)

    def test_an_event_whose_handler_is_gone_waits_for_a_release_that_has_it(self, desk) -> None:
        seen = Seen()
        event = desk.accept("created", desk.sandbox.session())
        new = seen.handler("*", name="new")
        desk.turn(desk.processor(raising(lambda _: Retry("", delay=0)), new))
        time.sleep(0.06)
        began = desk.now()
        desk.turn(desk.processor(new))
        record = desk.record(event)
        assert (record.state, record.reason) == (
            "pending",
            "p.failing: this release has no such handler",
        )
        assert began + 60_000 <= desk.due(event) <= desk.now() + 60_000
        line = desk.logged("handler_unknown")[0]
        assert line["handler"] == "p.failing"
        assert 0 <= line["age_s"] <= 30, "in seconds; 60 ms have passed"
        assert len(seen) == 1

    @pytest.mark.parametrize("renamed", [False, True])
    def test_and_ends_in_plain_sight_when_none_comes(self, renamed, desk, monkeypatch) -> None:
        monkeypatch.setattr(ending, "UNKNOWN_FOR", 0)
        seen, old = Seen(), [raising(lambda _: Retry("", delay=0)), raising(lambda _: Retry(""))]
        old[1].__name__ = "other"
        event = desk.accept("created", desk.sandbox.session())
        new = seen.handler("*", name="new")
        desk.turn(desk.processor(new, *old))
        time.sleep(0.06)
        record = desk.settle(desk.processor(new), event)
        assert statuses(record) == {
            "p.new": ("done", 1),
            "p.failing": ("dead", 1),
            "p.other": ("dead", 1),
        }
        assert record.state == "dead"
        assert record.reason.startswith("p.failing: this release has no such handler")
        assert "replay" in record.reason
        assert desk.inbox.replay(event.key) == "replayed"
        back = seen.handler("*", name="renamed" if renamed else "failing")
        again = desk.settle(desk.processor(new, back), event)
        assert (again.state, len(seen)) == ("done", 2)
        assert statuses(again)["p.renamed" if renamed else "p.failing"] == ("done", 1)

    def test_while_another_handler_waits_its_own_time(self, desk, monkeypatch) -> None:
        monkeypatch.setattr(ending, "UNKNOWN_FOR", 0)
        gone, slow = raising(lambda _: Retry("", delay=0)), raising(lambda _: Retry("", delay=30))
        slow.__name__ = "slow"
        event = desk.accept("created", desk.sandbox.session())
        began = desk.now()
        desk.turn(desk.processor(gone, slow))
        time.sleep(0.06)
        desk.turn(desk.processor(slow))
        assert began + 30_000 <= desk.due(event) <= desk.now() + 30_000
        assert statuses(desk.record(event))["p.failing"] == ("retry", 1)

    def test_a_handler_that_came_later_runs_too(self, desk) -> None:
        seen = Seen()
        event = desk.accept("created", desk.sandbox.session())
        old = raising(lambda v: Retry("", delay=0) if v.attempt == 1 else Discard("enough"))
        desk.turn(desk.processor(old))
        record = desk.settle(desk.processor(old, seen.handler("*", name="new")), event)
        assert statuses(record) == {"p.failing": ("dead", 2), "p.new": ("done", 1)}

    def dead(self, desk) -> tuple[Any, Event, Seen, list[int]]:
        """Return an event of which one handler is done and the other dead, and could be healed."""
        seen, runs = Seen(), []

        @on("*", retries=0)
        def healing(v: Verification) -> None:
            runs.append(v.attempt)
            if len(runs) == 1:
                raise ValueError

        processor = desk.processor(healing, seen.handler("*"))
        event = desk.accept("created", desk.sandbox.session())
        assert desk.settle(processor, event).state == "dead"
        return processor, event, seen, runs

    def test_a_replay_runs_only_what_is_dead(self, desk) -> None:
        processor, event, seen, runs = self.dead(desk)
        assert desk.inbox.replay(event.key) == "replayed"
        record = desk.settle(processor, event)
        assert statuses(record) == {"p.handle": ("done", 1), "p.healing": ("done", 1)}
        assert (record.state, record.reason, runs, len(seen)) == ("done", "", [1, 1], 1)

    def test_or_all_or_the_one_that_is_named(self, desk) -> None:
        processor, event, seen, runs = self.dead(desk)
        desk.inbox.replay(event.key, "all")
        desk.settle(processor, event)
        assert (len(runs), len(seen)) == (2, 2)
        desk.inbox.replay(event.key, "p.handle")
        desk.settle(processor, event)
        assert (len(runs), len(seen)) == (2, 3)

    def test_a_redelivery_reopens_it_where_the_settings_say_so(self, desk) -> None:
        processor, event, seen, runs = self.dead(desk)
        assert desk.inbox.accept(event) is AcceptResult.DEAD
        assert Inbox(desk.redis, reopen_dead=True).accept(event) is AcceptResult.REOPENED
        record = desk.settle(processor, event)
        assert (record.state, len(runs), len(seen)) == ("done", 2, 1)


def fail(*_: object, **__: object) -> bool:
    raise redis_py.ConnectionError("redis://:secret@host went away")


class TestRedisFails:
    def test_while_claiming(self, desk) -> None:
        nobody = Inbox(redis_py.Redis(port=free_port(), retry=None))
        processor = desk.processor(Seen().handler("*"), inbox=nobody)
        with pytest.raises(redis_py.ConnectionError):
            processor.claim()

    def test_while_it_is_noted_what_runs_and_what_ran_the_worker_goes_on(self, desk) -> None:
        in_hand = InHand(1)
        in_hand.note("evt_1", "1", "p.handle")
        in_hand.bury()
        nobody = Inbox(redis_py.Redis(port=free_port(), retry=None))
        processor = desk.processor(Seen().handler("*"), inbox=nobody, in_hand=in_hand)
        processor.note_death()
        processor.note_handlers()
        assert len(desk.logged("death_not_noted")) == len(desk.logged("handlers_not_noted")) == 1

    def test_all_that_ran_when_a_process_died_is_noted_of_its_event(self, desk) -> None:
        """And nothing of an event that waited for a thread: it killed nobody."""
        ran = ["p.first", "", "p.second"]
        events = [desk.accept("created", "vs_1" + name) for name in ran]
        claims = {claim.event.key: claim for claim in desk.inbox.claim(3)}
        in_hand = InHand(3)
        for event, name in zip(events, ran, strict=True):
            in_hand.note(event.key, claims[event.key].token, name)
        in_hand.bury()
        desk.processor(Seen().handler("*"), in_hand=in_hand).note_death()
        noted = [desk.fields(event).get(b"ran") for event in events]
        assert noted == [b"p.first", None, b"p.second"]

    @pytest.mark.parametrize("error", [redis_py.ConnectionError, ValueError])
    def test_while_the_next_one_is_claimed_this_one_has_ended(
        self, error, desk, monkeypatch
    ) -> None:
        def unreadable(*_: object) -> None:
            raise error

        event = desk.accept("created", desk.sandbox.session())
        processor = desk.processor(Seen().handler("*"))
        (claim,) = processor.claim()
        monkeypatch.setattr(processor._claimer, "begin", unreadable)
        assert processor.process(claim, and_claim=True) is None
        assert desk.record(event).state == "done"
        assert processor._heartbeat.count() == 0, "nothing is renewed any more"
        assert len(desk.logged("record_unreadable")) == (error is ValueError)

    def test_while_writing_down_what_a_handler_did(self, desk, monkeypatch) -> None:
        first, last = Seen(), Seen()
        processor = desk.processor(first.handler("*", name="first"), last.handler("*", name="last"))
        event = desk.accept("created", desk.sandbox.session())
        with monkeypatch.context() as patch:
            patch.setattr(Inbox, "save_progress", fail)
            desk.turn(processor)
        assert desk.record(event).reason == "redis failed"
        assert desk.logged("redis_failed")[0]["error"] == "ConnectionError"
        record = desk.settle(processor, event)
        assert record.state == "done"
        assert (len(first), len(last)) == (2, 1), "at least once: it ran, and nobody could know"

    def test_while_ending_it_what_the_last_handler_did_goes_along_later(
        self, desk, monkeypatch
    ) -> None:
        seen = Seen()
        processor = desk.processor(seen.handler("*"))
        event = desk.accept("created", desk.sandbox.session())
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "finish", fail)
            desk.turn(processor)
        assert desk.record(event).reason == "redis failed"
        record = desk.settle(processor, event)
        assert statuses(record) == {"p.handle": ("done", 1)}
        assert len(seen) == 1


def test_a_fault_of_ours_does_not_go_round_for_ever(desk, monkeypatch) -> None:
    def fault(_: object) -> None:
        raise ValueError

    desk.expects_faults = True
    monkeypatch.setattr(fetching.Outcome, "of", fault)
    monkeypatch.setattr(jobs, "MAX_FAULTS", 3)
    event = desk.accept("created", desk.sandbox.session())
    record = desk.settle(desk.processor(Seen().handler("*")), event)

    assert record.state == "dead"
    assert re.match(r"processing failed: ValueError at .*fetching.py:\d+ fetch", record.reason)
    assert len(desk.logged("processing_failed")) == 4
    assert statuses(record) == {}


WAITS: dict[str, Callable[[Any, Any, Any], None]] = {
    "a lock": lambda desk, _, patch: desk.sandbox.fault("error", status=409),
    "a limit": lambda desk, _, patch: desk.sandbox.fault("rate_limit"),
    "a failure of Stripe": lambda desk, _, patch: desk.sandbox.fault("error", status=500),
    "a pause of its account": lambda desk, event, patch: desk.inbox.pause(0.05, "x", "acct_1"),
    "its process": lambda desk, _, patch: patch.setattr(jobs.Dispatcher, "turn", busy),
    "Redis": lambda desk, _, patch: patch.setattr(jobs.Fetcher, "fetch", fail),
}


def busy(*_: object) -> AbstractContextManager[bool]:
    return nullcontext(enter_result=False)


@pytest.mark.parametrize("wait", WAITS)
def test_and_what_it_has_waited_for_is_no_fault_of_ours(desk, monkeypatch, wait) -> None:
    desk.expects_faults = True
    monkeypatch.setattr(jobs, "MAX_FAULTS", 3)
    monkeypatch.setattr(jobs, "busy_wait", lambda _: 0.01)
    event = desk.accept("created", desk.sandbox.session(), account="acct_1")
    processor = desk.processor(Seen().handler("*"))

    def turns(count: int) -> None:
        for _ in range(count):
            wait_until(lambda: desk.inbox.paused("acct_1") is None)
            time.sleep(0.02)
            desk.turn(processor)

    for _ in range(5):
        with monkeypatch.context() as patch:
            WAITS[wait](desk, event, patch)
            turns(1)
    monkeypatch.setattr(jobs.Fetcher, "fetch", lambda *_: 1 / 0)
    turns(3)
    assert desk.record(event).state == "pending"
    assert len(desk.logged("processing_failed")) == 3
    turns(1)
    assert desk.record(event).state == "dead"


def test_a_job_without_our_worker_says_how_to_start_one() -> None:
    with pytest.raises(RuntimeError, match="python -m workers"):
        jobs.process_event()
