"""What each failure of Stripe's API means: what waits, how long, what follows, whether to alarm.

Two tables. `PATTERNS` reads an answer as a kind of failure; `RULES` says what a kind means for each
of our calls. docs/reliability.md shows both (a test compares), and
tests/integration/workers/test_failures.py walks every row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from service import logs
from workers.router import backoff

if TYPE_CHECKING:
    from service.inbox import Claim, Inbox
    from service.metrics import Metrics

Call = Literal["session", "thin event", "sensitive", "list"]
"""Our calls: the session with its last report; a thin event, for the id of its other form; the
fields of `needs=`; events, sessions and accounts, for reconciliation."""

FailureKind = Literal[
    "unreachable",
    "broken",
    "limited",
    "locked",
    "key",
    "forbidden",
    "account",
    "missing",
    "invalid",
    "stale",
]

KEYS: dict[Call, str] = {
    "session": "STRIPE_API_KEY",
    "thin event": "STRIPE_API_KEY",
    "sensitive": "STRIPE_RESTRICTED_KEY",
    "list": "STRIPE_API_KEY",
}
"""The setting that holds the key of each call."""


class ResponsePattern(NamedTuple):
    """Answers of Stripe, and the kind of failure they are; None: any.

    `envelope`: whether the body is Stripe's error envelope. A proxy's error page is not, and says
    nothing about the session.
    """

    status: range | None
    code: frozenset[str] | None
    envelope: bool | None
    kind: FailureKind


def _is(status: int) -> range:
    return range(status, status + 1)


PATTERNS: tuple[ResponsePattern, ...] = (
    # A lock is of one object, a limit is of an account
    # (https://docs.stripe.com/rate-limits#object-lock-timeouts).
    ResponsePattern(None, frozenset({"lock_timeout"}), None, "locked"),
    ResponsePattern(_is(409), None, None, "locked"),
    ResponsePattern(_is(429), None, None, "limited"),
    ResponsePattern(None, frozenset({"rate_limit"}), None, "limited"),
    ResponsePattern(range(400, 500), frozenset({"account_invalid"}), None, "account"),
    ResponsePattern(_is(401), None, None, "key"),
    ResponsePattern(_is(403), None, None, "forbidden"),
    ResponsePattern(_is(404), None, True, "missing"),
    ResponsePattern(range(400, 500), None, True, "invalid"),
    ResponsePattern(None, None, None, "broken"),
)
"""The first row that fits counts. No answer at all is `unreachable`; an answer that is older than
the event is `stale`."""


def kind_of(status: int, code: str | None, *, envelope: bool) -> FailureKind:
    """Return the kind of failure that an answer is."""
    return next(
        row.kind
        for row in PATTERNS
        if (row.status is None or status in row.status)
        and (row.code is None or code in row.code)
        and row.envelope in {None, envelope}
    )


class StripeFailure(Exception):
    """A call that failed. Its text names the call, a kind, a status and a code.

    It never holds Stripe's sentence.

    Attributes:
        kind: see `PATTERNS`.
        status: the HTTP status, if there was an answer.
        code: Stripe's error code, such as `resource_missing`.
        request_id: `req_...`, to look the call up in the Dashboard.
        retry_after: seconds Stripe asked to wait, an hour at most.
        call: which of our calls it was.
        what: kind, status and code in words, without the call.
    """

    def __init__(
        self,
        kind: FailureKind,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        call: Call = "session",
    ) -> None:
        self.what = " ".join(str(part) for part in (kind, status, code) if part)
        super().__init__(self.what if call == "session" else f"{call}: {self.what}")
        self.kind, self.call = kind, call
        self.status, self.code, self.request_id = status, code, request_id
        self.retry_after = retry_after

    @property
    def rule(self) -> Rule:
        """What it means."""
        return RULES[self.call][self.kind]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a kind of failure means for one of our calls.

    Attributes:
        who: who waits. `event`: this event; `handlers`: those that need the fields, while the
            others run; `everyone`: no worker claims an event meanwhile; `account`: none of this
            connected account is claimed, or of one's own account none at all, and a list is asked
            for again in the next pass; `nobody`: the work goes on without the answer. In the rows
            of `sensitive` the handlers wait in any case.
        shortest, longest: seconds to wait. Waits grow with the time that has passed, with jitter.
        lasts: seconds after which it is not waited for any longer. They count from when the event
            was accepted or put back, or with `since_result` from when the report was made. An
            event waits once in any case (`is_settled`).
        then: what happens after that, for people; the reason of a dead event or handler.
        alarm: whether a person has to act: an error line `stripe_refuses_our_key`, which names
            the key, the call and the handlers.
    """

    who: Literal["nobody", "event", "handlers", "everyone", "account"]
    longest: float = 60
    shortest: float = 0
    lasts: float = math.inf
    since_result: bool = False
    then: str = ""
    alarm: bool = False


