"""The life cycle of Stripe Identity: every change of state, and the events each one causes.

``World`` does no I/O and reads no clock but the one it is given. Whatever changes within one
``step`` is handed to ``save`` together: a session, its event and the deliveries of that event are
stored in one transaction, or not at all.
"""

import contextlib
import heapq
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from stripe_identity_sandbox import checks
from stripe_identity_sandbox.objects import (
    EVENT_TYPES,
    SESSION,
    Answer,
    Attempt,
    Clock,
    Delivery,
    Endpoint,
    Event,
    Expand,
    Json,
    Key,
    Record,
    Report,
    Session,
    event_view,
    notification_view,
    report_view,
    session_view,
    verified_outputs,
)

DAY = 24 * 3600.0
#: "A client_secret expires after 24 hours" (Stripe's OpenAPI); the url lives 48.
TOKEN_LIFETIME = DAY
#: "up to 4 days" (docs.stripe.com/identity/verification-sessions#redact).
REDACTION_TIME = 4 * DAY
#: Events are listed and retrieved for 30 days (docs.stripe.com/api/events/list).
EVENT_LIFETIME = 30 * DAY
#: Results older than this need a key that may see all of them
#: (docs.stripe.com/identity/access-verification-results).
SENSITIVE_LIFETIME = 2 * DAY
#: Both secrets work for up to this long while one is rolled (docs.stripe.com/webhooks).
ROLL_OVERLAP = DAY
MAX_ENDPOINTS = 16
#: docs.stripe.com/api/idempotent_requests: at least 24 hours.
IDEMPOTENCY_LIFETIME = DAY

#: Seconds between tries. Docs: test mode 3 tries over a few hours, live mode up to 3 days with
#: exponential back-off. The single intervals are not published: these are our guess.
RETRIES = {
    "test": (3600.0, 7200.0),
    "live": (300.0, 1800.0, 7200.0, 18000.0, 36000.0, *[43200.0] * 4),
}

Save = Callable[[dict[tuple[str, str], Record | None]], None]


class Origin(NamedTuple):
    """The request that caused a change; empty when Stripe itself did."""

    request: str | None = None
    idempotency_key: str | None = None


STRIPE = Origin()


@dataclass(frozen=True)
class Settings:
    """How a world behaves; durations in seconds."""

    #: Where hosted pages are served.
    base_url: str = "http://127.0.0.1:12111"
    #: A text all invented personal data contains.
    marker: str = ""
    #: The ``api_version`` of events.
    api_version: str = "2026-10-28.endive"
    redaction_time: float = REDACTION_TIME
    #: The waits between the tries of a delivery.
    retries: tuple[float, ...] = RETRIES["test"]


class Illegal(Exception):
    """The object's status does not allow this operation."""


