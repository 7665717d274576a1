"""What a plugin leaves is looked at without harm to the process that looks."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

# Each allocation collects garbage, which lets other threads run, and these start threads.
LOOK_WHILE_THREADS_START = """
import gc, threading, time
from workers.held import Held

def start_threads():
    while True:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

threading.Thread(target=start_threads, daemon=True).start()
gc.callbacks.append(lambda *_: time.sleep(0.001))
gc.set_threshold(1)
for _ in range(20):
    Held()
"""


def test_a_look_at_threads_stops_no_process() -> None:
    subprocess.run(
        [sys.executable, "-c", LOOK_WHILE_THREADS_START], cwd=ROOT, check=True, timeout=120
    )