RECHECK = 120
"""Seconds for which an answer that contradicts the event is asked for again before it is believed:
Stripe's reads may lag behind [secondary]."""

STALE_FOR = 30
"""Seconds for which a session that looks as before its event is read again. It may have been set
back since, and then the event has waited for nothing."""

RESULTS_SHOWN_FOR = 48 * 3600
"""Seconds after the result for which Stripe shows the fields of `needs=` to a restricted key that
has no IP allow-list (https://docs.stripe.com/identity/access-verification-results)."""

_UNTIL_IT_PASSES = Rule("event")
_SHORTLY = Rule("event", longest=4)
# Limits are counted by account (https://docs.stripe.com/rate-limits).
_LIMITED = Rule("account")
_UNTIL_A_PERSON_ACTS = Rule("event", shortest=60, alarm=True)
_WHILE_SHOWN = replace(
    _UNTIL_A_PERSON_ACTS,
    who="handlers",
    lasts=RESULTS_SHOWN_FOR,
    since_result=True,
    then="sensitive_expired: Stripe shows these fields for 48 hours after the result, unless the"
    " key has an IP allow-list",
)
_ON_ITS_OWN = Rule("nobody", lasts=0, then="the event counts as a change of its own")
_NEXT_PASS = Rule("account", then="asked again in the next pass")

RULES: dict[Call, dict[FailureKind, Rule]] = {
    "session": {
        "unreachable": _UNTIL_IT_PASSES,
        "broken": _UNTIL_IT_PASSES,
        "limited": _LIMITED,
        "locked": _SHORTLY,
        "key": replace(_UNTIL_A_PERSON_ACTS, who="everyone"),
        "forbidden": _UNTIL_A_PERSON_ACTS,
        "account": Rule(
            "event",
            lasts=RECHECK,
            then="the account is no longer connected, or STRIPE_API_KEY is not its platform's",
        ),
        "missing": Rule(
            "event",
            lasts=RECHECK,
            then="STRIPE_API_KEY sees no such session: is it of this account and mode?",
        ),
        "invalid": Rule(
            "event", lasts=0, then="Stripe does not show the session: see the request's log there"
        ),
        "stale": Rule("event", longest=8, lasts=STALE_FOR, then="what was read is believed"),
    },
    "thin event": {
        "unreachable": _UNTIL_IT_PASSES,
        "broken": _UNTIL_IT_PASSES,
        "limited": _LIMITED,
        "locked": _SHORTLY,
        "key": replace(_UNTIL_A_PERSON_ACTS, who="everyone"),
        # Its handlers need the session, not the id of the other form.
        "forbidden": replace(_ON_ITS_OWN, alarm=True),
        "account": _ON_ITS_OWN,
        "missing": replace(_ON_ITS_OWN, who="event", lasts=RECHECK),
        "invalid": _ON_ITS_OWN,
    },
    "sensitive": {
        "unreachable": Rule("handlers"),
        "broken": Rule("handlers"),
        "limited": _LIMITED,
        "locked": Rule("handlers", longest=4),
        "key": _WHILE_SHOWN,
        "forbidden": _WHILE_SHOWN,
        "account": Rule(
            "handlers",
            lasts=RECHECK,
            then="STRIPE_RESTRICTED_KEY has no access to this account",
        ),
        "missing": Rule(
            "handlers",
            lasts=RECHECK,
            then="STRIPE_RESTRICTED_KEY sees no such session: is it of this account and mode?",
        ),
        "invalid": Rule(
            "handlers",
            lasts=0,
            then="Stripe does not show these fields: they may be older than 48 hours",
        ),
    },
    "list": {
        "unreachable": _NEXT_PASS,
        "broken": _NEXT_PASS,
        "limited": _NEXT_PASS,
        "locked": _NEXT_PASS,
        "key": replace(_NEXT_PASS, alarm=True),
        "forbidden": replace(_NEXT_PASS, alarm=True),
        "account": Rule(
            "account", then="Stripe shows nothing of it any more; asked again once a day"
        ),
        "missing": _NEXT_PASS,
        "invalid": _NEXT_PASS,
    },
}

