"""Where the time goes: flame graphs of the receiver and of the worker under load.

    python -m tests.benchmarks.profile

Writes var/bench/profile-web.svg and profile-worker.svg, and the shares of the parts into
docs/performance.md; prints the functions that were most often seen at work, by themselves and with
all they called. py-spy, which is installed under
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

# A sample belongs to the first part that has a file in its stack.
PARTS = {
    "web": {
        "log lines": ("service/logs.py", "structlog/"),
        "counters": ("service/metrics.py",),
        "asking Redis": ("service/inbox/", "service/server/redis_link.py"),
        "signature and event": ("service/signature.py", "service/event.py"),
        "reading requests, writing responses": ("service/server/http.py",),
        "deciding": ("service/receiver.py",),
        "event loop, sockets, clients": ("",),
    },
    "worker": {
        "log lines and masking": ("service/logs.py", "structlog/"),
        "counters": ("service/metrics.py",),
        "asking Redis": ("service/inbox/", "redis/", "rq/"),
        "Stripe: HTTP (urllib3)": ("urllib3/", "http/client.py"),
        "Stripe: the rest of the SDK": ("stripe/",),
        "inbox, handlers, threads": ("",),
    },
}


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
    page = [
        f"Shares of the samples of {SECONDS} s under load in which a part held the interpreter."
    ]
    for name, title, path in (("web", "receiver", web), ("worker", "worker", worker)):
        stacks = path.read_text(encoding="utf-8").splitlines()
        click.echo(_report(name, stacks))
        page += ["", f"| {title} | |", "|---|---:|"]
        page += [f"| {part} | {100 * share:.0f} % |" for part, share in _shares(name, stacks)]
    machine.write_section(
        "profile", page, machine.python_versions(spy.with_name("python"), "py-spy")
    )


def _record(spy: Path, name: str, pid: int) -> Path:
    """Draw the picture, then sample again for the table; the file of stacks."""
    picture, stacks = CACHE / f"profile-{name}.svg", CACHE / f"profile-{name}.txt"
    for kind, path in (("flamegraph", picture), ("raw", stacks)):
        command = [spy, "record", "--pid", str(pid), "--subprocesses", "--gil", "--function"]
        options = ["--duration", str(SECONDS), "--format", kind, "--output", path]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return stacks


def _shares(name: str, lines: Iterable[str]) -> list[tuple[str, float]]:
    """Return the parts with their shares of all samples, the largest first."""
    seen: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        files = [frame.partition("(")[2] for frame in stack.split(";")]
        for part, places in PARTS[name].items():
            if any(file.startswith(places) for file in files):
                seen[part] += int(count)
                break
    return [(part, count / seen.total()) for part, count in seen.most_common()]


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
