"""Handlers with a process of their own, for the tests of workers. See effects.py."""

from __future__ import annotations

import os

import effects

from identity_webhooks import Verification, on

INSIDE = [0]


@on("verified", own_process=True, timeout=2, retries=5)
def careful(v: Verification) -> None:
    INSIDE[0] += 1
    effects.note(v, "careful", "started" if INSIDE[0] == 1 else "not-alone")
    if v.attempt == 1:
        effects.misbehave(v, v.session.metadata.to_dict().get("behave", effects.BEHAVIOUR))
    outputs = v.session.verified_outputs
    v.log.info("careful_done", reason=f"for {outputs.first_name if outputs else None}")
    effects.note(v, "careful", "saw-personal-data" if outputs else "saw-nothing")
    effects.note(v, "careful", f"parent-{os.getppid()}")
    INSIDE[0] -= 1


@on("verified")
def beside(v: Verification) -> None:
    effects.note(v, "beside", "done")
