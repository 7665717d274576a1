"""What a handler gets: the event, and what Stripe says of the session now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from structlog.stdlib import BoundLogger

from identity_webhooks.event import Event, Kind
from identity_webhooks.handlers import Misuse
from identity_webhooks.once import Blocks

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from stripe.identity import VerificationReport, VerificationSession

    from identity_webhooks.once import Database

OutcomeKind = Literal["created", "processing", "needs_input", "verified", "canceled", "redacted"]

Need = Literal[
    "verified_outputs.dob",
    "verified_outputs.id_number",
    "verified_outputs.sex",
    "verified_outputs.unparsed_place_of_birth",
    "verified_outputs.unparsed_sex",
    "last_verification_report.document.dob",
    "last_verification_report.document.expiration_date",
    "last_verification_report.document.number",
    "last_verification_report.document.sex",
    "last_verification_report.document.unparsed_place_of_birth",
    "last_verification_report.document.unparsed_sex",
    "last_verification_report.id_number.dob",
    "last_verification_report.id_number.id_number",
]
"""What `needs=` may name: the personal fields that the API leaves out unless they are expanded by
name, as of its version 2025-05-28. A test compares them with the API description."""

SENSITIVE: dict[str, str] = {
    need: need.removeprefix("verified_outputs.")
    .removeprefix("last_verification_report.")
    .replace(".", "_")
    for need in get_args(Need)
}
"""Each `Need`, and the attribute of `Verification.sensitive` it becomes. Stripe shows
these only to a restricted key, each expanded by name
(https://docs.stripe.com/identity/access-verification-results)."""

# Codes that another attempt of the same user will not cure. [inferred from the descriptions in
# https://docs.stripe.com/identity/handle-verification-outcomes]
_FINAL_CODES = frozenset({"under_supported_age", "country_not_supported"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of the session now.

    Attributes:
        kind: `created`, `processing`, `needs_input`, `verified`, `canceled`; `redacted` only for
            handlers of `redacted` events.
        reason: for `needs_input`, the code of `last_error`, such as `document_expired`; None when
            somebody set the status back in the Dashboard.
        user_can_retry: whether another attempt of the same user may succeed.
    """

    kind: OutcomeKind
    reason: str | None = None
    user_can_retry: bool = False

    if not TYPE_CHECKING:  # type checkers find it themselves, unless they see this

        def __eq__(self, other: object) -> bool:
            if isinstance(other, str):  # no outcome equals a text, and nothing would be done
                raise Misuse(f"v.outcome is no text: write v.outcome.kind == {str(other)!r}")
            if not isinstance(other, Outcome):
                return NotImplemented
            ours = (self.kind, self.reason, self.user_can_retry)
            return ours == (other.kind, other.reason, other.user_can_retry)

        def __hash__(self) -> int:
            return hash((self.kind, self.reason, self.user_can_retry))

    @classmethod
    def of(cls, session: VerificationSession, event: Kind | None = None) -> Outcome:
        """Read it off a session, for the handlers of this kind of event.

        Redaction removes data and unverifies nobody: the status stays the outcome, and only
        handlers of `redacted` events are told `redacted`.
        """
        if event == "redacted" and is_redacted(session):
            return cls("redacted")
        if session.status != "requires_input":
            kinds: dict[str, OutcomeKind] = {"verified": "verified", "canceled": "canceled"}
            # Stripe may add statuses; one we do not know is not final.
            return cls(kinds.get(session.status, "processing"))
        # Stripe's schema does not require `last_error` to be there.
        error = getattr(session, "last_error", None)
        if error is not None and error.code:
            return cls("needs_input", error.code, user_can_retry=error.code not in _FINAL_CODES)
        # A new session and one whose status was overridden in the Dashboard look the same; the
        # kind of the event tells them apart.
        kind: OutcomeKind = "created" if event in {None, "created"} else "needs_input"
        return cls(kind, user_can_retry=True)


def is_redacted(session: VerificationSession) -> bool:
    """Whether the personal data of a session is gone. Redaction takes up to four days."""
    # Stripe's schema does not require `redaction` to be there. Its third status, `validated`, is
    # undocumented, and taken for one that comes after.
    redaction = getattr(session, "redaction", None)
    return redaction is not None and redaction.status != "processing"


class Sensitive:
    """The sensitive fields that a handler declared in `needs=`; others raise AttributeError.

    `repr` shows names only. Dates are `datetime.date`. A field is None where Stripe has none, and
    after redaction.
    """

    if TYPE_CHECKING:
        dob: date | None
        id_number: str | None
        sex: str | None
        unparsed_place_of_birth: str | None
        unparsed_sex: str | None
        document_dob: date | None
        document_expiration_date: date | None
        document_number: str | None
        document_sex: str | None
        document_unparsed_place_of_birth: str | None
        document_unparsed_sex: str | None
        id_number_dob: date | None
        id_number_id_number: str | None

    else:

        def __getattr__(self, name: str) -> Any:
            # Not `self._values`, which an instance that is being copied does not have yet.
            values = object.__getattribute__(self, "_values")
            if name in values:
                return values[name]
            for need, attribute in SENSITIVE.items():
                if attribute == name:
                    raise AttributeError(f"{name} was not fetched: declare needs=[{need!r}]")
            raise AttributeError(f"there is no sensitive field {name!r}")

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __repr__(self) -> str:
        return f"<Sensitive: {', '.join(self._values) or 'nothing declared'}>"

    def __or__(self, other: Sensitive) -> Sensitive:
        """Return the fields of both."""
        return Sensitive(self._values | other._values)

    def values(self) -> list[Any]:
        """Return the values themselves, for masking."""
        return list(self._values.values())

    def only(self, needs: frozenset[str]) -> Sensitive:
        """Return the part that these needs name."""
        names = {SENSITIVE[need] for need in needs}
        return Sensitive({name: v for name, v in self._values.items() if name in names})


@dataclass(frozen=True, slots=True)
class Verification:
    """One event, as a handler sees it. `repr` shows no personal data.

    Attributes:
        event: what happened: id, kind, session id, account, time.
        session: the session as it is *now*, with `verified_outputs` where there are any.
        report: the last report, if there was an attempt.
        outcome: the state of the session now.
        sensitive: the fields declared in `needs=`.
        idempotency_key: the same for every run of this handler for this event: commit it together
            with the effect, and the effect happens once.
        attempt: 1 for the first run.
        last_attempt: whether it will not be run again should it fail now (`Retry` with a delay
            counts as failing, too).
        superseded: a later state has overtaken the event (only with `superseded=True`).
        log: a logger bound to event and handler.
        order: milliseconds of Redis' clock; of two runs for one session, the one with the larger
            number has read the session later (a fencing token). 0 outside of a worker.
    """

    event: Event
    session: VerificationSession = field(repr=False)
    report: VerificationReport | None = field(repr=False)
    outcome: Outcome
    sensitive: Sensitive
    idempotency_key: str
    attempt: int
    superseded: bool
    log: BoundLogger = field(repr=False)
    last_attempt: bool = False
    order: int = 0
    _once: Blocks = field(default_factory=Blocks, init=False, repr=False, compare=False)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The session's metadata, read-only; empty when there are none. Redaction empties it."""
        metadata: Any = getattr(self.session, "metadata", None)
        return MappingProxyType(metadata.to_dict() if metadata is not None else {})

    @property
    def redacted(self) -> bool:
        """Whether the personal data is gone: the fields that held it are None.

        It says nothing of the status: a verified session stays verified.
        """
        return is_redacted(self.session)

    @property
    def subject(self) -> str | None:
        """Your id of the person: `client_reference_id`, else `metadata["user_id"]`.

        None when neither is set. Redaction empties the metadata; `client_reference_id` is the safer
        place. Use an id of yours there, not an e-mail address: it is kept by Stripe, and logged.
        """
        reference = getattr(self.session, "client_reference_id", None)
        return reference or self.metadata.get("user_id") or None

    @overload
    def once(
        self, database: Engine, name: str = ""
    ) -> Callable[[Callable[[Connection], None]], bool]: ...

    @overload
    def once(
        self, database: Database, name: str = ""
    ) -> Callable[[Callable[[Database], None]], bool]: ...

    @overload
    def once(self, database: Any, name: str = "") -> Callable[[Callable[[Any], None]], bool]: ...

    def once(self, database: Any, name: str = "") -> Callable[[Callable[[Any], None]], bool]:
        """Run an effect and write down this handler's key in one transaction, or skip it.

        The function below it runs at once; its effect and the key are committed together. When the
        key is there already, it is skipped. It gets a connection (or the session that was given),
        and its name becomes True or False: whether it was run.

            @v.once(engine)
            def grant(db: Connection) -> None:
                db.execute(...)

        Args:
            database: an engine, a connection or a session of SQLAlchemy 2, or a connection of
                Django or its alias, with no transaction open: `once` begins and commits it. The
                table is made by `identity_webhooks.once.create_table`.
            name: the name of the effect, where a handler has several: each happens once. Letters,
                digits, dots and dashes; under another name the effect happens again.

        Raises:
            Misuse: it is none of these, or a transaction is open or would not hold; the function
                returned anything, or made a `Retry` and did not raise it; it is used inside of
                another one; or this run has had an effect of this name already.
            Retry: the key cannot be written down; the reason says why.
        """
        return self._once.block(database, self.idempotency_key, name)
