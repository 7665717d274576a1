"""What the handlers here do is written, line by line, to the file EFFECTS.

A line: event id, handler, pid, attempt, word, idempotency key. The session's metadata `behave`, or
else BEHAVIOUR, says how one misbehaves.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

from identity_webhooks import Discard, Retry, Verification

EFFECTS = Path(os.environ.get("EFFECTS", "/dev/null"))
BEHAVIOUR = os.environ.get("BEHAVIOUR", "")


def note(v: Verification, handler: str, word: str) -> None:
    line = f"{v.event.id} {handler} {os.getpid()} {v.attempt} {word} {v.idempotency_key}\n"
    with EFFECTS.open("a") as file:
        file.write(line)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def misbehave(v: Verification, behaviour: str) -> None:  # noqa: PLR0912  # one way each
    outputs = v.session.verified_outputs
    name = outputs.first_name if outputs else "nobody"
    match behaviour:
        case "slow":
            time.sleep(3)
        case "wait":
            while not EFFECTS.with_suffix(".go").exists():
                time.sleep(0.01)
        case "hang":
            while True:
                try:
                    time.sleep(60)
                except BaseException:  # noqa: BLE001, S112
                    continue
        case "raise":
            raise ValueError(f"no account for {name}")
        case "exit":
            sys.exit(f"giving up on {name}")
        case "base":
            raise BaseException(name)  # noqa: TRY002
        case "unprintable":
            raise Unprintable
        case "os-exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "retry":
            raise Retry(f"wait for {name}", delay=0.1)
        case "never":
            raise Discard(f"no such user: {name}")
        case "long":
            time.sleep(60)
