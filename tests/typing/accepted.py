"""What handler authors write, and must pass their type checker. Never run."""

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Literal, TypeVar, assert_type

from pydantic_settings import BaseSettings
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.orm import Session
from stripe.identity import VerificationReport, VerificationSession

from identity_webhooks import (
    Dead,
    Discard,
    Outcome,
    Retry,
    Sensitive,
    Verification,
    on,
    on_dead,
    on_start,
    on_stop,
)

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
    assert_type(v.last_attempt, bool)
    assert_type(v.metadata, Mapping[str, str])
    assert_type(v.superseded, bool)
    assert_type(v.event.account, str | None)
    outputs = v.session.verified_outputs
    if outputs is not None:
        assert_type(outputs.first_name, str | None)
    v.log.info("granted", subject=v.subject)


@on(
    "requires_input",
    reason=("document_expired", "abandoned"),
    needs="last_verification_report.document.number",
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
    if v.attempt == 2:
        raise Retry("later", delay=timedelta(hours=1))
    raise Retry("later")


@on("*", superseded=True)
def audit(v: Verification) -> None: ...


@on("verified", "canceled", needs=["verified_outputs.dob", "verified_outputs.sex"])
def count(v, /):  # type: ignore[no-untyped-def]  # no types at all
    ...


class Crm(BaseSettings):
    url: str

    @on("verified")
    def save(self, v: Verification) -> None: ...

    @staticmethod
    @on("redacted")
    def forget(v: Verification) -> None: ...

    @on_start
    def connect(self) -> None: ...

    @classmethod
    @on("canceled")
    def close(cls, v: Verification) -> None: ...


@on("verified")
def once(v: Verification) -> None:
    engine = create_engine("sqlite://")

    @v.once(engine)
    def with_engine(db: Connection) -> None:
        db.execute(text("SELECT 1"))

    assert_type(with_engine, bool)

    @v.once(engine, "invoice")
    def with_name(db: Connection) -> None: ...

    assert_type(v.order, int)
    with Session(engine) as session:

        @v.once(session)
        def with_session(db: Session) -> None: ...

    @v.once("default")
    def with_django(db: object) -> None: ...


@on_stop
def disconnect() -> None: ...


@on_dead
def alarm(dead: Dead) -> None:
    assert_type(dead.handler, str)
    assert_type(dead.event.kind == "verified", bool)


# A marked function keeps its type, also for the author's own decorators and tests.
def traced(function: Function) -> Function:
    return function


@traced
@on("created")
def greet(v: Verification) -> None: ...


def test_greeting(v: Verification) -> None:
    greet(v=v)
    Crm(url="https://crm.example").save(v)
