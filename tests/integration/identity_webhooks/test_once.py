"""`v.once`: an effect and its key in one transaction, on PostgreSQL and SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from identity_webhooks import Retry
from identity_webhooks.once import TABLE, create_table, once
from tests.conftest import ROOT


@pytest.fixture(params=["postgresql", "sqlite"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/effects.db")
    else:
        url = f"postgresql+psycopg://{request.getfixturevalue('postgres')}"
        engine = sqlalchemy.create_engine(url, pool_size=30)
    with engine.begin() as db:
        db.execute(text(f"DROP TABLE IF EXISTS {TABLE}"))
        db.execute(text("DROP TABLE IF EXISTS effects"))
        db.execute(text("CREATE TABLE effects (word VARCHAR(100))"))
    create_table(engine)
    create_table(engine)  # is there already
    yield engine
    engine.dispose()


def effects(engine: Engine) -> list[str]:
    with engine.connect() as db:
        return list(db.scalars(text("SELECT word FROM effects ORDER BY word")))


def add(db: Connection | Session, word: str = "granted") -> None:
    db.execute(text("INSERT INTO effects VALUES (:word)"), {"word": word})


def handler(engine: Engine, how: str) -> Callable[[], bool]:
    """Return what runs an effect once, through one of the forms of a database."""

    def run() -> bool:  # noqa: PLR0911 (one form each)
        match how:
            case "engine":
                return once(engine, "evt_1:p.grant")(add)
            case "connection":
                with engine.connect() as db:
                    return once(db, "evt_1:p.grant")(add)
            case "own transaction":
                with engine.begin() as db:
                    return once(db, "evt_1:p.grant")(add)
            case "session":
                with Session(engine) as session:
                    return once(session, "evt_1:p.grant")(add)
            case "session that has read":
                with Session(engine) as session:
                    session.execute(text("SELECT * FROM effects"))
                    return once(session, "evt_1:p.grant")(add)
            case "begun session":
                with sessionmaker(engine).begin() as session:
                    return once(session, "evt_1:p.grant")(add)
            case _:
                session = scoped_session(sessionmaker(engine))
                try:
                    return once(session, "evt_1:p.grant")(add)
                finally:
                    session.remove()

    return run


FORMS = (
    *("engine", "connection", "own transaction"),
    *("session", "session that has read", "begun session", "scoped session"),
)


@pytest.mark.parametrize("how", FORMS)
def test_the_first_run_counts_and_every_other_is_skipped(how, engine) -> None:
    run = handler(engine, how)
    assert [run(), run(), run()] == [True, False, False]
    assert effects(engine) == ["granted"]


@pytest.mark.parametrize("how", FORMS)
def test_an_effect_that_fails_leaves_no_key_behind(how, engine, monkeypatch) -> None:
    def fail(db: Connection | Session) -> None:
        add_before(db)
        raise ValueError("no")

    add_before = add
    run = handler(engine, how)
    monkeypatch.setitem(globals(), "add", fail)
    with pytest.raises(ValueError, match="no"):
        run()
    assert effects(engine) == []
    monkeypatch.undo()
    assert run() is True
    assert effects(engine) == ["granted"]


def test_an_update_that_hits_no_row_counts_too(engine) -> None:
    calls = []

    def update(db: Connection) -> None:
        calls.append(db.execute(text("UPDATE effects SET word = 'x' WHERE word = 'none'")).rowcount)

    assert [once(engine, "k")(update), once(engine, "k")(update)] == [True, False]
    assert calls == [0]


def test_at_one_instant_one_runs_and_the_others_wait_for_it_and_skip(engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    barrier, answers = threading.Barrier(20), []

    def slowly(db: Connection) -> None:
        add(db)
        time.sleep(0.1)

    def run() -> None:
        barrier.wait()
        answers.append(once(engine, "k")(slowly))

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(answers) == {True: 1, False: 19}
    assert effects(engine) == ["granted"]


def test_who_waits_runs_when_the_first_one_fails(engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    begun, answers = threading.Event(), []

    def fail(db: Connection) -> None:
        begun.set()
        time.sleep(0.2)
        raise LookupError

    def first() -> None:
        with pytest.raises(LookupError):
            once(engine, "k")(fail)

    def second() -> None:
        assert begun.wait(20)
        answers.append(once(engine, "k")(add))

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True]


def test_a_missing_table_says_what_makes_it(engine) -> None:
    with engine.begin() as db:
        db.execute(text(f"DROP TABLE {TABLE}"))
    with pytest.raises(Retry, match=r"identity_webhooks\.once\.create_table makes it"):
        once(engine, "k")(add)


def test_a_coroutine_is_no_effect(engine) -> None:
    async def later(db: Connection) -> None: ...

    with pytest.raises(TypeError, match="nothing of it ran"):
        once(engine, "k")(later)
    assert once(engine, "k")(add) is True


@pytest.mark.parametrize(
    "database",
    [None, object(), {"url": "sqlite://"}],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_database_is_refused(database: Any) -> None:
    with pytest.raises(TypeError, match="once takes an engine, a connection or a session"):
        once(database, "k")(add)


DJANGO = """
import sys
import django
from django.conf import settings
settings.configure(DATABASES={"default": %(database)s}, USE_TZ=True)
django.setup()
from django.db import connection, transaction
from identity_webhooks.once import create_table, once

