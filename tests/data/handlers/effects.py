"""Handlers for the tests of workers. What they do, and how they misbehave: see noting.py."""

from __future__ import annotations

from noting import BEHAVIOUR, misbehave, note

from identity_webhooks import Verification, on


@on("verified")
def first(v: Verification) -> None:
    note(v, "first", "done")


@on("verified", timeout=5 if BEHAVIOUR == "hang" else 60, retries=5)
def second(v: Verification) -> None:
    note(v, "second", "started")
    if v.attempt == 1 or BEHAVIOUR == "never":
        misbehave(v, v.session.metadata.to_dict().get("behave", BEHAVIOUR))
    note(v, "second", "done")


@on("verified")
def third(v: Verification) -> None:
    # The canary did arrive: here it is in our hands.
    name = v.session.verified_outputs.first_name if v.session.verified_outputs else None
    note(v, "third", "saw-personal-data" if name else "saw-nothing")
    note(v, "third", "done")
