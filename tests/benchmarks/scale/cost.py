"""What an event costs Redis and its client, in CPU; against other checkouts, taken in turn.

python -m tests.benchmarks.scale.cost [CHECKOUT...]    within a minute

Each figure is the lower quartile of the batches: what else the machine does makes it greater only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import IO

from tests.benchmarks import machine

BATCHES, SIZE = 30, 200
_BATCH = Path(__file__).with_name("batch.py")


def measure(checkouts: list[Path]) -> list[dict[str, float]]:
    """Return what an event costs each of them."""
    with ExitStack() as stack:
        runs = [_begin(stack, checkout) for checkout in checkouts]
        found: list[list[dict[str, float]]] = [[] for _ in runs]
        for number in range(BATCHES + 1):
            for place in range(len(runs))[:: -1 if number % 2 else 1]:
                asked, answers = runs[place]
                asked.write("\n")
                asked.flush()
                found[place].append(json.loads(answers.readline()))
    return [
        {name: quantiles([each[name] for each in batches[1:]], n=4)[0] for name in batches[0]}
        for batches in found
    ]


def _begin(stack: ExitStack, checkout: Path) -> tuple[IO[str], IO[str]]:
    server = stack.enter_context(machine.redis_server())
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, _BATCH, str(server.port), str(server.pid), str(SIZE)],
            env={"PYTHONPATH": str(checkout.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    assert process.stdin
    assert process.stdout
    return process.stdin, process.stdout


def table(names: list[str], found: list[dict[str, float]]) -> str:
    """Return it as text; ratios are against the last checkout."""
    lines = [f"{'':24}" + "".join(f"{name:>20}" for name in found[0])]
    for name, costs in zip(names, found, strict=True):
        lines.append(f"{name[-23:]:24}" + "".join(f"{cost:20.1f}" for cost in costs.values()))
    if len(found) > 1:
        ratios = [found[0][name] / found[-1][name] for name in found[0]]
        lines.append(f"{'first / last':24}" + "".join(f"{ratio:20.2f}" for ratio in ratios))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    compared = [".", *sys.argv[1:]]
    sys.stdout.write(table(compared, measure([Path(each) for each in compared])))
