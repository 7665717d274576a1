"""The whole path under steady load for long: does anything grow, is anything lost?

    python -m tests.benchmarks.soak --minutes 30 --rate 40

Writes its section of docs/performance.md and the picture beside it. Ends with 1 when an event was
lost, a delivery was refused or a process has grown more than the bound.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import linear_regression, median

import click
from redis import Redis

from service.inbox.keys import QUEUE
from tests.benchmarks import machine, system
from tests.benchmarks.machine import PAGE
from tests.benchmarks.system import Answer, System, percentile, verdict

PERIOD = 10.0
"""Seconds between two samples."""

WARM_UP = 0.25
"""Share of the run that is left out: connections are opened, caches and pools fill."""

BOUND = 5.0
"""Megabytes that a process of ours may grow from the first to the last quarter of the rest."""

API_MS, CONCURRENCY = 200, 20
REDIS = "Redis"
COLOURS = ("#635bff", "#00a37a", "#c8553d", "#3d7ec8", "#d19a00", "#7a4f9e", "#1a1f36", "#8a8f9e")


@dataclass(frozen=True)
class Sample:
    """What is seen at one moment: seconds since the start, megabytes by process, bytes, counts."""

    seconds: float
    rss: dict[str, float]
    used: int
    queued: int
    answered: int


@dataclass
class Run:
    """A run from its start to its end."""

    minutes: float
    rate: float
    answers: dict[str, Answer] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    handled: dict[str, list[float]] = field(default_factory=dict)
    waited: list[float] = field(default_factory=list)
    complaints: int = 0

    @property
    def accepted(self) -> set[str]:
        return {name for name, answer in self.answers.items() if answer.status == 200}

    @property
    def lost(self) -> int:
        return len(self.accepted - self.handled.keys())

    @property
    def repeated(self) -> int:
        return sum(len(moments) > 1 for moments in self.handled.values())

    @property
    def steady(self) -> list[Sample]:
        """The samples without those of the warm-up."""
        return [s for s in self.samples if s.seconds >= WARM_UP * self.samples[-1].seconds]

    def grown(self, name: str) -> float:
        """Return the megabytes between the first and the last quarter, by their medians."""
        values = [sample.rss[name] for sample in self.steady]
        quarter = max(1, len(values) // 4)
        return median(values[-quarter:]) - median(values[:quarter])

    def hourly(self, name: str) -> float:
        """Return the megabytes an hour by which it grows, if that goes on."""
        seconds = [sample.seconds for sample in self.steady]
        return linear_regression(seconds, [s.rss[name] for s in self.steady]).slope * 3600

    def bytes_per_event(self) -> float:
        first, last = self.steady[0], self.steady[-1]
        return (last.used - first.used) / (last.answered - first.answered)

    def faults(self) -> list[str]:
        """Say what went wrong, in sentences; of Redis only what its settled records explain."""
        refused = len(self.answers) - len(self.accepted)
        grown = {name: self.grown(name) for name in self.samples[0].rss if name != REDIS}
        return [
            *([f"{self.lost} events were lost"] if self.lost else []),
            *([f"{refused} deliveries were refused"] if refused else []),
            *(f"{name} grew by {mb:.1f} MB" for name, mb in grown.items() if mb > BOUND),
        ]


def soak(minutes: float, rate: float) -> Run:
    run = Run(minutes, rate)
    with system.everything(api_ms=API_MS, concurrency=CONCURRENCY) as running:
        asyncio.run(_load(run, running))
        # What is still missing then is counted as lost.
        deadline = time.monotonic() + 60
        while not run.accepted <= running.handled().keys() and time.monotonic() < deadline:
            time.sleep(1)
        run.handled = running.handled()
        run.waited = running.waited(run.accepted & run.handled.keys())
        run.complaints = running.complaints()
    return run


async def _load(run: Run, running: System) -> None:
    began = time.monotonic()
    how_many = round(run.minutes * 60 * run.rate)
    posting = asyncio.create_task(system.post(running.web_port, how_many, run.rate, run.answers))
    with Redis(port=running.redis.port) as client:
        while not posting.done():
            run.samples.append(_sample(run, running, client, time.monotonic() - began))
            _show(run)
            await asyncio.wait([posting], timeout=PERIOD)
    await posting
    sys.stderr.write("\n")


def _sample(run: Run, running: System, client: Redis, seconds: float) -> Sample:
    rss = {}
    for name, pid in (("web", running.web), ("worker", running.worker)):
        parent, *children = machine.memory(pid)
        rss[f"{name}'s parent"] = parent
        rss |= {f"{name} {number}": size for number, size in enumerate(children, 1)}
    rss["periodic"] = machine.memory(running.periodic)[0]
    rss[REDIS] = machine.memory(running.redis.pid)[0]
    used = int(client.info("memory")["used_memory"])
    queued = int(client.llen(f"rq:queue:{QUEUE}"))
    return Sample(seconds, rss, used, queued, len(run.answers))


def _show(run: Run) -> None:
    now = run.samples[-1]
    sizes = "  ".join(f"{name} {size:.1f}" for name, size in now.rss.items())
    sys.stderr.write(
        f"\r{now.seconds:5.0f} of {run.minutes * 60:.0f} s  {now.answered} answered"
        f"  {now.queued} queued  MB: {sizes}  "
    )


def write(run: Run) -> None:
    """Write the section and the picture."""
    picture = PAGE.with_name("performance-soak.svg")
    picture.write_text(_picture(run), encoding="utf-8")
    first, middle, last = (run.samples[len(run.samples) * n // 2 - (n == 2)] for n in range(3))
    waited = [1000 * seconds for seconds in run.waited]
    answered = [1000 * answer.seconds for answer in run.answers.values()]
    statuses = Counter(answer.status for answer in run.answers.values())
    faults = run.faults()
    lines = [
        f"{run.rate:g} events/s for {run.minutes:g} minutes on the whole path, {CONCURRENCY}"
        f" threads in the worker, an API that takes {API_MS} ms. Resident memory in MB, read every"
        f" {PERIOD:.0f} s; the slope and the growth leave out the first {WARM_UP:.0%}.",
        "",
        "| process | first | middle | last | MB/hour | grown |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {name} | {first.rss[name]:.1f} | {middle.rss[name]:.1f} | {last.rss[name]:.1f}"
            f" | {run.hourly(name):+.1f} | {run.grown(name):+.1f} |"
            for name in first.rss
        ),
        "",
        f"Redis keeps settled records for 35 days: its `used_memory` grew from"
        f" {first.used / 1e6:.1f} to {last.used / 1e6:.1f} MB,"
        f" {run.bytes_per_event():,.0f} bytes for each event.",
        "",
        f"![resident memory over time]({picture.name})",
        "",
        "| | |",
        "|---|---:|",
        f"| deliveries | {len(run.answers):,} |",
        *(f"| answered {status} | {n:,} |" for status, n in sorted(statuses.items())),
        f"| handled | {len(run.handled.keys() & run.accepted):,} |",
        f"| accepted and lost | {run.lost:,} |",
        f"| handled more than once | {run.repeated:,} |",
        f"| most waiting in the queue | {max(s.queued for s in run.samples):,} |",
        f"| lines of warnings and errors in the logs | {run.complaints:,} |",
        f"| receiver's answer, p50 and p99 | {percentile(answered, 0.5):.1f} and"
        f" {percentile(answered, 0.99):.1f} ms |",
        f"| from accepted to handler, p50 and p99 | {percentile(waited, 0.5):.1f} and"
        f" {percentile(waited, 0.99):.1f} ms |",
        "",
        f"Goal: nothing lost or refused, no process of ours more than {BOUND:g} MB larger in the"
        f" last quarter than in the first: {verdict(not faults)}"
        + (f" ({'; '.join(faults)})." if faults else "."),
    ]
    names = ("gunicorn", "redis", "rq", "stripe")
    machine.write_section("soak", lines, machine.python_versions(sys.executable, *names))


def _picture(run: Run) -> str:
    """Draw a line for each process: SVG by hand, as there is nothing to decide."""
    width, height, left, top = 560, 260, 50, 15
    seconds = max(1.0, run.samples[-1].seconds)
    tallest = max(max(sample.rss.values()) for sample in run.samples) * 1.05
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="820" height="{height + 60}"'
        ' font-family="sans-serif" font-size="13" fill="#1a1f36">',
        f'<rect width="820" height="{height + 60}" fill="#ffffff"/>',
    ]
    for quarter in range(5):
        y = top + height * (1 - quarter / 4)
        x = left + width * quarter / 4
        parts += [
            f'<path d="M{left} {y:.0f}h{width}" stroke="#e3e5ec"/>',
            f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">'
            f"{tallest * quarter / 4:.0f}</text>",
            f'<text x="{x:.0f}" y="{top + height + 20}" text-anchor="middle">'
            f"{seconds * quarter / 240:.1f}</text>",
        ]
    parts.append(
        f'<text x="{left + width / 2:.0f}" y="{top + height + 40}" text-anchor="middle">'
        "minutes (resident memory in MB)</text>"
    )
    for number, name in enumerate(run.samples[0].rss):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(
            f"{left + width * s.seconds / seconds:.1f},"
            f"{top + height * (1 - s.rss[name] / tallest):.1f}"
            for s in run.samples
        )
        y = top + 20 * number
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<rect x="{left + width + 20}" y="{y}" width="14" height="14" fill="{colour}"/>',
            f'<text x="{left + width + 42}" y="{y + 12}">{name}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


@click.command()
@click.option("--minutes", type=float, default=30, show_default=True)
@click.option("--rate", type=float, default=40, show_default=True, help="Events a second.")
def main(minutes: float, rate: float) -> None:
    """Run it, and write what came out."""
    run = soak(minutes, rate)
    write(run)
    for fault in run.faults():
        click.echo(fault, err=True)
    sys.exit(bool(run.faults()))


if __name__ == "__main__":
    main()
