"""Mistakes a type checker must find: each ignore here is needed, or mypy reports it. Never run."""

# ruff: noqa: T201

from collections.abc import Iterator

from identity_webhooks import Discard, Event, Retry, Verification, on, on_dead, on_start


@on("verifed")  # type: ignore[arg-type]
def misspelled(v: Verification) -> None: ...


@on  # type: ignore[arg-type]
def no_parentheses(v: Verification) -> None: ...


@on("verified", retry=3)  # type: ignore[call-arg]
def unknown_word(v: Verification) -> None: ...


@on("verified", retries="3")  # type: ignore[arg-type]
def text_for_number(v: Verification) -> None: ...


@on("verified", needs=[1])  # type: ignore[list-item]
def number_for_field(v: Verification) -> None: ...


@on("verified", needs=["dob"])  # type: ignore[list-item]
def misspelled_field(v: Verification) -> None: ...


@on("requires_input", reason="document_expird")  # type: ignore[arg-type]
def misspelled_reason(v: Verification) -> None: ...


@on("verified")  # type: ignore[type-var]
async def coroutine(v: Verification) -> None: ...


@on("verified")  # type: ignore[type-var]
def generator(v: Verification) -> Iterator[int]:
    yield 1


@on("verified")  # type: ignore[type-var]
def retry_returned(v: Verification) -> Retry:
    return Retry("later")


@on("verified")  # type: ignore[type-var]
def no_argument() -> None: ...


@on("verified")  # type: ignore[type-var]
def wrong_argument(event: Event) -> None: ...


@on("verified")  # type: ignore[type-var]
def two_arguments(v: Verification, database: str) -> None: ...


@on_start  # type: ignore[type-var]
async def start() -> None: ...


@on_dead  # type: ignore[type-var]
def alarm(v: Verification) -> None: ...


class Crm:
    @on("verified")  # type: ignore[type-var]
    async def save(self, v: Verification) -> None: ...


@on("verified")
def mistaken(v: Verification) -> None:
    v.attempt = 2  # type: ignore[misc]
    print(v.sensitive.shoe_size)  # type: ignore[attr-defined]
    print(v.sensitive.dob.year)  # type: ignore[union-attr]
    print(v.session.verified_outputs.first_name)  # type: ignore[union-attr]
    print(v.report.document)  # type: ignore[union-attr]
    print(v.outcome.kind == "needs-input")  # type: ignore[comparison-overlap]
    print(v.outcome == "verified")  # type: ignore[comparison-overlap]
    print(v.event.kind == "failed")  # type: ignore[comparison-overlap]


def answers() -> list[Exception]:
    return [
        Retry(),  # type: ignore[call-arg]
        Retry("later", 30),  # type: ignore[call-arg]
        Retry("later", delay="30"),  # type: ignore[arg-type]
        Discard(),  # type: ignore[call-arg]
    ]
