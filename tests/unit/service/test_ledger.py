"""What processes that were forked from one count together."""

from __future__ import annotations

import subprocess
import sys

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
