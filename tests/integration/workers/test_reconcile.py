"""What was missed is taken in, from a sandbox that delivered nothing."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis as redis_py
from pydantic import SecretStr

from identity_webhooks.event import Event
from service.inbox import AcceptResult, Claim, Inbox
from service.metrics import Metrics
from service.settings import Settings
from service.survey import survey
from tests.conftest import free_port, wait_until
from tests.integration.claims import claim_of
from tests.integration.workers.conftest import KEY
from tests.integration.workers.fake_stripe import Answer, FakeStripe, Fault
from tests.logs import Said
from workers import reconcile, stripe_api
from workers.failures import StripeFailure
from workers.reconcile import InboxFull, Pass, Reconciler, Taking
from workers.stop import Stop
from workers.stripe_api import StripeApi

ACCOUNT = "acct_reconcile"
LATE = 60
"""Seconds that a round may begin after a test has looked at the clock."""


@pytest.fixture
def inbox(redis) -> Inbox:
    return Inbox(redis)


@pytest.fixture
def since() -> int:
    """Nothing that other tests made in this sandbox is looked at."""
    time.sleep(1.1)
    return int(time.time())


@pytest.fixture
def reconciler(sandbox, inbox) -> Reconciler:
    return Reconciler(sandbox.api(), inbox, livemode=False)


def kinds(inbox: Inbox, session: str) -> list[str]:
    return sorted(r.event.kind for r in inbox.records("all", 1000) if r.event.session == session)


def test_what_was_missed_is_taken_in_once(reconciler, inbox, sandbox, since) -> None:
    session = sandbox.session("document_expired")
    found = reconciler.run(since)

    assert found.counts == {"new": 3}
    assert len(found.missed) == found.seen == 3
    assert kinds(inbox, session.id) == ["created", "processing", "requires_input"]
    again = reconciler.run(since)
    assert again.counts == {"pending": 3}
    assert again.missed == []


def test_a_wiped_redis_is_rebuilt(reconciler, inbox, sandbox, redis, since) -> None:
    sessions = [sandbox.session("verified").id for _ in range(3)]
    reconciler.run(since)
    before = {key: inbox.find(key).event for key in reconciler.run(since).missed}
    redis.flushall()
    reconciler.run(since)

    assert before == {}
    for session in sessions:
        assert kinds(inbox, session) == ["created", "processing", "verified"]


def test_a_dry_run_takes_nothing_in(reconciler, inbox, sandbox, redis, since) -> None:
    sandbox.session("verified")
    found = reconciler.run(since, how=Taking(dry_run=True))

    assert found.counts == {"new": 3}
    assert not redis.exists("iw:due", "iw:reconciled")

    reconciler.run(since)
    known = reconciler.run(since, how=Taking(dry_run=True))
    assert (known.counts, known.missed) == ({"pending": 3}, [])


def test_more_than_a_page_is_walked(reconciler, inbox, sandbox, since) -> None:
    for _ in range(35):
        sandbox.session("verified")
    seen: list[int] = []
    found = reconciler.run(since, progress=lambda found: seen.append(found.seen))

    assert found.counts == {"new": 105}
    assert seen == list(range(1, 106))


@pytest.mark.parametrize(
    "how", [Taking(), Taking(dry_run=True), Taking(as_done_by="ann")], ids=["", "dry", "as done"]
)
def test_the_other_mode_is_none_of_ours(how, sandbox, inbox, since) -> None:
    session = sandbox.session()
    found = Reconciler(sandbox.api(), inbox, livemode=True).run(since, how=how)

    assert found.counts == {"other_mode": 1}
    assert found.missed == kinds(inbox, session.id) == []


def test_a_connected_account_is_asked_by_name(sandbox, inbox, since) -> None:
    api = sandbox.api()
    session = api.create_session({"type": "document"}, account=ACCOUNT)
    found = Reconciler(api, inbox, livemode=False).run(since, [ACCOUNT])

    assert found.counts == {"new": 1}
    assert found.missed[0].startswith(f"{ACCOUNT}-evt_")
    assert kinds(inbox, session.id) == ["created"]


@pytest.mark.parametrize("short_of", ["room", "memory"])
def test_a_full_inbox_ends_the_pass(short_of, sandbox, redis, since, monkeypatch) -> None:
    sandbox.session("verified")
    room = 2 if short_of == "room" else 1_000
    inbox = Inbox(redis, limit=room)
    if short_of == "memory":
        full = AcceptResult.MEMORY_SHORT
        monkeypatch.setattr(inbox, "accept", lambda _: full)  # the inbox's own tests fill a server
    found = Pass()
    with pytest.raises(InboxFull):
        Reconciler(sandbox.api(), inbox, livemode=False).run(since, found=found)
    assert len(found.missed) == (2 if short_of == "room" else 0)
    assert inbox.watermark() is None


@pytest.mark.parametrize(("account", "other"), [(None, ACCOUNT), (ACCOUNT, None)])
def test_old_sessions_are_looked_at_whose_events_are_gone(
    reconciler, inbox, sandbox, monkeypatch, since, account, other
) -> None:
    heard, unheard = (
        sandbox.session(outcome, account=account) for outcome in ("verified", "document_expired")
    )
    waiting = sandbox.session(account=account)
    elsewhere = sandbox.session("verified", account=other)
    monkeypatch.setattr(reconcile, "HORIZON", 0)
    monkeypatch.setattr(StripeApi, "events_since", lambda *_, **__: iter(()))
    time.sleep(1.1)
    prefix = f"{account}-" if account else ""
    of_heard = f"{prefix}evt_reconciled_{heard.id}_verified"
    first = reconciler.run(since, [account])
    assert set(first.missed) == {of_heard, f"{prefix}evt_reconciled_{unheard.id}_requires_input"}
    inbox.finish(claim_of(inbox, of_heard), "done", outcome="verified")
    found = reconciler.run(since, [account])

    assert found.counts == {"pending": 1}, "what handlers have heard is not made up again"
    assert kinds(inbox, waiting.id) == kinds(inbox, elsewhere.id) == []


@pytest.mark.parametrize("account", [None, ACCOUNT])
def test_of_a_session_whose_events_are_listed_none_are_made_up(
    account, reconciler, sandbox, monkeypatch, since
) -> None:
    """Handlers would run for both."""
    old = sandbox.session("verified", account=account)
    time.sleep(1.1)
    recent = sandbox.session("verified", account=account)
    still = {**vars(time), "time": lambda: recent.created + 0.5}
    monkeypatch.setattr(reconcile, "time", SimpleNamespace(**still))
    monkeypatch.setattr(reconcile, "HORIZON", 1)
    found = reconciler.run(since, [account])

    prefix = f"{account}-" if account else ""
    made_up = [key for key in found.missed if "evt_reconciled" in key]
    assert made_up == [f"{prefix}evt_reconciled_{old.id}_verified"]
    assert len(found.missed) == 3 + 3 + 1


@pytest.mark.parametrize(("account", "other"), [(None, ACCOUNT), (ACCOUNT, None)])
def test_sessions_that_do_not_end_are_reported(
    reconciler, sandbox, monkeypatch, since, account, other
) -> None:
    session, elsewhere = (sandbox.session(account=each) for each in (account, other))
    for each in (session, elsewhere):
        sandbox.control(f"sessions/{each.id}/submit", outcome="verified", hold=True)
    assert session.id not in reconciler.run(since, [account]).stuck
    monkeypatch.setattr(reconcile, "STUCK", -10)

    stuck = reconciler.run(since, [account]).stuck
    assert session.id in stuck
    assert elsewhere.id not in stuck


@pytest.fixture
def redacted_long_ago(since, sandbox, monkeypatch) -> str:
    """The id of a session made after `since`, verified and redacted, whose events are gone."""
    session = sandbox.session("verified")
    sandbox.api().redact_session(session.id)
    sandbox.control(f"sessions/{session.id}/complete")
    monkeypatch.setattr(reconcile, "HORIZON", 0)
    monkeypatch.setattr(StripeApi, "events_since", lambda *_, **__: iter(()))
    time.sleep(1.1)
    return session.id


def test_an_old_session_that_was_redacted_has_ended_twice(
    reconciler, inbox, redacted_long_ago, since
) -> None:
    reconciler.run(since)
    assert kinds(inbox, redacted_long_ago) == ["redacted", "verified"]


def test_of_an_old_session_whose_redaction_was_heard_nothing_is_told_again(
    reconciler, inbox, redacted_long_ago, since
) -> None:
    """Whoever was erased is not verified anew."""
    event = Event("evt_1", "redacted", "snapshot", redacted_long_ago, since, livemode=False)
    inbox.accept(event)
    inbox.finish(claim_of(inbox, event.key), "done", outcome="redacted")
    reconciler.run(since)
    assert kinds(inbox, redacted_long_ago) == ["redacted"]


def test_redacted_is_among_what_is_asked_for(reconciler, inbox, sandbox, since) -> None:
    session = sandbox.session("verified")
    sandbox.api().redact_session(session.id)
    sandbox.control(f"sessions/{session.id}/complete")
    reconciler.run(since)
    assert kinds(inbox, session.id) == ["created", "processing", "redacted", "verified"]


@pytest.fixture
def passes(reconciler, monkeypatch) -> list[tuple[int, str | None]]:
    """Return since when each account was asked for; nothing is asked."""
    made: list[tuple[int, str | None]] = []

    def one(since: int, account: str | None, *_: Any, **__: Any) -> None:
        made.append((since, account))

    monkeypatch.setattr(reconciler, "_pass", one)
    return made


class TestPeriodically:
    def test_a_pass_starts_where_the_last_whole_one_did(self, reconciler, inbox, passes) -> None:
        before = inbox.now()
        reconciler.round()
        reconciler.round()

        assert [before - since for since, _ in passes] == [
            pytest.approx(reconcile.WIDE, abs=LATE),
            pytest.approx(reconcile.OVERLAP, abs=LATE),
        ]

    def test_each_account_has_a_watermark_of_its_own(self, reconciler, inbox, passes) -> None:
        now = inbox.now()
        inbox.move_watermark(now - 5000)
        inbox.try_acquire("reconcile-wide:", 60)
        inbox.accept(
            Event("evt_1", "created", "snapshot", "vs_1", now, livemode=False, account=ACCOUNT)
        )
        reconciler.round()
        assert [(account, now - since) for since, account in passes] == [
            (None, pytest.approx(5000 + reconcile.OVERLAP, abs=LATE)),
            (ACCOUNT, pytest.approx(reconcile.WIDE, abs=LATE)),
        ]
        passes.clear()
        reconciler.round()
        assert {account: now - since for since, account in passes} == {
            None: pytest.approx(reconcile.OVERLAP, abs=LATE),
            ACCOUNT: pytest.approx(reconcile.OVERLAP, abs=LATE),
        }

    def test_each_day_has_a_wide_pass(self, reconciler, monkeypatch, inbox, passes) -> None:
        monkeypatch.setattr(reconcile, "DAY", 1)
        for _ in range(3):
            reconciler.round()
            time.sleep(1.1)
        now = inbox.now()
        assert [now - since for since, _ in passes] == [pytest.approx(reconcile.WIDE, abs=LATE)] * 3

    @pytest.mark.parametrize(("failing", "other"), [(None, ACCOUNT), (ACCOUNT, None)])
    def test_a_wide_pass_that_failed_is_owed_by_its_account_until_it_is_whole(
        self, failing, other, fake, inbox
    ) -> None:
        for account in (None, ACCOUNT):
            inbox.move_watermark(inbox.now(), account)
        since, plain = {}, fake.answer

        def answering(path: str, query: Any, key: str, account: str) -> Any:
            if path == "/v1/events":
                since[account or None] = int(query["created[gte]"][0])
            return plain(path, query, key, account)

        fake.answer = answering
        reconciler = Reconciler(StripeApi(KEY, base=fake.url, retries=0), inbox, livemode=False)

        def wide_in_a_round() -> set[str | None]:
            since.clear()
            reconciler.round()
            assert since.keys() == {failing, other}
            return {each for each in since if since[each] < inbox.now() - reconcile.WIDE / 2}

        fake.fault = Fault("list", KEY, failing or "/v1/events", Answer(500))
        assert wide_in_a_round() == {failing, other}
        assert wide_in_a_round() == {failing}
        fake.fault = None
        assert wide_in_a_round() == {failing}
        assert wide_in_a_round() == set()

    @pytest.mark.parametrize(
        "ends", [InboxFull("full"), redis_py.ConnectionError("away")], ids=repr
    )
    def test_so_is_one_that_a_full_inbox_or_redis_ended(
        self, ends, reconciler, inbox, monkeypatch
    ) -> None:
        inbox.move_watermark(inbox.now())
        asked, left = [], [ends]

        def one(since: int, *_: Any, **__: Any) -> None:
            asked.append(inbox.now() - since)
            if left:
                raise left.pop()

        monkeypatch.setattr(reconciler, "_pass", one)
        with pytest.raises(type(ends)):
            reconciler.round()
        for _ in range(2):
            reconciler.round()
        wide, short = 3 * 86_400, 600
        assert asked == [pytest.approx(each, abs=LATE) for each in (wide, wide, short)]

    def test_in_each_account_the_day_has_a_look_for_sessions_that_do_not_end(
        self, fake, inbox
    ) -> None:
        fake.accounts = [ACCOUNT]
        looked: list[str | None] = []
        plain = fake.answer

        def answering(path: str, query: Any, key: str, account: str) -> Any:
            if query.get("status") == ["processing"]:
                looked.append(account or None)
            return plain(path, query, key, account)

        fake.answer = answering
        api = StripeApi(KEY, base=fake.url)
        reconciler = Reconciler(api, inbox, livemode=False, list_accounts=True)
        reconciler.round()
        assert looked == [None, ACCOUNT]
        reconciler.round()
        assert looked == [None, ACCOUNT, None], "of others once a day: there may be thousands"

    @pytest.mark.parametrize("account", [None, ACCOUNT])
    @pytest.mark.parametrize(
        ("last", "since", "moves"),
        [
            *((5, 4, False), (5, 3.1, False), (5, 5.1, True)),
            *((0.5, 0.4, False), (0.5, 0.6, True), (None, 2.9, False), (None, 3.1, True)),
        ],
    )
    def test_the_next_begins_where_one_reached_back_to_the_last(
        self, reconciler, inbox, passes, account, last, since, moves
    ) -> None:
        """In days: a pass by hand may begin later than the last whole one ended."""
        now, day = inbox.now(), 86_400
        if last is not None:
            inbox.move_watermark(now - round(last * day), account)
        before = inbox.watermark(account)
        reconciler.run(now - round(since * day), [account])
        after = inbox.watermark(account)
        assert after >= now if moves else after == before

    def test_a_pass_that_fails_is_made_again(self, reconciler, inbox, sandbox) -> None:
        sandbox.fault("error", status=500, next=5)
        found = reconciler.round()
        assert found.failed["own"].startswith("list: broken 500 (req_")
        assert inbox.watermark() is None
        sandbox.control("faults", "DELETE")
        assert reconciler.round().failed == {}
        assert inbox.watermark() is not None

    def test_connected_accounts_that_cannot_be_listed_are_no_account_that_is_gone(
        self, fake, inbox, monkeypatch
    ) -> None:
        def refuse(_: StripeApi) -> None:
            raise StripeFailure("account", status=403, request_id="req_1", call="list")

        monkeypatch.setattr(StripeApi, "connected_accounts", refuse)
        api = StripeApi(KEY, base=fake.url)
        found = Reconciler(api, inbox, livemode=False, list_accounts=True).round()
        assert found.gone == []
        assert found.failed == {"connected accounts": "list: account 403 (req_1)"}

    def test_an_account_that_is_gone_is_asked_again_a_day_later(
        self, fake, inbox, monkeypatch
    ) -> None:
        fake.fault = Fault("list", KEY, ACCOUNT, Answer(403, "account_invalid"))
        inbox.move_watermark(0, ACCOUNT)
        later = 0
        moved = {**vars(time), "monotonic": lambda: time.monotonic() + later}
        monkeypatch.setattr(reconcile, "time", SimpleNamespace(**moved))
        reconciler = Reconciler(StripeApi(KEY, base=fake.url), inbox, livemode=False)

        def round_after(seconds: int) -> tuple[list[str], int]:
            nonlocal later
            later = seconds
            before = sum(about == ACCOUNT for _, _, about in fake.calls)
            gone = reconciler.round().gone
            return gone, sum(about == ACCOUNT for _, _, about in fake.calls) - before

        assert round_after(0) == ([ACCOUNT], 1)
        assert round_after(reconcile.DAY - LATE) == ([], 0)
        assert round_after(reconcile.DAY + LATE) == ([ACCOUNT], 1)
        fake.fault = None
        assert round_after(2 * reconcile.DAY) == ([], 0)
        gone, calls = round_after(2 * reconcile.DAY + 2 * LATE)
        assert gone == []
        assert calls > 0, "it is connected again"

    def test_one_process_at_a_time(self, inbox) -> None:
        assert inbox.try_acquire("reconcile", 60)
        assert not inbox.try_acquire("reconcile", 60)

    def test_a_call_waits_for_its_turn_in_the_rate_of_all(self, redis) -> None:
        inbox = Inbox(redis, api_rate=20)
        for number in range(20):
            key, session = f"evt_{number}", f"vs_{number}"
            inbox.accept(Event(key, "created", "snapshot", session, 0, livemode=False))
        started = time.monotonic()
        for _ in range(20 + 6):  # a second's worth at once, then one each 50 ms
            inbox.spend_call()
        assert time.monotonic() - started > 0.2
        claimed = 0
        while any(isinstance(each, Claim) for each in inbox.claim()):
            claimed += 1
        took = time.monotonic() - started
        # A second's worth at once, and one more call that began within it: workers have the same.
        assert 20 + 6 + claimed <= 20 + 1 + 20 * took + 1

    def test_and_every_page_is_a_call(self, reconciler, sandbox, monkeypatch, since) -> None:
        for _ in range(35):
            sandbox.session("verified")
        calls: list[None] = []
        monkeypatch.setattr(Inbox, "spend_call", lambda _: calls.append(None))
        reconciler.run(since)
        assert len(calls) == 3, "105 events on two pages, sessions in processing on one"


class TestAsDone:
    """After a restore: what was handled since the backup is known again, and nothing runs."""

    def test_what_stripe_lists_is_known_and_nothing_waits(
        self, reconciler, inbox, sandbox, redis, since
    ) -> None:
        session = sandbox.session("verified")
        found = reconciler.run(since, how=Taking(as_done_by="ann"))
        assert found.counts == {"adopted": 3}
        assert len(found.missed) == 3
        assert kinds(inbox, session.id) == ["created", "processing", "verified"]
        assert not redis.exists("iw:due", "rq:queue:identity")
        record = inbox.find(found.missed[0])
        assert (record.state, record.outcome, record.acts[0].by) == ("done", "as_done", "ann")
        assert inbox.last_kind(record.event) == "verified", (
            "what it heard last, though listed first"
        )
        assert reconciler.run(since).counts == {"done": 3}

    def test_what_waits_is_left_to_wait(self, reconciler, sandbox, since) -> None:
        sandbox.session("verified")
        reconciler.run(since)
        assert reconciler.run(since, how=Taking(as_done_by="ann")).counts == {"pending": 3}

    def test_what_was_made_later_is_not_taken_in(self, reconciler, sandbox, inbox, since) -> None:
        first = sandbox.session()
        time.sleep(1.1)
        until = int(time.time())
        sandbox.session()
        found = reconciler.run(since, how=Taking(as_done_by="ann", until=until))
        assert found.seen == 1
        assert inbox.find(found.missed[0]).event.session == first.id

    def test_a_dry_run_takes_nothing_in(self, reconciler, sandbox, redis, since) -> None:
        sandbox.session()
        found = reconciler.run(since, how=Taking(dry_run=True, as_done_by="ann"))
        assert len(found.missed) == 1
        assert not redis.exists("iw:hours")

    def test_it_runs_when_a_person_replays_it(self, reconciler, sandbox, inbox, since) -> None:
        sandbox.session()
        (key,) = reconciler.run(since, how=Taking(as_done_by="ann")).missed
        assert inbox.replay(key) == "replayed"
        assert isinstance(claim_of(inbox, key), Claim)


@pytest.fixture
def asked_since(sandbox, monkeypatch) -> tuple[StripeApi, list[int]]:
    """Return an API that lists no event, and the moments since which it was asked for some."""
    api, asked = sandbox.api(), []

    def events_since(created: int, **_: Any) -> Any:
        asked.append(created)
        return iter(())

    monkeypatch.setattr(api, "events_since", events_since)
    return api, asked


@pytest.mark.parametrize(
    ("keep", "asked_for"), [(35 * 86_400, 20 * 86_400), (10 * 86_400, 10 * 86_400 - 600)]
)
def test_what_is_older_than_what_is_known_is_not_asked_for(
    asked_since, inbox, keep, asked_for
) -> None:
    """It may have been handled and forgotten since."""
    api, asked = asked_since
    reconciler = Reconciler(api, inbox, livemode=False, keep=keep)
    reconciler.run(int(time.time()) - 20 * 86_400)
    assert time.time() - asked[0] == pytest.approx(asked_for, abs=300)


def test_a_pass_that_stripe_does_not_answer_has_no_request_to_name(inbox, monkeypatch) -> None:
    monkeypatch.setattr(stripe_api, "NETWORK_RETRIES", 0)
    api = StripeApi(KEY, base=f"http://127.0.0.1:{free_port()}")
    found = Reconciler(api, inbox, livemode=False).run(int(time.time()))
    assert found.failed == {"own": "list: unreachable ECONNREFUSED (no answer)"}


def test_how_a_pass_ended_is_noted_for_each_account(sandbox, inbox, redis) -> None:
    # Its events are counted, and other tests have the same sandbox: an account of its own.
    session = sandbox.session("verified", account="acct_noted")
    inbox.move_watermark(0, "acct_noted")
    reconciler = Reconciler(sandbox.api(), inbox, livemode=False)
    # Nobody may list events of one's own account; which comes first is one's own.
    sandbox.fault("error", status=403, route="GET /v1/events", next=1)
    reconciler.round()
    noted = survey(redis)
    own, connected = noted.reconciled[""], noted.reconciled["acct_noted"]
    assert own.failed.startswith("list: forbidden 403")
    assert "read access to Events" in own.hint
    assert connected.failed == ""
    assert connected.missed == len(kinds(inbox, session.id))
    assert noted.through.keys() == {"acct_noted"}

    reconciler.run(int(time.time()))  # by hand: the key is good again
    noted = survey(redis)
    assert noted.reconciled[""].failed == ""
    assert noted.through.keys() == {"acct_noted"}, "it does not reach back as far as a round"

    reconciler.run(int(time.time()) - reconcile.WIDE, how=Taking(dry_run=True))
    reconciler.run(int(time.time()) - reconcile.WIDE, how=Taking(until=time.time()))
    assert survey(redis).through.keys() == {"acct_noted"}
    reconciler.run(int(time.time()) - reconcile.WIDE - LATE)
    assert survey(redis).through[""] < 60
    redis.delete("iw:watermark")

    reconciler.round()
    noted = survey(redis)
    assert noted.reconciled[""].failed == ""
    assert noted.through[""] < 60


def test_what_a_pass_found_is_noted_for_its_account_alone(fake, inbox, redis) -> None:
    fake.accounts = ["acct_1", "acct_2"]
    for number, account in enumerate([None, "acct_1", "acct_1", "acct_2", "acct_2", "acct_2"]):
        fake.session(number, account)
    reconciler = Reconciler(
        StripeApi(KEY, base=fake.url), inbox, livemode=False, list_accounts=True
    )

    def noted() -> dict[str, tuple[int, int]]:
        found = survey(redis).reconciled
        return {account: (each.seen, each.missed) for account, each in found.items()}

    reconciler.round()
    assert noted() == {"": (2, 2), "acct_1": (4, 4), "acct_2": (6, 6)}
    reconciler.round()
    assert noted() == {"": (2, 0), "acct_1": (4, 0), "acct_2": (6, 0)}


def test_what_the_settings_say_is_what_is_asked_for(fake, redis, inbox) -> None:
    fake.accounts = ["acct_1"]
    fake.session(1, "acct_1", livemode=True)
    for event in fake.events:
        event["livemode"] = True
    given: dict[str, Any] = {"stripe_api_base": fake.url, "stripe_api_key": SecretStr(KEY)}
    month_ago = int(time.time()) - 29 * reconcile.DAY

    plainly = Reconciler.from_settings(Settings(**given, stripe_livemode=False), inbox)
    assert plainly.run(month_ago).counts == {}
    assert len(fake.since) == 1, "nobody asked for connected accounts"
    assert fake.since.pop() == month_ago

    given |= {"stripe_livemode": True, "stripe_connected_accounts": True, "retention_days": 7}
    metrics = Metrics(redis)
    found = Reconciler.from_settings(Settings(**given), inbox, metrics).run(month_ago)
    metrics.end()
    assert found.counts == {"new": 2}
    assert time.time() - min(fake.since) == pytest.approx(
        7 * reconcile.DAY, abs=reconcile.OVERLAP + 60
    )
    assert any(name.startswith("stripe_seconds|") for name in metrics.counts())


@pytest.mark.parametrize("by", ["no room", "Redis", "a fault"])
def test_whatever_ends_a_round_all_is_counted_and_the_next_one_is_made(
    by, fake, redis, monkeypatch
) -> None:
    monkeypatch.setattr(reconcile, "PERIOD", 0.5)
    fake.session(1)
    fake.session(2)
    inbox, metrics, stop = Inbox(redis, limit=3), Metrics(redis), Stop()
    accept = inbox.accept

    def accept_three(event: Event) -> AcceptResult:
        if event.id == "evt_verified2" and by != "no room":
            raise {"Redis": redis_py.ConnectionError, "a fault": RuntimeError}[by]("here it ends")
        return accept(event)

    monkeypatch.setattr(inbox, "accept", accept_three)
    reconciler = Reconciler(StripeApi(KEY, base=fake.url), inbox, livemode=False)
    thread = threading.Thread(
        target=reconcile.reconcile_for_ever, args=(reconciler, inbox, stop, metrics)
    )
    thread.start()
    try:
        wait_until(lambda: len(fake.calls) > 1)  # the second, which knows what the first took in
        assert metrics.counts()["reconcile_missed"] == 3
        Inbox(redis).discard("evt_created1")
        monkeypatch.setattr(inbox, "accept", accept)
        wait_until(lambda: metrics.counts()["reconcile_missed"] == 4)
    finally:
        stop.request()
        thread.join(120)
        metrics.end()
    assert not thread.is_alive()


@pytest.mark.parametrize("days", [1, 10])
def test_a_round_leaves_out_nothing_behind_the_watermark(days, asked_since, inbox) -> None:
    """Nothing could be compared for ten days, and the wide pass of the day reaches back three."""
    api, asked = asked_since
    inbox.move_watermark(inbox.now() - days * 86_400)
    Reconciler(api, inbox, livemode=False).round()
    assert asked[0] <= inbox.now() - max(days * 86_400, reconcile.WIDE)


def test_the_next_pass_begins_where_this_one_began(fake, redis, inbox, monkeypatch) -> None:
    """What is made while Stripe is asked may not have been listed yet."""
    began = inbox.now()
    clock, plain = [began], fake.answer

    def answering(*asked: Any) -> Any:
        clock[0] += 100
        return plain(*asked)

    fake.answer = answering
    monkeypatch.setattr(inbox, "now", lambda: clock[0])
    reconciler = Reconciler(StripeApi(KEY, base=fake.url), inbox, livemode=False)
    reconciler.run(began - reconcile.WIDE)
    assert inbox.watermark() == began
    assert survey(redis).reconciled[""].at == clock[0] > began, "when it ended"


@pytest.mark.parametrize("how", ["as done", "dry"])
def test_what_was_made_at_the_very_end_is_left_out(how, fake, inbox) -> None:
    until = int(time.time()) - 100
    for number, created in enumerate([until - 1, until, until + 1]):
        fake.session(number)
        for event in fake.events[-2:]:
            event["created"] = created
    reconciler = Reconciler(StripeApi(KEY, base=fake.url), inbox, livemode=False)
    taking = Taking(dry_run=how == "dry", as_done_by="ann", until=until)
    found = reconciler.run(until - 1000, how=taking)
    assert (found.seen, found.missed) == (2, ["evt_created0", "evt_verified0"])
    assert inbox.find("evt_created1") is inbox.find("evt_created2") is None


def listing_in_processing(fake: FakeStripe, **ages: int) -> None:
    """Have Stripe list sessions in processing, by their ids made so many seconds ago."""
    plain = fake.answer
    for number, (name, age) in enumerate(ages.items(), 100):
        session = fake.sessions.pop(fake.session(number))
        fake.sessions[name] = session | {
            "id": name,
            "status": "processing",
            "created": int(time.time()) - age,
        }
        del fake.events[-2:]

    def answering(path: str, query: Any, key: str, account: str) -> Any:
        if query.get("status") == ["processing"]:
            data = [fake.sessions[name] for name in ages]
            return {"object": "list", "url": path, "has_more": False, "data": data}
        return plain(path, query, key, account)

    fake.answer = answering  # type: ignore[method-assign]


def test_a_session_is_reported_that_is_in_processing_for_more_than_a_day(fake, inbox) -> None:
    listing_in_processing(fake, vs_young=86_400 - LATE, vs_old=86_400 + LATE, vs_new=0)
    reconciler = Reconciler(StripeApi(KEY, base=fake.url), inbox, livemode=False)
    assert reconciler.run(int(time.time())).stuck == ["vs_old"]


@pytest.mark.parametrize(
    ("found", "level"), [("nothing", "info"), ("an event", "warning"), ("a session", "warning")]
)
def test_every_five_minutes_one_process_makes_a_round_and_says_what_it_found(
    found, level, fake, redis, inbox, said: Said
) -> None:
    if found == "an event":
        fake.session(1)
    if found == "a session":
        listing_in_processing(fake, vs_old=2 * reconcile.DAY)
    metrics, stop = Metrics(redis), Stop()
    reconciler = Reconciler(StripeApi(KEY, base=fake.url), inbox, livemode=False)
    args = (reconciler, inbox, stop, metrics)
    thread = threading.Thread(target=reconcile.reconcile_for_ever, args=args)
    thread.start()
    try:
        wait_until(lambda: any(line["event"] == "reconciled" for line in said()))
    finally:
        stop.request()
        thread.join(120)
        metrics.end()
    (line,) = said()
    assert line == {
        "event": "reconciled",
        "level": level,
        "count": 2 * (found == "an event"),
        "counts": {"new": 2} if found == "an event" else {},
        "stuck": int(found == "a session"),
    }
    assert not inbox.try_acquire("reconcile", 1), "this period has had its round"
    (left,) = [redis.pttl(key) for key in redis.keys("*reconcile") if redis.type(key) == b"string"]
    assert 200_000 < left <= 300_000


def test_ones_own_account_is_never_gone_for_a_day(fake, inbox) -> None:
    """Whose key it is, is asked in each round: it may have been put right."""
    fake.fault = Fault("list", KEY, "/v1/events", Answer(403, "account_invalid"))
    reconciler = Reconciler(StripeApi(KEY, base=fake.url), inbox, livemode=False)
    for struck in (1, 2):
        found = reconciler.round()
        assert (found.gone, [*found.failed], fake.fault.struck) == ([], ["own"], struck)