with connection.cursor() as cursor:
    cursor.execute("DROP TABLE IF EXISTS identity_webhooks_once")
    cursor.execute("DROP TABLE IF EXISTS effects")
    cursor.execute("CREATE TABLE effects (word VARCHAR(100))")
create_table(connection)

def effect(db):
    with db.cursor() as cursor:
        cursor.execute("INSERT INTO effects VALUES ('granted')")

def fail(db):
    effect(db)
    raise ValueError

try:
    once("default", "k")(fail)
except ValueError:
    pass
print(once(connection, "k")(effect), once("default", "k")(effect))
with transaction.atomic():
    print(once(connection, "other")(effect))
    transaction.set_rollback(True)
with connection.cursor() as cursor:
    cursor.execute("SELECT COUNT(*) FROM effects")
    print(cursor.fetchone()[0])
"""


@pytest.mark.parametrize("vendor", ["postgresql", "sqlite3"])
def test_django(vendor, tmp_path, request) -> None:
    if vendor == "sqlite3":
        database = {"NAME": f"{tmp_path}/django.db"}
    else:
        address = request.getfixturevalue("postgres").removeprefix("tester@127.0.0.1:")
        port, name = address.split("/")
        database = {"NAME": name, "USER": "tester", "HOST": "127.0.0.1", "PORT": port}
    database["ENGINE"] = f"django.db.backends.{vendor}"
    done = subprocess.run(
        [sys.executable, "-c", DJANGO % {"database": database}],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    # A failure, then once and again; in a transaction that is rolled back; what is left.
    assert done.stdout.split() == ["True", "False", "True", "1"]


WORKER = """
import os, random, sys
import sqlalchemy
from sqlalchemy import text
from identity_webhooks.once import once

engine = sqlalchemy.create_engine(sys.argv[1])
count, chance = int(sys.argv[2]), float(sys.argv[3])
keys = [f"evt_{n}" for n in range(count)]
random.shuffle(keys)
repeated = 0

def effect(db):
    die()
    db.execute(text("INSERT INTO effects VALUES (:word)"), {"word": key})
    die()

def die():
    if random.random() < chance:
        os.kill(os.getpid(), 9)

for key in keys:
    repeated += not once(engine, key)(effect)
    die()
print(repeated)
"""


def test_kills_at_any_moment_and_every_effect_once(postgres, engine) -> None:
    """Two processes run all keys in an order of their own, and are killed inside and outside."""
    if engine.dialect.name == "sqlite":
        pytest.skip("run on PostgreSQL")
    count = int(os.environ.get("ONCE_EVENTS", "500"))
    url = engine.url.render_as_string(hide_password=False)
    kills = Counter[str]()

    def run(name: str) -> None:
        command = [sys.executable, "-c", WORKER, url, str(count)]
        for chance in [3 / count] * 8 + [0.0]:
            done = subprocess.run(
                [*command, str(chance)], cwd=ROOT, capture_output=True, text=True, check=False
            )
            kills[name] += done.returncode == -9
            if done.returncode == 0:
                kills["skipped"] += int(done.stdout)
                if not chance:
                    return
            elif done.returncode != -9:
                pytest.fail(done.stderr)

    threads = [threading.Thread(target=run, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert effects(engine) == sorted(f"evt_{n}" for n in range(count))
    assert kills["one"] + kills["two"] >= 4
    assert kills["skipped"] > 0
