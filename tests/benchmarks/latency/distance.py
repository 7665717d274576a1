"""What the way to Redis costs: writes its table in docs/scaling.md.

python -m tests.benchmarks.latency.distance

A proxy delays what passes (kernels of containers and small machines often lack netem).
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from tests.benchmarks import system
from tests.benchmarks.system import System, percentile

PAGE = Path(__file__).parents[3] / "docs/scaling.md"
AWAY = (0, 5, 50)
"""Milliseconds to Redis and back: the same machine, another zone, another continent."""
RATE, SECONDS, BACKLOG = 20, 10, 1_000


def measure(away_ms: int) -> tuple[str, ...]:
    """Return a row: the answer to a delivery, the wait of an event, and how fast a worker is."""
    with system.everything(away_ms=away_ms) as running:
        answers = system.send(running, RATE * SECONDS, RATE)
        running.wait_until_handled(answers)
        waited = running.waited(answers)
        answered = [each.seconds for each in answers.values()]
        assert {each.status for each in answers.values()} == {200}
        rate = backlog(running)
    return (
        f"{away_ms} ms",
        _ms(percentile(answered, 0.5)),
        _ms(percentile(answered, 0.99)),
        _ms(percentile(waited, 0.5)),
        f"{rate:,.0f}",
    )


def backlog(running: System) -> float:
    """Return the events a second at which a worker works off what has piled up."""
    answers = system.send(running, BACKLOG, BACKLOG)
    assert {each.status for each in answers.values()} == {200}
    running.wait_until_handled(answers, within=120)
    handled = running.handled()
    moments = sorted(handled[name][0] for name in answers)
    half = moments[len(moments) // 2 :]  # by then all have been sent
    return len(half) / (half[-1] - half[0])


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


@click.command()
def main() -> None:
    """Measure, for about two minutes, and write the table into docs/scaling.md."""
    head = (
        "to Redis and back",
        "a delivery is answered",
        "99th",
        "accepted to handler",
        "a second",
    )
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *map(measure, AWAY)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text = PAGE.read_text(encoding="utf-8")
    text, found = re.subn(
        r"(<!-- distance: made by make distance -->\n).*?(<!-- end -->)",
        lambda mark: f"{mark[1]}{table}{mark[2]}",
        text,
        flags=re.DOTALL,
    )
    assert found == 1
    PAGE.write_text(text, encoding="utf-8")
    click.echo(table)


if __name__ == "__main__":
    main()
