"""Shared memory in which a process notes its events, for its supervisor to read after a crash.

Shared memory with a line for each thread, written with no call of the system: which event, by which
claim, and which handler of it runs. So the cause of a crash can be named without a write to Redis
for each handler. A timestamp beside the lines shows when the process last ran, so that the
supervisor detects a stall.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time
from typing import NamedTuple

LINE = 512
"""Bytes of a line: an event's key takes up to 380, most take 30; what does not fit is cut."""

_RAN_AT = struct.Struct("d")


class Held(NamedTuple):
    """An event in a process's hands, by the token of its claim. `handler` is empty while none
    runs.
    """

    event_key: str
    token: str
    handler: str = ""


class InHand:
    """A table in memory that is shared with the processes forked after it was made.

    `lines` is the number of events a process may have in hand: 0 for one that runs none. `died` is
    what the last process that died had in hand.
    """

    def __init__(self, lines: int) -> None:
        self.died: list[Held] = []
        self._memory = mmap.mmap(-1, lines * LINE + _RAN_AT.size)
        self._lines = lines
        self._lock = threading.Lock()
        self._line_of: dict[str, int] = {}
        self._free = list(range(lines))

    def note(self, event_key: str, token: str, handler: str = "") -> None:
        """Note that this process has the event, and what runs for it."""
        with self._lock:
            line = self._line_of.get(event_key)
            if line is None:
                if not self._free:
                    return  # more claims than threads, which there are not
                line = self._line_of[event_key] = self._free.pop()
            self._write(line, f"{event_key} {token} {handler}")

    def forget(self, event_key: str) -> None:
        """Note that it has it no longer."""
        with self._lock:
            line = self._line_of.pop(event_key, None)
            if line is not None:
                self._write(line, "")
                self._free.append(line)

    def note_running(self) -> None:
        """Note that this process runs at this moment."""
        _RAN_AT.pack_into(self._memory, self._lines * LINE, time.monotonic())

    def ran_at(self) -> float:
        """Return when a process last noted that it runs (seconds, `time.monotonic`); 0: none did.

        Only good for seeing whether it changes: it may be read while it is written.
        """
        return float(_RAN_AT.unpack_from(self._memory, self._lines * LINE)[0])

    def read(self) -> list[Held]:
        """Return what is noted, whichever process did."""
        lines = (
            self._memory[line * LINE : (line + 1) * LINE]
            .split(b"\0", 1)[0]
            .decode(errors="replace")
            for line in range(self._lines)
        )
        parts = (line.split(" ", 2) for line in lines if line)
        return [Held(*each) for each in parts if len(each) == len(Held._fields)]

    def bury(self) -> list[Held]:
        """Return what the process that died had in hand, and clear the table for the next one."""
        self.died = self.read()
        self._memory[:] = bytes(len(self._memory))
        return self.died

    def _write(self, line: int, text: str) -> None:
        data = text.encode()[: LINE - 1]
        self._memory[line * LINE : (line + 1) * LINE] = data.ljust(LINE, b"\0")
