"""Drills: Redis has a full disk, writes no file, was emptied, or restored from a backup."""

from __future__ import annotations

import resource
import shutil

import pytest
from redis.exceptions import ResponseError

pytestmark = pytest.mark.walk


def refuses(client, word: str) -> bool:
    try:
        client.set("filler", "x")
    except ResponseError as error:
        return str(error).startswith(word)
    return False


def verified(service) -> set[str]:
    """Return the sessions whose `verified` is done with."""
    events = service.listed("--state", "done")
    return {each["session"] for each in events if each["kind"] == "verified"}


def test_its_disk_is_full(service, drill, wait_until) -> None:
    def limit(size: int) -> None:
        sizes = (size, resource.RLIM_INFINITY)
        resource.prlimit(service.redis.process.pid, resource.RLIMIT_FSIZE, sizes)

    def fill() -> None:
        (file,) = service.redis.folder.glob("appendonlydir/*.incr.aof")
        limit(file.stat().st_size)
        with service.redis.client() as client:
            wait_until(lambda: refuses(client, "MISCONF"))

    service.start_worker()
    drill(
        fill,
        {"RedisRefuses"},
        "MISCONF",
        "look into its log and at its disk",
        cure=lambda: limit(resource.RLIM_INFINITY),
    )


def test_it_writes_no_file(service, drill) -> None:
    service.start_worker()
    with service.redis.client() as client:
        drill(
            lambda: client.config_set("appendonly", "no"),
            {"RedisRefuses"},
            "append-only file",
            cure=lambda: client.config_set("appendonly", "yes"),
        )


def test_it_was_emptied(service, drill, wait_until) -> None:
    service.keep_reconciliation_out()
    service.start_worker()
    sessions = [service.verified() for _ in range(3)]
    for session in sessions:
        service.deliver_verified(session)
    wait_until(lambda: verified(service) == {*sessions})

    def empty() -> None:
        with service.redis.client() as client:
            client.flushall()

    drill(
        empty,
        {"DeliveriesMissed"},
        "events that no delivery had brought were found",
        "python -m workers reconcile --deep",
        cure=lambda: service.done("workers reconcile --deep"),
        cured=lambda: verified(service) == {*sessions},
    )


def test_it_was_restored_from_a_backup(service, wait_until, tmp_path) -> None:
    """What was handled since the backup is taken in as done, and does not run again."""
    effects = tmp_path / "effects"
    service.environment["EFFECTS"] = str(effects)
    service.keep_reconciliation_out()
    service.start_worker()
    service.redis.stop()
    shutil.copytree(service.redis.folder / "appendonlydir", tmp_path / "backup")
    service.redis.start()
    sessions = [service.verified() for _ in range(3)]
    for session in sessions:
        service.deliver_verified(session)
    wait_until(lambda: verified(service) == {*sessions})
    service.stop_worker()
    service.redis.stop()
    shutil.rmtree(service.redis.folder / "appendonlydir")
    shutil.copytree(tmp_path / "backup", service.redis.folder / "appendonlydir")
    service.redis.start()
    assert service.listed() == []

    service.done("workers reconcile --as-done --since 2026-01-01")
    assert verified(service) == {*sessions}
    before = effects.read_text()
    service.start_worker()
    service.done("workers reconcile")
    after = service.verified()
    service.deliver_verified(after)
    wait_until(lambda: verified(service) == {*sessions, after})
    new = effects.read_text().removeprefix(before)
    assert new
    assert {line.split()[0] for line in new.splitlines()} == {f"evt_{after.removeprefix('vs_')}"}
