"""The state file: one process's, and without a byte of what was redacted."""

import os
import random
import sqlite3
import stat
from pathlib import Path

import pytest

from stripe_identity_sandbox.objects import Answer, Session
from stripe_identity_sandbox.settings import Settings
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.store import Store, Unusable

MARKER = b"MARKER7Q"


def files(path: Path) -> list[Path]:
    """Return the file of the state and those that SQLite keeps beside it."""
    return sorted(path.parent.glob(f"{path.name}*"))


def rests(path: Path) -> int:
    return sum(file.read_bytes().count(MARKER) for file in files(path))


def save_answer(world: World, key: str, session: Session) -> None:
    """Keep under an idempotency key an answer that shows the session."""
    answer = Answer(key, "/v1/identity/verification_sessions", "", "req_1", world.now())
    with world.step():
        world.answers.begin(answer)
        world.answers.end(answer, 200, 9 * MARKER.decode(), session)


@pytest.mark.parametrize("seed", range(8))
def test_no_byte_of_redacted_sessions_is_left(tmp_path: Path, seed: int) -> None:
    """Of lives whose records grow, shrink and go, so that pages are split, freed and used again."""
    chance = random.Random(seed)
    path = tmp_path / "state.sqlite"
    store = Store(path)
    clock = [1_795_000_000.0]
    world = World(Settings(marker=MARKER.decode()), clock=lambda: clock[0], save=store.save)
    marked = MARKER.decode()
    for _ in range(60):
        clock[0] += chance.choice((1, 7200, 90_000))
        with world.step():
            session = world.create({"type": "document", "metadata": {"a": marked}})
        save_answer(world, f"key_{len(world.sessions)}", session)
        for _ in range(chance.randrange(4)):
            metadata = {str(n): marked * chance.randrange(60) for n in range(chance.randrange(40))}
            with world.step():
                world.update(session, {"metadata": metadata})
        with world.step():
            world.submit(session, chance.choice(("verified", "document_expired")))
    assert rests(path)
    for session in world.sessions.values():
        with world.step():
            world.redact(session, delay=0.0)
        save_answer(world, "late", session)
    assert rests(path) == 0
    store.close()
    assert [file.name for file in files(path)] == ["state.sqlite"]
    assert rests(path) == 0


def test_what_a_killed_process_left_is_gone_with_the_next_start(tmp_path: Path) -> None:
    """Also what an older version of the sandbox, which erased no bytes, has left."""
    path = tmp_path / "state.sqlite"
    Store(path).close()
    old = sqlite3.connect(path)
    with old:
        old.execute("INSERT INTO record (kind, id, body) VALUES ('Key', 'k', ?)", (MARKER * 900,))
    with old:
        old.execute("DELETE FROM record")
    copied = tmp_path / "copy" / "state.sqlite"
    copied.parent.mkdir()
    for file in files(path):
        (copied.parent / file.name).write_bytes(file.read_bytes())
    old.close()
    assert rests(copied)
    store = Store(copied)
    assert rests(copied) == 0
    store.close()


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.touch(0o644)
    for _ in range(2):
        store = Store(path)
        with World(save=store.save).step() as world:
            world.create({"type": "document"})
        assert len(files(path)) > 1
        assert {stat.S_IMODE(file.stat().st_mode) for file in files(path)} == {0o600}
        store.close()
        path.chmod(0o644)


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (a)")
    other.close()


def of_another_version(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as other:
        other.execute("INSERT INTO record (kind, id, body) VALUES ('Nothing', 'x', '{}')")
    other.close()


def broken(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as other:
        other.execute("INSERT INTO record (kind, id, body) VALUES ('Key', 'x', '{')")
    other.close()


UNUSABLE = {
    "no database": lambda path: path.write_text("hello, this is a text and no database" * 100),
    "a short text": lambda path: path.write_text("hello"),
    "another's database": foreign,
    "another version's": of_another_version,
    "broken record": broken,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_cannot_keep_the_state(tmp_path: Path, make: object) -> None:
    path = tmp_path / "state.sqlite"
    assert callable(make)
    make(path)
    before = path.stat()
    kept = path.read_bytes() if path.is_file() else b""
    with pytest.raises(Unusable) as refused:
        Store(path).load()
    message = str(refused.value)
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message
    if make is not of_another_version and make is not broken:
        assert path.stat().st_mode == before.st_mode, "what is another's is left as it is"
        assert not path.is_file() or path.read_bytes() == kept


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unusable, match="cannot be opened for writing"):
        Store(tmp_path / "file" / "state.sqlite")
