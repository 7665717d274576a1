"""Mistakes a type checker must find: each ignore here is needed, or mypy reports it. Never run."""

# ruff: noqa: T201

from identity_webhooks import Discard, Retry, Verification, on


@on("verifed")  # type: ignore[arg-type]
def misspelled(v: Verification) -> None: ...


@on("verified", retry=3)  # type: ignore[call-arg]
def unknown_word(v: Verification) -> None: ...


@on("verified", retries="3")  # type: ignore[arg-type]
def text_for_number(v: Verification) -> None: ...


@on("verified", needs=[1])  # type: ignore[list-item]
def number_for_field(v: Verification) -> None: ...


@on("verified")
def mistaken(v: Verification) -> None:
    v.attempt = 2  # type: ignore[misc]
    print(v.sensitive.shoe_size)  # type: ignore[attr-defined]
    print(v.sensitive.dob.year)  # type: ignore[union-attr]
    print(v.session.verified_outputs.first_name)  # type: ignore[union-attr]
    print(v.report.document)  # type: ignore[union-attr]
    print(v.outcome.kind == "needs-input")  # type: ignore[comparison-overlap]
    print(v.event.kind == "failed")  # type: ignore[comparison-overlap]


def answers() -> list[Exception]:
    return [
        Retry(),  # type: ignore[call-arg]
        Retry("later", 30),  # type: ignore[call-arg]
        Retry("later", delay="30"),  # type: ignore[arg-type]
        Discard(),  # type: ignore[call-arg]
    ]
