"""What a step costs with a thousand and with a million events queued, and what an event weighs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from redis import Redis

from service import connection
from service.inbox import Claim, Inbox, Progress
from service.settings import Settings
from tests.benchmarks import machine
from tests.benchmarks.machine import Server
from tests.benchmarks.scale import life

FEW, MANY = 1_000, 1_000_000
SETTLED = 50_000
ROUNDS, BATCH = 25, 200


@dataclass(frozen=True)
class Cost:
    """Microseconds of one step: Redis' own, and with the client and the way there and back."""

    redis: float
    client: float


@dataclass(frozen=True)
class Weight:
    """Bytes of Redis for one event: in all, and what is known of it by name."""

    total: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Growth:
    """What was measured; costs by step, first with few events in the queue, then with many."""

    server: str
    costs: dict[str, tuple[Cost, Cost]]
    pending: Weight
    settled: Weight
    fill_seconds: float


def measure(program: str) -> Growth:
    """Measure it on this Redis."""
    with machine.redis_server(program) as few, machine.redis_server(program) as many:
        began = time.monotonic()
        pending = _weigh_pending(many)
        took = time.monotonic() - began
        life.repeat(few, life.record(few, settled=False), FEW)
        for server in (few, many):
            _wait_for_rewrite(server)
        name, costs = name_of(few), _costs(few, many)
    with machine.redis_server(program) as server:
        return Growth(name, costs, pending, _weigh_settled(server), took)


def name_of(server: Server) -> str:
    with Redis(port=server.port) as client:
        info = client.info()
    name = info.get("server_name", "redis")
    version = info.get(f"{name}_version", info["redis_version"])
    return f"{name.capitalize()} {version}, allocator {info['mem_allocator']}"


def _costs(few: Server, many: Server) -> dict[str, tuple[Cost, Cost]]:
    """Measure them in turns, each batch of new events followed by one that takes as many."""
    seen: dict[tuple[str, int], list[Cost]] = defaultdict(list)
    with _client(few) as one, _client(many) as other:
        inboxes = [(one, Inbox(one, limit=life.LIMIT)), (other, Inbox(other, limit=life.LIMIT))]
        for number in range(ROUNDS):
            for which in (0, 1) if number % 2 else (1, 0):
                for step, cost in _batch(*inboxes[which], f"{number:03}").items():
                    seen[step, which].append(cost)
    return {step: (_middle(seen[step, 0]), _middle(seen[step, 1])) for step, _ in seen}


def _client(server: Server) -> Redis:
    """Connect as the service does."""
    return connection.connect(Settings(redis_url=f"redis://127.0.0.1:{server.port}/0"))


def _batch(client: Redis, inbox: Inbox, name: str) -> dict[str, Cost]:
    events = [life.event(f"new{name}{number:018}") for number in range(BATCH)]
    claims: list[Claim] = []

    def accept() -> None:
        for event in events:
            inbox.accept(event)

    def take() -> None:
        for _ in events:
            (claim,) = inbox.claim()
            assert isinstance(claim, Claim)
            claims.append(claim)

    def settle() -> None:
        for claim in claims:
            inbox.save_progress(claim, life.HANDLERS[0], Progress("done"))
            inbox.finish(claim, "done", outcome="verified")

    steps: dict[str, Callable[[], None]] = {
        "accept": accept,
        "take and claim": take,
        "record and finish": settle,
    }
    return {step: _cost(client, work) for step, work in steps.items()}


def _cost(client: Redis, work: Callable[[], None]) -> Cost:
    before = _script_microseconds(client)
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    spent = _script_microseconds(client) - before
    return Cost(redis=spent / BATCH, client=took * 1e6 / BATCH)


def _script_microseconds(client: Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {"usec": 0})["usec"])


def _middle(costs: list[Cost]) -> Cost:
    return Cost(median(c.redis for c in costs), median(c.client for c in costs))


def _weigh_pending(server: Server) -> Weight:
    commands = life.record(server, settled=False)
    with Redis(port=server.port, socket_timeout=60) as client:
        before = used(client)
        life.repeat(server, commands, MANY)
        _wait_for_rewrite(server)
        wait_for_answers(client)
        total = (used(client) - before) / MANY
        unique = life.unique(MANY // 2)
        job = next(client.scan_iter(f"rq:job:evt_{life.UNIQUE}-*", count=100_000))
        sizes = {
            "record": client.memory_usage(f"iw:evt:evt_{unique}", samples=0),
            "RQ's job": client.memory_usage(job, samples=0),
            "when to look again (iw:due)": client.memory_usage("iw:due", samples=1000) / MANY,
            "place in the queue": client.memory_usage("rq:queue:identity", samples=1000) / MANY,
            **listed(client, MANY),
        }
    return _weight(total, sizes)


def _weigh_settled(server: Server) -> Weight:
    commands = life.record(server, settled=True)
    with Redis(port=server.port, socket_timeout=60) as client:
        before = used(client)
        life.repeat(server, commands, SETTLED)
        _wait_for_rewrite(server)
        wait_for_answers(client)
        total = (used(client) - before) / SETTLED
        name = life.unique(SETTLED // 2)
        (month,) = {key.split(b":")[2].decode() for key in client.scan_iter("iw:last:*")}
        last = f"iw:last:{month}:{name[-2:]}"
        sizes = {
            "record with its ledger": client.memory_usage(f"iw:done:evt_{name}", samples=0),
            "what its session last heard (iw:last)": client.memory_usage(last, samples=0)
            / client.hlen(last),
            **listed(client, SETTLED),
        }
        done = sum(1 for _ in client.scan_iter("iw:done:*", count=10_000))
        assert done == SETTLED + 1
        assert client.zcard("iw:due") == 0
    return _weight(total, sizes)


def listed(client: Redis, count: int) -> dict[str, float]:
    """Return the bytes of the lists by which each of so many events is found."""
    return {
        name: sum(
            client.memory_usage(key, samples=0) for key in client.scan_iter(keys, count=10_000)
        )
        / count
        for name, keys in (
            ("place among those of its hour (iw:log)", "iw:log:*"),
            ("place among those of its session (iw:of)", "iw:of:*"),
        )
    }


def _weight(total: float, sizes: dict[str, float]) -> Weight:
    rest = total - sum(sizes.values())
    return Weight(total, sizes | {"tables of keys and expiries": rest})


def used(client: Redis) -> int:
    return int(client.info("memory")["used_memory"])


def wait_for_answers(client: Redis) -> None:
    """Wait until Redis has forgotten what scripts answered, which it keeps for a few seconds."""
    machine.wait_until(
        lambda: next(client.scan_iter("iw:answer:*", count=100_000), None) is None, within=120
    )


def _wait_for_rewrite(server: Server) -> None:
    """Wait until Redis no longer rewrites its file, which costs it memory and time."""
    with Redis(port=server.port, socket_timeout=60) as client:
        machine.wait_until(
            lambda: (
                not (
                    (info := client.info("persistence"))["aof_rewrite_in_progress"]
                    or info["aof_rewrite_scheduled"]
                )
            ),
            within=120,
        )
