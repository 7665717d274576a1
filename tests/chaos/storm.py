"""The storm: thousands of events while everything is killed, frozen, cut and slowed; then count.

    python -m tests.chaos.storm --events 20000 --kills 200 --redis-kills 10 --seed 1

Everything that is started is real: gunicorn, workers, periodic process, a Redis with an append-only
file behind the proxy, the sandbox as Stripe's API. What is random comes from the seed: when which
fault strikes whom, in which order and how often events are delivered. The exit code is 1 when the
delivery contract was broken or the system was not quiet in time. The report and a picture of the
run are left in var/chaos/.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import redis
import urllib3
from rq.registry import FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry

from tests.chaos import picture
from tests.chaos.proxy import Proxy
from tests.chaos.system import (
    HANDLERS,
    Change,
    Delivery,
    Effect,
    Sandbox,
    Tally,
    environment,
    keep_reconciliation_out,
    tally,
)
from tests.conftest import CANARY, ROOT, Processes, Server, Traces, children, free_port, wait_until

RESTART = 0.2
"""Seconds until a platform has noticed that a process ended."""
QUIET_WITHIN = 30.0
"""Seconds after the last fault within which everything must be settled."""
STALLED = 75.0
"""Seconds without progress after which no more is expected: longer than the inbox's horizon."""
EXIT_WITHIN = 30.0
"""Seconds after SIGTERM at which platforms kill."""
SENDERS = 6
SEARCHED = 1000
"""Events up to which all that was written is searched for personal data; it takes a while."""

KILLS = {
    # Which process, and how often in comparison.
    ("worker-1", "child"): 3,
    ("worker-2", "child"): 3,
    ("worker-1", "parent"): 2,
    ("worker-2", "parent"): 2,
    ("web", "child"): 3,
    ("web", "parent"): 1,
    ("periodic", "parent"): 3,
}


@dataclass(frozen=True)
class Plan:
    """What is to happen. The same seed gives the same plan."""

    events: int
    kills: int
    redis_kills: int
    seed: int
    rate: float
    forms: tuple[str, ...]
    plain_rq: bool

    @property
    def lasts(self) -> float:
        """Seconds from the first delivery to the last fault."""
        return self.events / self.rate


class Part:
    """A process that is started again whenever it ends."""

    def __init__(self, processes: Processes, arguments: tuple[str, ...], env: dict[str, str]):
        self._processes, self._arguments, self.env = processes, arguments, env
        self._restart_at = 0.0
        self._told: float | None = None
        self.exits: list[float] = []
        self.process, _ = processes.python(*arguments, env=env)

    def keep_running(self) -> None:
        now = time.monotonic()
        if self.process.poll() is None:
            if self._told is not None and now > self._told + EXIT_WITHIN:
                self.process.kill()
            return
        if self._told is not None:
            self.exits.append(now - self._told)
            self._told = None
        if not self._restart_at:
            self._restart_at = now + RESTART
        elif now > self._restart_at:
            self._restart_at = 0.0
            self.process, _ = self._processes.python(*self._arguments, env=self.env)

    def signal(self, number: int, whom: str) -> int:
        """Send a signal to the process or one of its children; the pid it went to."""
        forked = children(self.process.pid) if whom == "child" else []
        pid = random.choice(forked or [self.process.pid])
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if number == signal.SIGTERM and pid == self.process.pid and self._told is None:
                self._told = time.monotonic()
        return pid


