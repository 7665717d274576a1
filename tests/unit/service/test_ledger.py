"""What processes that were forked from one count together."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from service.ledger import Ledger

COUNTING = """
import os
from service.ledger import Ledger

ledger = Ledger()
for _ in range(4):
    if not os.fork():
        for _ in range(2_000):
            with ledger.change() as entries:
                entries["n"] = entries.get("n", 0) + 1
        os._exit(0)
for _ in range(4):
    os.wait()
print(ledger.read()["n"])
"""


def test_no_count_of_another_process_is_lost() -> None:
    """Each change is a read and a write; without a lock of one's own some would be undone."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTING], check=True, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "8000\n"


@pytest.mark.parametrize("memory", ["of the kernel's", "a file without a name"])
def test_what_gets_shorter_or_is_removed_is_read_as_it_was_written(memory, monkeypatch) -> None:
    if memory != "of the kernel's":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    ledger = Ledger()
    assert ledger.read() == {}
    for entries in ({"long" * 50: 10**9, "b": [1, {"c": 2.5}]}, {"a": 1}, {}):
        with ledger.change() as found:
            found.clear()
            found.update(entries)
        assert ledger.read() == entries


def test_a_change_that_fails_changes_nothing_and_holds_nobody_up() -> None:
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.change() as entries:  # noqa: PT012
        entries["n"] = 1
        raise KeyError
    assert ledger.read() == {}
    pid = os.fork()
    if pid == 0:
        with ledger.change() as entries:
            entries["n"] = 2
        os._exit(0)
    os.waitpid(pid, 0)
    assert ledger.read() == {"n": 2}


def test_a_thread_waits_for_the_change_of_another() -> None:
    """The lock of the file is the process's."""
    ledger = Ledger()

    def add() -> None:
        with ledger.change() as entries:
            entries["n"] = entries.get("n", 0) + 1

    other = threading.Thread(target=add)
    with ledger.change() as entries:
        other.start()
        other.join(0.05)
        entries["n"] = 1
    other.join(60)
    assert ledger.read() == {"n": 2}
