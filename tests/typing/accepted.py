"""What handler authors write, and must pass their type checker. Never run."""

from collections.abc import Callable
from datetime import date
from typing import Literal, TypeVar, assert_type

from pydantic_settings import BaseSettings
from stripe.identity import VerificationReport, VerificationSession

from identity_webhooks import Discard, Outcome, Retry, Sensitive, Verification, on

Function = TypeVar("Function", bound=Callable[..., object])


@on("verified", needs=["verified_outputs.dob"])
def grant_access(v: Verification) -> None:
    assert_type(v.session, VerificationSession)
    assert_type(v.report, VerificationReport | None)
    assert_type(v.sensitive, Sensitive)
    assert_type(v.sensitive.dob, date | None)
    assert_type(v.sensitive.document_number, str | None)
    assert_type(v.subject, str | None)
    assert_type(v.idempotency_key, str)
    assert_type(v.attempt, int)
    assert_type(v.superseded, bool)
    assert_type(v.event.account, str | None)
    outputs = v.session.verified_outputs
    if outputs is not None:
        assert_type(outputs.first_name, str | None)
    v.log.info("granted", subject=v.subject)


@on(
    "requires_input",
    "canceled",
    reason=("document_expired",),
    retries=3,
    timeout=2.5,
    own_process=True,
)
def remind(v: Verification) -> None:
    assert_type(v.outcome, Outcome)
    assert_type(
        v.outcome.kind,
        Literal["created", "processing", "needs_input", "verified", "canceled", "redacted"],
    )
    if v.outcome.reason is None:
        raise Discard("nothing to remind of")
    if not v.outcome.user_can_retry:
        raise Retry("later", delay=30)
    raise Retry("later")


# What it returns is not looked at.
@on("*", superseded=True)
def audit(v: Verification) -> int:
    return v.attempt


class Crm(BaseSettings):
    url: str

    @on("verified")
    def save(self, v: Verification) -> None: ...

    @staticmethod
    @on("redacted")
    def forget(v: Verification) -> None: ...


# A marked function keeps its type, also for the author's own decorators and tests.
def traced(function: Function) -> Function:
    return function


@traced
@on("created")
def greet(v: Verification) -> str:
    return v.event.session


def test_greeting(v: Verification) -> None:
    assert_type(greet(v), str)
    Crm(url="https://crm.example").save(v)