class Producer:
    """Sends deliveries as Stripe does: again, later, until the answer is 2xx."""

    def __init__(self, deliveries: list[Delivery], plan: Plan, port: int) -> None:
        self._dice = random.Random(f"producer {plan.seed}")
        self._pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=SENDERS, timeout=5)
        self._ready = threading.Condition()
        self._number = itertools.count()
        self._queue: list[tuple[float, int, int, Delivery]] = []
        self._in_flight = 0
        self.first_accepted: dict[Change, float] = {}
        self.answers: Counter[int] = Counter()
        for position, delivery in enumerate(deliveries):
            on_time = position / len(deliveries) * plan.lasts
            # All are shuffled a little, some come late, some come twice.
            late = self._dice.uniform(0, 20 if self._dice.random() < 0.05 else 2)
            self._put(min(plan.lasts, on_time + late), 0, delivery)
            if self._dice.random() < 0.1:
                again = on_time + self._dice.uniform(0, 20)
                self._put(min(plan.lasts, again), 0, delivery)

    def start(self) -> None:
        self._began = time.monotonic()
        for _ in range(SENDERS):
            threading.Thread(target=self._send, daemon=True).start()

    @property
    def done(self) -> bool:
        with self._ready:
            return not self._queue and not self._in_flight

    def _put(self, due: float, tries: int, delivery: Delivery) -> None:
        heapq.heappush(self._queue, (due, next(self._number), tries, delivery))

    def _send(self) -> None:
        while True:
            with self._ready:
                now = time.monotonic() - self._began
                if not self._queue or self._queue[0][0] > now:
                    self._ready.wait(min(0.2, self._queue[0][0] - now) if self._queue else 0.2)
                    continue
                _, _, tries, delivery = heapq.heappop(self._queue)
                self._in_flight += 1
            status = delivery.post(self._pool)
            with self._ready:
                self._in_flight -= 1
                self.answers[status] += 1
                now = time.monotonic() - self._began
                if 200 <= status < 300:
                    self.first_accepted.setdefault(delivery.change, now)
                else:
                    wait = min(4.0, 0.5 * 2**tries) * self._dice.uniform(0.5, 1)
                    self._put(now + wait, tries + 1, delivery)