class World:
    """Everything Stripe would remember, and the only code that changes it.

    ``clock`` answers Unix seconds; ``advance`` moves the sandbox's time ahead of it.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        save: Save | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.offset = 0.0
        self.sessions: dict[str, Session] = {}
        self.reports: dict[str, Report] = {}
        self.events: dict[str, Event] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.deliveries: dict[str, Delivery] = {}
        self.keys: dict[str, Key] = {}
        self.answers: dict[str, Answer] = {}
        self.changed = threading.Condition()
        self._clock = clock
        self._save = save
        self._touched: dict[tuple[str, str], Record | None] = {}
        self._tokens: dict[str, str] = {}
        self._thin: dict[str, str] = {}
        self._session_events: dict[str, list[str]] = {}
        self._order = itertools.count()
        self._timers: list[tuple[float, int, str]] = []
        self._outbox: list[tuple[float, int, str]] = []

    # -- time and storage ------------------------------------------------------------------

    def now(self) -> float:
        """Return the sandbox's time, in Unix seconds."""
        return self._clock() + self.offset

    @contextlib.contextmanager
    def step(self) -> Iterator["World"]:
        """Hold the world still, let what is due happen, and store what the caller changes."""
        with self.changed:
            self._tick()
            try:
                yield self
            finally:
                if self._touched:
                    touched, self._touched = self._touched, {}
                    if self._save:
                        self._save(touched)
                    self.changed.notify_all()

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock forward; what falls due on the way happens, in its order."""
        self.offset += seconds
        self._touch(Clock(id="clock", offset=self.offset))
        self._tick()

    def load(self, records: list[Record]) -> None:
        """Take over stored records, in the order in which they were made."""
        for record in records:
            if isinstance(record, Clock):
                self.offset = record.offset
        for record in records:
            match record:
                case Session():
                    self._keep(self.sessions, record)
                    if record.token:
                        self._tokens[record.token] = record.id
                    self._schedule(record)
                case Event():
                    self._keep(self.events, record)
                    self._thin[record.thin_id] = record.id
                    self._session_events.setdefault(record.session, []).append(record.id)
                case Delivery():
                    # A try that was under way when the sandbox stopped has to be made again.
                    if record.state == "sending":
                        record.state, record.due = "pending", self.now()
                    self._keep(self.deliveries, record)
                    self._send_when_due(record)
                case Report():
                    self._keep(self.reports, record)
                case Endpoint():
                    self._keep(self.endpoints, record)
                case Key():
                    self._keep(self.keys, record)
                case Answer() if record.status:  # one that was being made never will be
                    self._keep(self.answers, record)
        self._touched.clear()

    def _keep(self, shelf: dict[str, Any], record: Record) -> None:
        shelf[record.id] = record
        self._touched[type(record).__name__, record.id] = record

    def _touch(self, *records: Record) -> None:
        for record in records:
            self._touched[type(record).__name__, record.id] = record

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
        return min((queue[0][0] for queue in (self._timers, self._outbox) if queue), default=None)

    # -- the life of a session -------------------------------------------------------------

    def create(
        self, params: Json, *, account: str | None = None, origin: Origin = STRIPE
    ) -> Session:
        """Create a session from checked parameters."""
        kind, flow = params.get("type"), params.get("verification_flow")
        options = {part: dict(chosen) for part, chosen in (params.get("options") or {}).items()}
        if flow:
            # What a flow asks for is set up in the Dashboard, which the sandbox has none of.
            kind = "verification_flow"
            required = {"require_verification": True}
            options = {"document": {}, "email": required, "phone": dict(required)}
        elif kind:
            options.setdefault(kind, {})
        session = Session(
            id=_new_id("vs_1"),
            account=account,
            created=int(self.now()),
            type=kind,
            options=options,
            metadata=params.get("metadata") or {},
            client_reference_id=params.get("client_reference_id"),
            related_customer=params.get("related_customer"),
            related_customer_account=params.get("related_customer_account"),
            related_person=params.get("related_person"),
            provided_details=params.get("provided_details") or None,
            verification_flow=flow,
            return_url=params.get("return_url"),
        )
        self._keep(self.sessions, session)
        self._open(session)
        self._emit("created", session, origin)
        return session

    def refresh(self, session: Session) -> None:
        """Give a session that waits for input a usable url and client_secret again.

        Stripe does this on retrieval; ours stay the same until they are used or expire.
        """
        expired = session.token_created + TOKEN_LIFETIME <= self.now()
        if session.status == "requires_input" and (session.token is None or expired):
            self._open(session)

    def update(self, session: Session, params: Json) -> None:
        """Change metadata, options, type or provided details of a session that waits for input.

        Raises:
            Illegal: the session has another status, or is being redacted.
        """
        self._require(session, "update", "updated")
        for name, value in params.get("metadata", {}).items():
            if value:
                session.metadata = session.metadata | {name: value}
            else:
                session.metadata = {k: v for k, v in session.metadata.items() if k != name}
        if params.get("metadata") == {}:
            session.metadata = {}
        if "type" in params and params["type"] != session.type:
            session.type = params["type"]
            session.options = {params["type"]: {}}
        for part, chosen in params.get("options", {}).items():
            # Unset with an empty value; what is given is laid over what was there.
            laid = {**session.options.get(part, {}), **chosen} if chosen else {}
            session.options = session.options | {part: laid}
        if "provided_details" in params:
            given = (session.provided_details or {}) | (params["provided_details"] or {})
            session.provided_details = {k: v for k, v in given.items() if v} or None
        self._touch(session)

    def cancel(self, session: Session, origin: Origin = STRIPE) -> None:
        """Cancel; a session that is canceled already stays as it is.

        Raises:
            Illegal: it is processing, verified or redacted.
        """
        if session.status == "canceled" and not session.redaction:
            return
        self._require(session, "cancel", "canceled")
        self._close(session)
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
        self._close(session)
        session.last_error = None
        if session.status == "requires_input":
            session.status = "canceled"
            self._emit("canceled", session, origin)
        self._touch(session)
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
        self._close(session)
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
        session.outcome = outcome or session.outcome
        self._finish(session, at=self.now())

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
        self._touch(session)

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

    def _open(self, session: Session) -> None:
        self._close(session)
        session.token, session.token_created = secrets.token_hex(20), self.now()
        self._tokens[session.token] = session.id
        self._touch(session)

    def _close(self, session: Session) -> None:
        if session.token:
            del self._tokens[session.token]
            session.token = None

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
        report = Report(
            id=_new_id("vr_1"),
            account=session.account,
            created=int(at),
            session=session.id,
            type=session.type or "document",
            options=session.options,
            client_reference_id=session.client_reference_id,
            verification_flow=session.verification_flow,
            parts=checks.attempt(
                session.type,
                session.options,
                session.provided_details,
                outcome,
                marker=self.settings.marker,
                file_id=lambda: _new_id("file_1"),
            ),
        )
        self._keep(self.reports, report)
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
        for report in self.reports.values():
            if report.session == session.id:
                report.parts = {k: checks.redact_part(part) for k, part in report.parts.items()}
                self._touch(report)
        erased = self.view(session)
        for event in self.events_of(session):
            kept: Json = {"metadata": {}, "client_secret": None, "url": None}
            if "provided_details" in event.snapshot:
                kept["provided_details"] = erased.get("provided_details")
            event.snapshot = event.snapshot | kept
            self._touch(event)
        for answer in self.answers.values():
            if answer.session == session.id:
                answer.body = ""
                self._touch(answer)

    # -- what the API shows ----------------------------------------------------------------

    def view(self, session: Session, expand: Expand | None = None) -> Json:
        """Return the session's JSON with what ``expand`` names."""
        view = session_view(session, self.settings.base_url)
        if expand:
            report = self.reports.get(session.last_report or "")
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

    def session_of(self, token: str) -> Session | None:
        """Return the session whose hosted page this token opens."""
        return self.sessions.get(self._tokens.get(token, ""))

    def event_of(self, event_id: str) -> Event | None:
        """Return an event by its id in either form, for 30 days."""
        event = self.events.get(self._thin.get(event_id, event_id))
        return event if event and event.created > self.now() - EVENT_LIFETIME else None

    def events_of(self, session: Session) -> list[Event]:
        """Return a session's events, oldest first."""
        return [self.events[event_id] for event_id in self._session_events[session.id]]

    def pending_webhooks(self, event: Event) -> int:
        """Return how many endpoints have not answered this event with a 2xx."""
        deliveries = [self.deliveries[id_] for id_ in event.deliveries]
        wanted = {d.endpoint for d in deliveries if d.state != "canceled"}
        return len(wanted - {d.endpoint for d in deliveries if d.state == "delivered"})

    def event_view(self, event: Event, api_version: str | None = None) -> Json:
        """Return the snapshot form of the event."""
        return event_view(
            event,
            api_version=api_version or self.settings.api_version,
            pending_webhooks=self.pending_webhooks(event),
        )

    # -- events and their deliveries -------------------------------------------------------

    def _emit(
        self,
        change: str,
        session: Session,
        origin: Origin = STRIPE,
        *,
        at: float | None = None,
    ) -> None:
        self._touch(session)
        event = Event(
            id=_new_id("evt_1"),
            thin_id=_new_id("evt_test_"),
            type=f"{SESSION}.{change}",
            created=self.now() if at is None else at,
            account=session.account,
            session=session.id,
            snapshot=self.view(session),
            request=origin.request,
            idempotency_key=origin.idempotency_key,
        )
        self._keep(self.events, event)
        self._thin[event.thin_id] = event.id
        self._session_events.setdefault(session.id, []).append(event.id)
        for endpoint in self.endpoints.values():
            if _subscribed(endpoint, event):
                self._deliver(event, endpoint)

    def _deliver(self, event: Event, endpoint: Endpoint, *, manual: bool = False) -> Delivery:
        delivery = Delivery(
            id=_new_id("del_"),
            event=event.id,
            endpoint=endpoint.id,
            form=endpoint.form,
            manual=manual,
            due=self.now(),
        )
        self._keep(self.deliveries, delivery)
        event.deliveries.append(delivery.id)
        self._touch(event)
        self._send_when_due(delivery)
        return delivery

    def _send_when_due(self, delivery: Delivery) -> None:
        if delivery.due is not None:
            heapq.heappush(self._outbox, (delivery.due, next(self._order), delivery.id))

    def resend(self, event: Event) -> list[Delivery]:
        """Try once more at every endpoint that takes the event; automatic tries go on beside it.

        An endpoint that was made after the event gets it now.
        """
        return [
            self._deliver(event, endpoint, manual=True)
            for endpoint in self.endpoints.values()
            if _subscribed(endpoint, event)
        ]

    def put_off(self, delivery: Delivery, seconds: float) -> None:
        """Make the next try of a delivery so many seconds from now."""
        delivery.state, delivery.due = "pending", self.now() + seconds
        self._touch(delivery)
        self._send_when_due(delivery)

    def take_due(self) -> list[Delivery]:
        """Return the deliveries to try now, each marked as sending."""
        taken = []
        while self._outbox and self._outbox[0][0] <= self.now():
            due, _, delivery_id = heapq.heappop(self._outbox)
            delivery = self.deliveries[delivery_id]
            if delivery.due != due:
                continue
            endpoint = self.endpoints.get(delivery.endpoint)
            delivery.due = None
            if endpoint is None:
                delivery.state = "canceled"
            elif endpoint.status == "enabled":
                delivery.state = "sending"
                taken.append(delivery)
            self._touch(delivery)
        return taken

    def record(self, delivery: Delivery, attempt: Attempt) -> None:
        """Note one try; a failed one is tried again on Stripe's schedule while there is one.

        Further tries of a duplicate change nothing any more.
        """
        delivery.attempts.append(attempt)
        self._touch(delivery)
        if attempt.status is not None and 200 <= attempt.status < 300:
            delivery.state, delivery.due = "delivered", None
        elif delivery.state == "sending":
            if delivery.tries < len(self.settings.retries) and not delivery.manual:
                self.put_off(delivery, self.settings.retries[delivery.tries])
                delivery.tries += 1
            else:
                delivery.state = "failed"

    def drop(self, delivery: Delivery, attempt: Attempt) -> None:
        """Lose a delivery for good."""
        delivery.state = "dropped"
        delivery.attempts.append(attempt)
        self._touch(delivery)

    def payload(self, delivery: Delivery) -> Json:
        """Return the body a delivery carries."""
        event = self.events[delivery.event]
        if delivery.form == "thin":
            return notification_view(event)
        return self.event_view(event, self.endpoints[delivery.endpoint].api_version)

    # -- webhook endpoints -----------------------------------------------------------------

    def add_endpoint(
        self,
        url: str,
        *,
        enabled_events: list[str],
        secret: str | None = None,
        form: str = "snapshot",
        **fields: Any,
    ) -> Endpoint:
        """Make an endpoint; without a secret one is made up.

        Raises:
            Illegal: there are 16 already.
        """
        if len(self.endpoints) >= MAX_ENDPOINTS:
            # The limit is documented, the sentence is not.
            raise Illegal(f"You have reached the maximum of {MAX_ENDPOINTS} webhook endpoints.")
        endpoint = Endpoint(
            id=_new_id("we_1"),
            created=int(self.now()),
            url=url,
            enabled_events=enabled_events,
            secrets=[(secret or _new_secret(), None)],
            form=form,
            **fields,
        )
        self._keep(self.endpoints, endpoint)
        return endpoint

    def change_endpoint(self, endpoint: Endpoint, **fields: Any) -> None:
        """Set fields; an endpoint that is enabled again gets what is still due."""
        resumed = endpoint.status == "disabled" and fields.get("status") == "enabled"
        for name, value in fields.items():
            setattr(endpoint, name, value)
        self._touch(endpoint)
        if resumed:
            for delivery in self.deliveries.values():
                missed = delivery.state == "pending" and delivery.due is None
                if delivery.endpoint == endpoint.id and missed:
                    self.put_off(delivery, 0.0)

    def drop_endpoint(self, endpoint: Endpoint) -> None:
        """Delete an endpoint; what it has not received yet is not sent any more."""
        del self.endpoints[endpoint.id]
        self._touched[type(endpoint).__name__, endpoint.id] = None
        for delivery in self.deliveries.values():
            if delivery.endpoint == endpoint.id and delivery.state in {"pending", "sending"}:
                delivery.state, delivery.due = "canceled", None
                self._touch(delivery)

    def roll_secret(self, endpoint: Endpoint, *, overlap: float) -> str:
        """Give an endpoint a new secret; the old one signs too for ``overlap`` seconds."""
        expiry = self.now() + min(overlap, ROLL_OVERLAP)
        old = [(secret, ends or expiry) for secret, ends in endpoint.secrets]
        endpoint.secrets = [(_new_secret(), None), *old]
        self._touch(endpoint)
        return endpoint.secrets[0][0]

    def signing_secrets(self, endpoint: Endpoint) -> list[str]:
        """Return the secrets that sign now, newest first."""
        return [s for s, ends in endpoint.secrets if ends is None or ends > self.now()]

    # -- keys and idempotency --------------------------------------------------------------

    def set_key(self, key: Key) -> None:
        """Make, change or revoke an API key."""
        self._keep(self.keys, key)

    def answer_to(self, id_: str) -> Answer | None:
        """Return what was answered under an idempotency key, for 24 hours."""
        answer = self.answers.get(id_)
        return answer if answer and not self._expired(answer) else None

    def begin_answer(self, answer: Answer) -> None:
        """Note that a request with this idempotency key is under way; forget those of old."""
        self.answers.pop(answer.id, None)
        self._keep(self.answers, answer)
        for old in list(itertools.takewhile(self._expired, self.answers.values())):
            del self.answers[old.id]
            self._touched[type(old).__name__, old.id] = None

    def _expired(self, answer: Answer) -> bool:
        return answer.created <= self.now() - IDEMPOTENCY_LIFETIME

    def end_answer(self, answer: Answer, status: int, body: str, session: str | None) -> None:
        """Keep what was answered; status 0 forgets the key, as if it had never been used."""
        if status == 0:
            self.answers.pop(answer.id, None)
            self._touched[type(answer).__name__, answer.id] = None
        else:
            answer.status, answer.body, answer.session = status, body, session
            self._touch(answer)


def _subscribed(endpoint: Endpoint, event: Event) -> bool:
    if endpoint.status != "enabled":
        return False
    if endpoint.connect is not None and endpoint.connect != bool(event.account):
        return False
    name = f"v1.{event.type}" if endpoint.form == "thin" else event.type
    # docs.stripe.com/identity/verification-sessions#events: redacted has to be named.
    wildcard = "*" in endpoint.enabled_events and not name.endswith(".redacted")
    return wildcard or name in endpoint.enabled_events


def all_events(form: str) -> list[str]:
    """Return every event type by name, so that ``redacted`` is among them."""
    return [f"v1.{name}" if form == "thin" else name for name in EVENT_TYPES]


def _new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def _new_secret() -> str:
    return f"whsec_{secrets.token_hex(16)}"
