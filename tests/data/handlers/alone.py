"""Handlers with a process of their own, for the tests of workers. See noting.py."""

from __future__ import annotations

import os

import noting

from identity_webhooks import Verification, on

INSIDE = [0]


@on("verified", own_process=True, timeout=5, retries=5)
def careful(v: Verification) -> None:
    INSIDE[0] += 1
    noting.note(v, "careful", "started" if INSIDE[0] == 1 else "not-alone")
    if v.attempt == 1:
        noting.misbehave(v, v.session.metadata.to_dict().get("behave", noting.BEHAVIOUR))
    outputs = v.session.verified_outputs
    v.log.info("careful_done", reason=f"for {outputs.first_name if outputs else None}")
    noting.note(v, "careful", "saw-personal-data" if outputs else "saw-nothing")
    noting.note(v, "careful", f"parent-{os.getppid()}")
    INSIDE[0] -= 1


@on("verified")
def beside(v: Verification) -> None:
    noting.note(v, "beside", "done")
