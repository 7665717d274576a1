"""Puts gates (gate.py) where no handler is. Python imports this first, where it is on the path."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import gate


def hold(owner: str, name: str, moment: str, *, after: bool = False) -> None:
    """Put a gate before or after each call of this function of workers.own_process."""
    place: Any = importlib.import_module("workers.own_process")
    place = getattr(place, owner) if owner else place
    original = getattr(place, name)

    @functools.wraps(original)
    def held(*args: Any) -> Any:
        if not after:
            gate.hold(moment)
        answer = original(*args)
        if after:
            gate.hold(moment)
        return answer

    setattr(place, name, held)


# On a busy machine the signal reaches the worker's code late, and no test here is about that.
importlib.import_module("workers.stop").ARRIVES_WITHIN = 30.0
if gate.IS_BESIDE:
    gate.hold("boot")
    if gate.MOMENT == "answer":
        hold("", "_answer", "answer", after=True)
elif gate.MOMENT == "fork":
    hold("OwnProcess", "_spawn", "fork")
elif gate.MOMENT == "forked":
    hold("OwnProcess", "_spawn", "forked", after=True)
