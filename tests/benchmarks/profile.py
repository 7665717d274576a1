"""Where the time goes: flame graphs of the receiver and of the worker under load.

    python -m tests.benchmarks.profile

Writes var/bench/profile-web.svg and profile-worker.svg, and prints the functions that were most
often seen at work, by themselves and with all they called. py-spy, which is installed under
var/bench, looks at the processes from outside a hundred times a second, and sees who holds the
interpreter lock: what the kernel does for a socket meanwhile is not in the pictures.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from tests.benchmarks import machine, system
from tests.benchmarks.machine import CACHE

SECONDS = 10
EVENTS = 20_000
"""More than are taken in while the receiver is looked at, so that some are left for the worker."""

SHOWN = 15


def main() -> None:
    """Profile both under load, one after the other."""
    if sys.platform != "linux" or os.geteuid() != 0:
        sys.exit(
            "needs Linux and root: our processes let nobody else look into their memory"
            " (service/process.py)"
        )
    spy = machine.python_packages("py-spy", "py-spy").with_name("py-spy")
    with system.everything(concurrency=50) as running, ThreadPoolExecutor(1) as pool:
        posting = pool.submit(system.send, running, EVENTS, math.inf)
        web = _record(spy, "web", running.web)
        posting.result()
        worker = _record(spy, "worker", running.worker)
    for name, stacks in (("web", web), ("worker", worker)):
        click.echo(_report(name, stacks.read_text(encoding="utf-8").splitlines()))


def _record(spy: Path, name: str, pid: int) -> Path:
    """Draw the picture, then sample again for the table; the file of stacks."""
    picture, stacks = CACHE / f"profile-{name}.svg", CACHE / f"profile-{name}.txt"
    for kind, path in (("flamegraph", picture), ("raw", stacks)):
        command = [spy, "record", "--pid", str(pid), "--subprocesses", "--gil", "--function"]
        options = ["--duration", str(SECONDS), "--format", kind, "--output", path]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return stacks


def _report(name: str, lines: Iterable[str]) -> str:
    """Make tables of stacks as py-spy writes them: `outermost;...;innermost count`."""
    alone: Counter[str] = Counter()
    with_called: Counter[str] = Counter()
    for line in lines:
        stack, _, seen = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if not frame.startswith("process ")]
        if frames:
            alone[frames[-1]] += int(seen)
            with_called.update(dict.fromkeys(frames, int(seen)))
    total = max(1, alone.total())
    parts = [f"\n{name}: {total} samples, flame graph in var/bench/profile-{name}.svg"]
    for title, counts in (("by itself", alone), ("with what it called", with_called)):
        parts += [f"\n  {title}"]
        parts += [
            f"  {100 * seen / total:5.1f} %  {frame}" for frame, seen in counts.most_common(SHOWN)
        ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
