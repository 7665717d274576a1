"""The clock of the sandbox, and what one step changes: shared by all that keep records."""

import secrets
from collections.abc import Callable
from typing import Any

from stripe_identity_sandbox.objects import Clock, Record

Changes = dict[tuple[str, str], Record | None]


class Journal:
    """Answers Unix seconds, and notes every record that has to be stored when the step ends.

    ``clock`` is the machine's; ``offset`` is how far the sandbox's time is ahead of it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.offset = 0.0
        self._clock = clock
        self._changes: Changes = {}

    def now(self) -> float:
        """Return the sandbox's time, in Unix seconds."""
        return self._clock() + self.offset

    def advance(self, seconds: float) -> None:
        """Move the sandbox's time forward."""
        self.offset += seconds
        self.touch(Clock(id="clock", offset=self.offset))

    def keep(self, shelf: dict[str, Any], record: Record) -> None:
        """Put a record on its shelf."""
        shelf[record.id] = record
        self.touch(record)

    def touch(self, *records: Record) -> None:
        """Note that these records changed."""
        for record in records:
            self._changes[type(record).__name__, record.id] = record

    def forget(self, shelf: dict[str, Any], record: Record) -> None:
        """Take a record off its shelf; one that is not there is no error."""
        shelf.pop(record.id, None)
        self._changes[type(record).__name__, record.id] = None

    def take(self) -> Changes:
        """Return what changed since the last call; None stands for a record that is gone."""
        changes, self._changes = self._changes, {}
        return changes

    def put_back(self, changes: Changes) -> None:
        """Note again what could not be stored."""
        self._changes = changes | self._changes


def new_id(prefix: str) -> str:
    """Return an id nobody has seen."""
    return prefix + secrets.token_hex(12)
