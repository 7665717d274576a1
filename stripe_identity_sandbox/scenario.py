"""Scenarios: a file that says which lives sessions lead, when, and what goes wrong meanwhile.

The same file and seed give the same lives in the same order. A file is checked as a whole, every
life and every fault, before anything of it happens.
"""

import heapq
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import yaml

from stripe_identity_sandbox import faults
from stripe_identity_sandbox.checks import OUTCOMES
from stripe_identity_sandbox.lifetimes import LONGEST, seconds
from stripe_identity_sandbox.objects import Illegal
from stripe_identity_sandbox.state import World

#: What can be done to a session besides an outcome; ``processing`` waits for the outcome after it.
CHANGES = ("created", "processing", "canceled", "redacted")


class Life(msgspec.Struct, forbid_unknown_fields=True):
    """What happens to a session, in words with waits between: ``created, 3s, verified``."""

    life: str
    #: How often this life is led, compared with the others.
    share: Annotated[float, msgspec.Meta(ge=0)] = 1.0

    def steps(self) -> Iterator[tuple[float, str]]:
        """Yield each change and the seconds after the session's beginning.

        Raises:
            ValueError: a word is neither a change, nor an outcome, nor a duration.
        """
        at = 0.0
        words = [word.strip() for word in self.life.split(",")]
        if words[0] != "created" or words.count("created") > 1:
            raise ValueError(f"A life begins with created, and has it once: {self.life!r}.")
        for word in words:
            if word in CHANGES or word in OUTCOMES:
                yield at, word
                continue
            try:
                at += seconds(word)
            except ValueError:
                raise ValueError(
                    f"{word!r} is no time up to a year (3s, 15m, 2h, 4d) and nothing that can"
                    " happen:"
                    f" {', '.join((*CHANGES, *OUTCOMES))}."
                ) from None

    def check(self) -> None:
        """Lead the life in a world of its own.

        Raises:
            ValueError: a word makes no sense, or a change is not possible when it comes.
        """
        world = World()
        session = world.create({"type": "document"})
        for _, change in self.steps():
            try:
                match change:
                    case "created":
                        pass
                    case "processing":
                        world.submit(session, OUTCOMES[0], hold=True)
                    case "canceled":
                        world.cancel(session)
                    case "redacted":
                        world.redact(session, delay=0.0)
                    case outcome if session.status == "processing":
                        world.complete(session, outcome=outcome)
                    case outcome:
                        world.submit(session, outcome)
            except Illegal as reason:
                raise ValueError(f"{self.life!r} cannot be led: {change!r}. {reason}") from reason


class Scenario(msgspec.Struct, forbid_unknown_fields=True):
    """A file's content. ``every``: the time between one session's beginning and the next."""

    lives: Annotated[list[Life], msgspec.Meta(min_length=1)]
    sessions: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1
    every: str | int | float = "0s"
    seed: int = 0
    #: As for POST /_sandbox/faults; they are set at the beginning and cleared at the end.
    faults: list[dict[str, Any]] = []


class Step(NamedTuple):
    """One change of one session: seconds after the beginning, its number, what happens."""

    at: float
    session: int
    change: str


def read(path: Path) -> Scenario:
    """Read a scenario from a YAML file.

    Raises:
        ValueError: the file is none, with what is wrong.
    """
    try:
        scenario = msgspec.convert(yaml.safe_load(path.read_text()), Scenario)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error
    for life in scenario.lives:
        life.check()
    for fault in scenario.faults:
        faults.read(fault)
    timeline(scenario)
    return scenario


def timeline(scenario: Scenario) -> list[Step]:
    """Return every step of every session in the order in which they happen.

    Raises:
        ValueError: a life or a duration makes no sense.
    """
    choose = random.Random(scenario.seed)  # noqa: S311 -- it is to be the same each time
    every = seconds(str(scenario.every))
    lives = choose.choices(
        scenario.lives, [life.share for life in scenario.lives], k=scenario.sessions
    )
    of_each = (
        [Step(number * every + at, number, change) for at, change in life.steps()]
        for number, life in enumerate(lives)
    )
    steps = list(heapq.merge(*of_each, key=lambda step: step.at))
    if steps[-1].at > LONGEST:
        raise ValueError("A scenario can last a year at most.")
    return steps


def sleep(begun: float, _: float, at: float) -> None:
    """Wait for a second of a scenario that began at this time of ``time.monotonic``.

    What the steps before it took is not waited for again.
    """
    time.sleep(max(begun + at - time.monotonic(), 0.0))


def play(
    scenario: Scenario,
    *,
    wait: Callable[[float, float], None],
    do: Callable[[str | None, str], str],
) -> list[str]:
    """Play a scenario; return the ids of its sessions.

    ``wait`` lets the time pass from one second of the scenario to another. ``do`` makes a change of
    a session, given by its id (None: a new one), and returns the id.
    """
    ids: dict[int, str] = {}
    now = 0.0
    for step in timeline(scenario):
        if step.at > now:
            wait(now, step.at)
            now = step.at
        ids[step.session] = do(ids.get(step.session), step.change)
    return list(ids.values())