class LedgerReader:
    """Reads what the handlers wrote, as it grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._rest = path, 0, b""
        self.effects: list[Effect] = []
        self.completed: set[tuple[Change, str]] = set()

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            effect = Effect(*line.decode().split())
            self.effects.append(effect)
            self.completed.add((effect.change, effect.handler))


@dataclass
class Run:
    """What happened, second by second, and what was struck when."""

    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    """Seconds, changes accepted, changes completed by every handler, events pending."""
    faults: list[tuple[float, str]] = field(default_factory=list)
    rolled_out: float | None = None


class Storm:
    """One run of a plan."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self._plan = plan
        self._dice = random.Random(f"storm {plan.seed}")
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self.run = Run()
        self.traces = traces = Traces()
        self._processes = Processes(folder, traces)
        stack.callback(self._processes.stop_all)
        self._sandbox = Sandbox(self._processes, plan.forms)
        stack.callback(self._sandbox.close)
        (folder / "redis").mkdir()
        self._redis = Server(self._processes, traces, folder / "redis")
        self._redis.start()
        self._proxy = stack.enter_context(Proxy(self._redis.port))
        self._client = stack.enter_context(self._redis.client())
        # It asks while Redis is killed and frozen, and must not wait for that to end.
        self._impatient = stack.enter_context(
            self._redis.client(socket_timeout=0.3, socket_connect_timeout=0.3)
        )
        keep_reconciliation_out(self._client)
        self._ledger = LedgerReader(folder / "ledger")
        self._port = free_port()
        env = environment(
            f"redis://127.0.0.1:{self._proxy.port}/0",
            self._sandbox.url,
            folder / "ledger",
            PORT=str(self._port),
        )
        self._parts = {
            name: (arguments, env) for name, arguments in _commands(plan, self._port).items()
        }

    def play(self) -> dict[str, Any]:
        """Run it to the end and return the report."""
        plan = self._plan
        say(f"making {plan.events} changes in the sandbox ...")
        deliveries = self._sandbox.changes(-(-plan.events // 3), within=300)
        parts = {n: Part(self._processes, a, e) for n, (a, e) in self._parts.items()}
        self._parts = parts
        wait_until(lambda: _listens(self._port))
        self._plan_faults()
        producer = Producer(deliveries, plan, self._port)
        self._began = time.monotonic()
        producer.start()
        last_fault, last_progress, quiet_at = plan.lasts, plan.lasts, None
        next_sample = 0.0
        while (now := time.monotonic() - self._began) < last_progress + STALLED:
            for part in parts.values():
                part.keep_running()
            while self._actions and self._actions[0][0] <= now:
                heapq.heappop(self._actions)[2]()
                last_fault = max(plan.lasts, now)
            if now >= next_sample:
                next_sample = now + 1
                if self._sample(now, producer):
                    last_progress = max(last_progress, now)
                if now > plan.lasts and producer.done and self._settled(deliveries):
                    quiet_at = now
                    break
            time.sleep(0.02)
        sys.stdout.write("\n")
        time.sleep(1)  # what came back late may still do something unexpected
        self._ledger.read()
        return self._report(deliveries, producer, last_fault, quiet_at)

    # -- faults ------------------------------------------------------------------------------

    def _plan_faults(self) -> None:
        plan, dice = self._plan, self._dice
        moments = lambda count: (dice.uniform(1, plan.lasts) for _ in range(count))  # noqa: E731
        targets, weights = list(KILLS), list(KILLS.values())
        for moment in moments(plan.kills):
            number = dice.choices((signal.SIGKILL, signal.SIGTERM), (3, 1))[0]
            self._at(moment, self._kill, number, *dice.choices(targets, weights)[0])
        for moment in moments(plan.redis_kills):
            self._at(moment, self._kill_redis)
        half = max(1, plan.redis_kills // 2)
        for moment in moments(half):
            self._at(moment, self._freeze_redis, dice.uniform(0.5, 12))
        for moment in moments(half):
            self._at(moment, self._freeze_worker, dice.choice(("worker-1", "worker-2")))
        for name in ("cut", "half_close", "drop_reply", "drop_reply"):
            for moment in moments(plan.redis_kills):
                self._at(moment, self._network, name)
        for name, value in (("delay", 0.2), ("rate", 20_000.0), ("refusing", True)):
            for moment in moments(half):
                self._at(moment, self._trouble, name, value)
        api_faults: tuple[dict[str, Any], ...] = (
            {"kind": "rate_limit", "next": 5},
            {"kind": "error", "status": 503, "rate": 0.3},
            {"kind": "slow", "seconds": 1.5, "rate": 0.3},
            {"kind": "cut", "rate": 0.3},
            {"kind": "timeout", "seconds": 4, "rate": 0.1},
        )
        for number, moment in enumerate(moments(plan.redis_kills)):
            self._at(moment, self._spoil_api, api_faults[number % len(api_faults)])
        for number, name in enumerate(("worker-1", "worker-2")):
            self._at(plan.lasts / 2 + 5 * number, self._deploy, name)

    def _at(self, moment: float, action: Callable[..., None], *arguments: Any) -> None:
        # A heap: what strikes first stands first.
        entry = (moment, next(self._number), lambda: action(*arguments))
        heapq.heappush(self._actions, entry)

    def _later(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        self._at(time.monotonic() - self._began + seconds, action, *arguments)

    def _note(self, what: str) -> None:
        self.run.faults.append((round(time.monotonic() - self._began, 2), what))

    def _kill(self, number: int, name: str, whom: str) -> None:
        self._parts[name].signal(number, whom)
        self._note(f"{signal.Signals(number).name} {name} {whom}")

    def _kill_redis(self) -> None:
        process = self._redis.process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
            self._note("SIGKILL redis")
            self._later(0.5, self._start_redis)

    def _start_redis(self) -> None:
        if self._redis.process.poll() is not None:
            self._redis.start()

    def _freeze_redis(self, seconds: float) -> None:
        process = self._redis.process
        process.send_signal(signal.SIGSTOP)
        self._note("SIGSTOP redis")
        self._later(seconds, process.send_signal, signal.SIGCONT)

    def _freeze_worker(self, name: str) -> None:
        pid = self._parts[name].signal(signal.SIGSTOP, "child")
        self._note(f"SIGSTOP {name} child")

        def go_on() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        self._later(15, go_on)  # longer than a lease

    def _network(self, name: str) -> None:
        getattr(self._proxy, name)()
        self._note(f"network {name}")

    def _trouble(self, name: str, value: float | bool) -> None:
        usual = {"delay": 0.0, "rate": None, "refusing": False}[name]
        setattr(self._proxy, name, value)
        if name == "refusing":
            self._proxy.cut()
        self._note(f"network {name}")
        self._later(3, setattr, self._proxy, name, usual)

    def _spoil_api(self, fault: dict[str, Any]) -> None:
        self._sandbox.control("faults", **fault, route="GET *")
        self._note(f"api {fault['kind']}")
        self._later(5, self._sandbox.control, "faults", "DELETE")

    def _deploy(self, name: str) -> None:
        part = self._parts[name]
        part.env = part.env | {"LEDGER_VERSION": "2"}
        part.signal(signal.SIGTERM, "parent")
        self._note(f"deploy {name}")
        self._later(EXIT_WITHIN, self._rolled_out)

    def _rolled_out(self) -> None:
        self.run.rolled_out = time.monotonic() - self._began

    # -- judging -----------------------------------------------------------------------------

    def _sample(self, now: float, producer: Producer) -> bool:
        """Note how far everything is; whether that is further than before."""
        before = len(self._ledger.completed)
        self._ledger.read()
        accepted = len(producer.first_accepted)
        done = Counter(change for change, handler in self._ledger.completed if handler in HANDLERS)
        completed = sum(count == len(HANDLERS) for count in done.values())
        self.run.samples.append((round(now, 1), accepted, completed, self._pending()))
        kinds = Counter(what.partition(" ")[0] for _, what in self.run.faults)
        say(
            f"\r{now:5.0f} s  accepted {accepted:,} of {self._plan.events:,}, completed"
            f" {completed:,}, pending {self._pending():,}; struck {sum(kinds.values())} times   ",
            end="",
        )
        return len(self._ledger.completed) > before

    def _pending(self) -> int:
        try:
            if self._plan.plain_rq:
                return int(self._impatient.llen("rq:queue:plain"))
            return int(self._impatient.zcard("iw:due"))
        except redis.RedisError:
            return -1

    def _settled(self, deliveries: list[Delivery]) -> bool:
        if self._plan.plain_rq:
            return self.run.samples[-1][2] >= len({d.change for d in deliveries})
        return self._pending() == 0

    def _report(
        self,
        deliveries: list[Delivery],
        producer: Producer,
        last_fault: float,
        quiet_at: float | None,
    ) -> dict[str, Any]:
        changes = {delivery.change for delivery in deliveries}
        tallies = {name: tally(changes, self._ledger.effects, name) for name in HANDLERS}
        if self.run.rolled_out is not None and not self._plan.plain_rq:
            late = {c for c, at in producer.first_accepted.items() if at > self.run.rolled_out}
            tallies["added"] = tally(late, self._ledger.effects, "added", allowed=changes)
        dead: Counter[str] = Counter()
        if not self._plan.plain_rq:
            keys = self._client.zrange("iw:dead", 0, -1)
            dead.update(
                (self._client.hget(b"iw:evt:" + k, "reason") or b"?").decode() for k in keys
            )
        if self._plan.plain_rq:
            for registry in (StartedJobRegistry, FailedJobRegistry, ScheduledJobRegistry):
                held = registry("plain", connection=self._client)
                dead[f"in {registry.__name__}"] = self._client.zcard(held.key)
        exits = [each for part in self._parts.values() for each in part.exits]
        return {
            "plan": asdict(self._plan),
            "handlers": {name: asdict(each) for name, each in tallies.items()},
            "dead": dict(dead),
            "answers": {str(status): count for status, count in sorted(producer.answers.items())},
            "faults": Counter(what for _, what in self.run.faults),
            "sigterm_exit_max_s": round(max(exits, default=0), 2),
            "lasted_s": round(self.run.samples[-1][0]),
            "quiet_after_s": None if quiet_at is None else round(quiet_at - last_fault, 1),
            "kept": all(each.kept for each in tallies.values())
            and not dead
            and quiet_at is not None
            and quiet_at - last_fault <= QUIET_WITHIN,
        }


def _commands(plan: Plan, port: int) -> dict[str, tuple[str, ...]]:
    app = "tests.chaos.plain_rq:create_app()" if plan.plain_rq else "service.app:create_app()"
    web = ("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--bind", f"127.0.0.1:{port}", app)
    if plan.plain_rq:
        worker: tuple[str, ...] = ("-m", "tests.chaos.plain_rq")
        # Its worker runs one job at a time. A second pair in place of the periodic process.
        return {
            "web": web,
            **dict.fromkeys(("worker-1", "worker-2", "periodic", "worker-4"), worker),
        }
    return {
        "web": web,
        "worker-1": ("-m", "workers"),
        "worker-2": ("-m", "workers"),
        "periodic": ("-m", "workers", "periodic"),
    }


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def summary(report: dict[str, Any]) -> str:
    """The report in lines for people."""
    names = tuple(Tally.__dataclass_fields__)
    titles = ("accepted", "completed", "lost", "unexpected", "repeats", "with key")
    lines = [f"{'handler':10}" + "".join(f"{title:>12}" for title in titles)]
    for handler, counted in report["handlers"].items():
        lines.append(f"{handler:10}" + "".join(f"{counted[name]:>12,}" for name in names))
    struck = Counter()
    for what, count in report["faults"].items():
        struck[" ".join(what.split()[:2])] += count
    quiet = report["quiet_after_s"]
    return "\n".join(
        [
            *lines,
            "struck: " + ", ".join(f"{what} {count}" for what, count in sorted(struck.items())),
            f"answers: {report['answers']}; dead: {report['dead'] or 'none'};"
            f" longest exit after SIGTERM {report['sigterm_exit_max_s']} s",
            f"lasted {report['lasted_s']} s; quiet"
            + (f" {quiet} s after the last fault" if quiet is not None else ": NOT in time")
            + ("" if report["kept"] else "  <-- THE CONTRACT WAS BROKEN"),
        ]
    )


def run(plan: Plan) -> dict[str, Any]:
    """Play a plan, and leave report and picture in var/chaos/."""
    out = ROOT / "var" / "chaos"
    out.mkdir(parents=True, exist_ok=True)
    name = f"{'plain-rq' if plan.plain_rq else 'storm'}-{plan.events}-{plan.seed}"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        storm = Storm(plan, Path(folder), stack)
        report = storm.play()
        if plan.events <= SEARCHED:
            storm.traces.require_absent(CANARY)
        (out / f"{name}.json").write_text(
            json.dumps(report | {"timeline": asdict(storm.run)}, indent=1)
        )
        (out / f"{name}.svg").write_text(picture.draw(storm.run.samples, storm.run.faults))
    say(f"{'plain RQ' if plan.plain_rq else 'identity-webhooks'}, seed {plan.seed}:")
    say(summary(report))
    say(f"report and picture: {(out / name).relative_to(ROOT)}.json, .svg")
    return report


@click.command()
@click.option("--events", default=20_000, show_default=True, help="Changes of sessions.")
@click.option("--kills", default=200, show_default=True, help="Of processes, TERM or KILL.")
@click.option("--redis-kills", default=10, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--rate", default=45.0, show_default=True, help="Changes a second.")
@click.option("--forms", type=click.Choice(["snapshot", "both"]), default="snapshot")
@click.option("--plain-rq", is_flag=True, help="Put plain RQ through it, for comparison.")
def main(
    events: int,
    kills: int,
    redis_kills: int,
    seed: int,
    rate: float,
    forms: str,
    plain_rq: bool,
) -> None:
    """Put the service through a storm and count what came out."""
    told = ("snapshot", "thin") if forms == "both" else ("snapshot",)
    report = run(Plan(events, kills, redis_kills, seed, rate, told, plain_rq))
    # What plain RQ loses is for comparison.
    sys.exit(0 if report["kept"] or plain_rq else 1)


if __name__ == "__main__":
    main()
