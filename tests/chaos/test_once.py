"""`v.once` on PostgreSQL while two workers are killed again and again: one effect each."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from redis import Redis
from sqlalchemy import Engine, text

from identity_webhooks.once import TABLE, create_table
from service.inbox import Inbox
from tests.chaos.storm import Part, say
from tests.chaos.system import Change, Sandbox, environment, keep_reconciliation_out
from tests.conftest import Processes, Server, wait_until

EFFECTS = ("without_key", "with_once")
AHEAD = 100
"""Events that wait, so that workers are killed with their hands full."""


@pytest.fixture
def engine(postgres: str) -> Iterator[Engine]:
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://{postgres}")
    with engine.begin() as db:
        for table in (TABLE, *EFFECTS):
            db.execute(text(f"DROP TABLE IF EXISTS {table}"))
        for table in EFFECTS:
            db.execute(text(f"CREATE TABLE {table} (session VARCHAR(100), kind VARCHAR(20))"))
    create_table(engine)
    yield engine
    engine.dispose()


def effects(engine: Engine, table: str) -> Counter[Change]:
    with engine.connect() as db:
        return Counter(Change(*row) for row in db.execute(text(f"SELECT * FROM {table}")))  # noqa: S608


def repeats(engine: Engine) -> int:
    """Return how often a change had an effect without key more than once: kills hit something."""
    without = effects(engine, "without_key")
    return without.total() - len(without)


class Killer:
    """Kills a worker, its parent or its child, after some more runs each time; it starts again.

    Counted in runs, not in seconds: so there is work in hand, however slow the machine.
    """

    def __init__(
        self, processes: Processes, env: dict[str, str], engine: Engine, between: int
    ) -> None:
        self._dice = random.Random("killer")
        self._workers = [Part(processes, ("-m", "workers"), env) for _ in range(2)]
        self._engine, self._between = engine, between
        self._next = 20
        self.kills = 0

    def act(self, *, kill: bool = True) -> None:
        for worker in self._workers:
            worker.keep_running()
        if kill and self._runs() >= self._next:
            whom = self._dice.choice(["parent", "child", "child"])
            self._dice.choice(self._workers).signal(signal.SIGKILL, whom)
            self.kills += 1
            self._next = self._runs() + self._dice.randrange(1, 2 * self._between)
        time.sleep(0.02)

    def _runs(self) -> int:
        with self._engine.connect() as db:
            return int(db.scalar(text("SELECT count(*) FROM without_key")) or 0)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("count", "kills"), [(200, 4), pytest.param(10_000, 100, marks=pytest.mark.walk)]
)
def test_every_change_has_its_effect_once_whoever_is_killed(
    count: int,
    kills: int,
    sandbox: Sandbox,
    processes: Processes,
    new_server: Callable[..., Server],
    engine: Engine,
    tmp_path: Path,
) -> None:
    redis = new_server()
    url = engine.url.render_as_string(hide_password=False)
    env = environment(
        redis.url,
        sandbox.url,
        tmp_path / "ledger",
        HANDLERS="paid",
        PAID_DATABASE=url,
        WORKER_CONCURRENCY="4",
        AUDIT="0",
        LOG_LEVEL="error",
    )
    changes: set[Change] = set()
    with redis.client() as client:
        keep_reconciliation_out(client)
        killer = Killer(processes, env, engine, count // kills)
        while len(changes) < count or killer.kills < kills or not repeats(engine):
            if client.zcard("iw:due") < AHEAD:
                # So many that there is work while workers are killed, and none is made meanwhile.
                for each in sandbox.changes(sessions=100):
                    changes.add(each.change)
                    Inbox(client).accept(each.event)
            killer.act()
        wait_until(lambda: settled(client) or killer.act(kill=False), within=240)
        assert client.zcard("iw:dead") == 0
    once = effects(engine, "with_once")
    say(
        f"{len(changes):,} events, {killer.kills} kills: repeats without key {repeats(engine)},"
        f" by v.once {once.total() - len(once)}, lost {len(changes - once.keys())}"
    )
    assert once == Counter(changes)


def settled(client: Redis) -> bool:
    return client.zcard("iw:due") == 0
