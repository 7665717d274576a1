"""Holds a process at one moment, until a test lets it go on.

GATE is `<where>:<moment>`: where the handler of held.py runs (`thread`; `own`: in a process of its
own; `suspect`: in that of suspects) and the moment at which it is held. The file REACHED is made
there; it goes on when the file PASS is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

WHERE, _, MOMENT = os.environ.get("GATE", ":").partition(":")
IS_BESIDE = "-c" in sys.orig_argv[:2]
"""Whether this is the process beside a worker."""


def hold(moment: str) -> None:
    if moment == MOMENT:
        Path(os.environ["REACHED"]).touch()
        while not Path(os.environ["PASS"]).exists():
            time.sleep(0.02)