log = logs.get(__name__)


class Verdict(NamedTuple):
    """What a failure means for one event, or for handlers of it.

    Attributes:
        delay: seconds to wait; None when it is waited for no longer.
        reason: what to write down.
    """

    delay: float | None
    reason: str


class Judge:
    """Applies the tables: pauses, counts, raises the alarm, and says who waits for how long."""

    def __init__(self, inbox: Inbox, metrics: Metrics) -> None:
        self._inbox, self._metrics = inbox, metrics

    def verdict(
        self, failure: StripeFailure, claim: Claim, handlers: Sequence[str] = (), since: float = 0
    ) -> Verdict:
        """Say what a failure means.

        Args:
            failure: what failed.
            claim: the event that it concerns.
            handlers: of it, those that it concerns, where not all.
            since: when the result was there, unix seconds.

        May raise `redis.RedisError`.
        """
        rule = failure.rule
        self._metrics.count("fetches", failure.kind)
        age = claim.now / 1000 - since if rule.since_result else claim.age
        if rule.alarm:
            alarm(failure, handlers, account=claim.event.account)
        if age >= rule.lasts and (rule.who != "event" or is_settled(failure, claim)):
            return Verdict(None, f"stripe: {failure}: {rule.then}")
        delay = max(rule.shortest, backoff(rounds(claim.age), rule.longest))
        delay += failure.retry_after or 0
        if rule.who in {"everyone", "account"}:
            account = claim.event.account or "" if rule.who == "account" else ""
            self._inbox.pause(min(delay, rule.longest), f"stripe: {failure}", account)
        return Verdict(delay, f"stripe: {failure}")


def is_settled(failure: StripeFailure, claim: Claim) -> bool:
    """Whether to believe an answer that may be early: time has passed, and it came before.

    The time counts from the acceptance. If the event was not tried in that time, since no worker
    ran or Stripe did not answer, Stripe is asked once more.
    """
    lasts = failure.rule.lasts
    return claim.age >= lasts and (not lasts or claim.reason == f"stripe: {failure}")


def alarm(failure: StripeFailure, handlers: Sequence[str] = (), account: str | None = None) -> None:
    """Log that a person has to act on a key, and on which."""
    log.error(
        "stripe_refuses_our_key",
        key_name=KEYS[failure.call],
        call=failure.call,
        handler=", ".join(handlers) or None,
        account=account,
        status=failure.status,
        code=failure.code,
        request_id=failure.request_id,
        hint=hint_of(failure),
    )


def hint_of(failure: StripeFailure) -> str:
    """Return what to do about a failure, as far as somebody has to."""
    if not failure.rule.alarm:
        return failure.rule.then
    name = KEYS[failure.call]
    if failure.kind == "key":
        return f"{name} is revoked, expired or mistyped: put a valid one in its place"
    right = "read access to Events" if failure.call == "list" else "the right"
    return f"{name} lacks {right}, which the request's log in Stripe's Dashboard names: give it"


def rounds(age: float) -> int:
    """Return the exponent with which waits grow as long again as the time that has passed."""
    return int(age).bit_length()
