"""The life cycle of Stripe Identity: every change of state, and the events each one causes.

``World`` does no I/O and reads no clock but the one it is given. Whatever changes within one
``step`` is handed to ``save`` together: a session, its event and the deliveries of that event are
stored in one transaction, or not at all.
"""

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator

from stripe_identity_sandbox import asked, checks, lifetimes
from stripe_identity_sandbox.endpoints import Endpoints
from stripe_identity_sandbox.events import Events
from stripe_identity_sandbox.idempotency import Answers
from stripe_identity_sandbox.journal import Changes, Journal, new_id
from stripe_identity_sandbox.links import Links
from stripe_identity_sandbox.objects import (
    SESSION,
    Answer,
    Clock,
    Delivery,
    Endpoint,
    Event,
    Expand,
    Illegal,
    Json,
    Key,
    Record,
    Report,
    Session,
    report_view,
    session_view,
    verified_outputs,
)
from stripe_identity_sandbox.outbox import Outbox
from stripe_identity_sandbox.recorder import Recorder
from stripe_identity_sandbox.reports import Reports
from stripe_identity_sandbox.settings import STRIPE, Origin, Settings


class World:
    """Everything Stripe would remember, and the only code that changes it.

    ``clock`` answers Unix seconds; ``advance`` moves the sandbox's time ahead of it.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        save: Callable[[Changes], None] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.journal = Journal(clock)
        self.sessions: dict[str, Session] = {}
        self.reports = Reports(self.journal, marker=self.settings.marker)
        self.keys: dict[str, Key] = {}
        self.answers = Answers(self.journal)
        self.events = Events(self.journal)
        self.links = Links(self.journal)
        self.recorder = Recorder()
        self.endpoints = Endpoints(self.journal)
        self.outbox = Outbox(
            self.journal,
            self.events,
            self.endpoints,
            retries=self.settings.retries,
            api_version=self.settings.api_version,
        )
        self.changed = threading.Condition()
        #: How many steps changed something.
        self.version = 0
        self._save = save
        self._order = itertools.count()
        self._timers: list[tuple[float, int, str]] = []

    # -- time and storage ------------------------------------------------------------------

    def now(self) -> float:
        """Return the sandbox's time, in Unix seconds."""
        return self.journal.now()

    @contextlib.contextmanager
    def step(self) -> Iterator["World"]:
        """Hold the world still, let what is due happen, and store what the caller changes."""
        with self.changed:
            self._tick()
            try:
                yield self
            finally:
                if changes := self.journal.take():
                    self.version += 1
                    self._store(changes)
                    self.changed.notify_all()

    def _store(self, changes: Changes) -> None:
        if not self._save:
            return
        try:
            self._save(changes)
        except Exception:
            # A full disk: the next step stores it too, or the file would lack it for good.
            self.journal.put_back(changes)
            raise

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock forward; what falls due on the way happens, in its order.

        Raises:
            Illegal: the clock would be further ahead than dates can show.
        """
        if self.journal.offset + seconds > lifetimes.FURTHEST:
            raise Illegal("The clock can be 1000 years ahead of the machine's at most.")
        self.journal.advance(seconds)
        self._tick()

    def load(self, records: list[Record]) -> None:
        """Take over stored records, in the order in which they were made."""
        for record in records:
            if isinstance(record, Clock):
                self.journal.offset = record.offset
        for record in records:
            match record:
                case Session():
                    self.sessions[record.id] = record
                    self.links.load(record)
                    self._schedule(record)
                case Event():
                    self.events.add(record)
                case Delivery():
                    self.outbox.load(record)
                case Report():
                    self.reports.by_id[record.id] = record
                case Endpoint():
                    self.endpoints.by_id[record.id] = record
                case Key():
                    self.keys[record.id] = record
                case Answer():
                    self.answers.load(record)
        self.journal.take()  # what was loaded need not be stored

    def _schedule(self, session: Session) -> None:
        if session.due is not None:
            heapq.heappush(self._timers, (session.due, next(self._order), session.id))

    def _tick(self) -> None:
        while self._timers and self._timers[0][0] <= self.now():
            due, _, session_id = heapq.heappop(self._timers)
            session = self.sessions[session_id]
            if session.due == due:
                self._finish(session, at=due)

    def next_due(self) -> float | None:
        """Return when something happens by itself next, by the sandbox's clock."""
        timer = self._timers[0][0] if self._timers else None
        return min(
            (due for due in (timer, self.outbox.next_due()) if due is not None), default=None
        )

    # -- the life of a session -------------------------------------------------------------

    def create(
        self, params: Json, *, account: str | None = None, origin: Origin = STRIPE
    ) -> Session:
        """Create a session from checked parameters."""
        session = asked.session(params, account=account, created=int(self.now()))
        self.journal.keep(self.sessions, session)
        self.links.open(session)
        self._emit("created", session, origin)
        return session

    def refresh(self, session: Session) -> None:
        """Give a session that waits for input a usable url and client_secret again.

        Stripe does this on retrieval; ours stay the same until they are used or expire.
        """
        if session.status == "requires_input" and not self.links.secret_of(session):
            self.links.open(session)

    def update(self, session: Session, params: Json) -> None:
        """Change metadata, options, type or provided details of a session that waits for input.

        Raises:
            Illegal: the session has another status, or is being redacted.
        """
        self._require(session, "update", "updated")
        asked.change(session, params)
        self.journal.touch(session)

    def cancel(self, session: Session, origin: Origin = STRIPE) -> None:
        """Cancel; a session that is canceled already stays as it is.

        Raises:
            Illegal: it is processing, verified or redacted.
        """
        if session.status == "canceled" and not session.redaction:
            return
        self._require(session, "cancel", "canceled")
        self.links.close(session)
        session.status, session.last_error = "canceled", None
        self._emit("canceled", session, origin)

    def redact(
        self, session: Session, origin: Origin = STRIPE, *, delay: float | None = None
    ) -> None:
        """Start redaction, which ends ``delay`` seconds later (None: the sandbox's usual time).

        An unfinished session is canceled by it. Redacting again changes nothing (no record says
        whether Stripe refuses that).

        Raises:
            Illegal: it is processing.
        """
        if session.redaction:
            return
        if session.status == "processing":
            # The docs say to wait; the sentence is ours, worded like the one for cancel.
            raise Illegal(
                "You cannot redact this VerificationSession because it has a status of"
                ' "processing". Wait until processing has ended.'
            )
        session.redaction = "processing"
        session.due = self.now() + (self.settings.redaction_time if delay is None else delay)
        self.links.close(session)
        session.last_error = None
        if session.status == "requires_input":
            session.status = "canceled"
            self._emit("canceled", session, origin)
        self.journal.touch(session)
        self._schedule(session)
        self._tick()

    def submit(
        self,
        session: Session,
        outcome: str,
        *,
        hold: bool = False,
        delay: float = 0.0,
    ) -> None:
        """Do what the user does on the hosted page; processing will find ``outcome``.

        With ``hold`` the session stays in processing until ``complete``, otherwise it is judged
        ``delay`` seconds later.

        Raises:
            Illegal: the session does not wait for input.
        """
        self._require(session, "submit", "submitted")
        self.links.close(session)
        # Whether Stripe shows the old error during a new attempt is not on record.
        session.status, session.last_error, session.outcome = "processing", None, outcome
        session.due = None if hold else self.now() + delay
        self._emit("processing", session)
        self._schedule(session)
        self._tick()

    def complete(self, session: Session, *, outcome: str | None = None) -> None:
        """End processing or redaction now, whatever the clock says.

        Raises:
            Illegal: neither is under way.
        """
        if session.status != "processing" and session.redaction in {None, "redacted"}:
            raise Illegal("There is nothing to complete: the session is not in processing.")
        if outcome and session.status != "processing":
            raise Illegal("A redaction has no outcome.")
        session.outcome = outcome or session.outcome
        self._finish(session, at=self.now())

    def override(self, session: Session, *, verified: bool) -> None:
        """Change the result by hand, as the Dashboard's "override status" does.

        The report stays as it is. That a session overridden to unverified has the error
        ``document_unverified_other`` is our guess.

        Raises:
            Illegal: it was never submitted, or is processing, canceled or redacted.
        """
        if (
            session.redaction
            or not session.last_report
            or session.status not in {"verified", "requires_input"}
        ):
            raise Illegal("Only the status of a session that was checked can be overridden.")
        self.links.close(session)
        session.status, session.last_error = "verified", None
        if not verified:
            session.status = "requires_input"
            code = "document_unverified_other"
            session.last_error = {"code": code, "reason": checks.LAST_ERRORS[code]}
        self._emit(session.status, session)

    def validate_redaction(self, session: Session) -> None:
        """Show the redaction status ``validated``.

        Stripe added it to the API in 2026 and says nowhere when it is seen; here it stands
        between processing and redacted, and only when asked for.

        Raises:
            Illegal: no redaction is under way.
        """
        if session.redaction != "processing":
            raise Illegal("There is no redaction under way.")
        session.redaction = "validated"
        self.journal.touch(session)

    def _require(self, session: Session, verb: str, participle: str) -> None:
        """Refuse an operation that only a session in requires_input allows.

        The sentence is Stripe's for cancel (on record, of a verified session); for the other
        verbs and for redacted sessions it is ours by analogy.
        """
        if session.redaction:
            raise Illegal(
                f"You cannot {verb} this VerificationSession because it has been redacted."
            )
        if session.status != "requires_input":
            raise Illegal(
                f"You cannot {verb} this VerificationSession because it has a status of"
                f' "{session.status}". Only a VerificationSession in "requires_input" status may'
                f" be {participle}."
            )

    def _finish(self, session: Session, *, at: float) -> None:
        """End what is under way: processing with its outcome, or redaction."""
        session.due = None
        if session.status == "processing":
            self._judge(session, at=at)
        else:
            self._erase(session)
            self._emit("redacted", session, at=at)

    def _judge(self, session: Session, *, at: float) -> None:
        outcome = session.outcome or checks.VERIFIED
        session.outcome = None
        report = self.reports.make(session, outcome, at=at)
        session.last_report, session.processed = report.id, at
        if outcome == checks.VERIFIED:
            session.status = "verified"
            self._emit("verified", session, at=at)
        else:
            session.status = "requires_input"
            session.last_error = {"code": outcome, "reason": checks.LAST_ERRORS[outcome]}
            self._emit("requires_input", session, at=at)

    def _erase(self, session: Session) -> None:
        """Put placeholders into the session, its reports, its events and its request logs."""
        session.redaction = "redacted"
        session.metadata = {}
        session.provided_details = checks.redact_part(session.provided_details or {}) or None
        self.reports.erase(session)
        self.events.erase(session, self.view(session))
        self.answers.erase(session)
        self.recorder.erase(session)

    # -- what the API shows ----------------------------------------------------------------

    def view(self, session: Session, expand: Expand | None = None) -> Json:
        """Return the session's JSON with what ``expand`` names."""
        view = session_view(
            session,
            self.settings.base_url,
            secret=self.links.secret_of(session),
            link=self.links.link_of(session),
        )
        if expand:
            report = self.reports.by_id.get(session.last_report or "")
            if "last_verification_report" in expand and report:
                view["last_verification_report"] = report_view(
                    report, expand["last_verification_report"]
                )
            if "verified_outputs" in expand:
                proven = session.status == "verified" and report
                view["verified_outputs"] = (
                    verified_outputs(report, expand["verified_outputs"])
                    if report and proven
                    else None
                )
        return view

    def _emit(
        self,
        change: str,
        session: Session,
        origin: Origin = STRIPE,
        *,
        at: float | None = None,
    ) -> None:
        self.journal.touch(session)
        event = Event(
            id=new_id("evt_1"),
            thin_id=new_id("evt_test_"),
            type=f"{SESSION}.{change}",
            created=self.now() if at is None else at,
            account=session.account,
            session=session.id,
            snapshot=self.view(session),
            request=origin.request,
            idempotency_key=origin.idempotency_key,
        )
        self.events.add(event)
        self.outbox.send(event)

    def set_key(self, key: Key) -> None:
        """Make, change or revoke an API key."""
        self.journal.keep(self.keys, key)
