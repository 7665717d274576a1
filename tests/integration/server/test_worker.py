"""The server in its worker: what gunicorn tells it, and what it tells gunicorn."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from service.server import worker
from service.server.worker import LoopWorker, _Server
from service.settings import Settings
from tests.logs import Said

SIGNALS = [signal.Signals[f"SIG{name}"] for name in ("INT", "QUIT", "TERM", "USR1")]


class Gunicorn:
    """What the server has of its worker."""

    def __init__(self) -> None:
        settings = Settings(redis_url="redis://127.0.0.1:1/0")
        settings = settings.model_copy(update={"drain_seconds": 600})
        metrics = SimpleNamespace(start=lambda: None)
        web = SimpleNamespace(settings=settings, metrics=metrics)
        self.wsgi = SimpleNamespace(extensions={"identity_webhooks": web})
        self.cfg = SimpleNamespace(threads=0)
        self.log = SimpleNamespace(reopen_files=self.reopen_files)
        self.sockets: list[Any] = []
        self.ppid = os.getppid()
        self.beats = self.reopened = 0

    def notify(self) -> None:
        self.beats += 1

    def reopen_files(self) -> None:
        self.reopened += 1


@pytest.fixture(autouse=True)
def signals_undone() -> Iterator[None]:
    """What the server leaves to no handler of its own ends no test."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TICK", 0.01)
    monkeypatch.setattr(worker, "HEARTBEAT", 0.01)


def with_server(use: Callable[[Gunicorn, asyncio.Task[None]], Awaitable[None]]) -> None:
    """Run `use` beside a server that is there; it is to have ended by then."""

    async def run() -> None:
        gunicorn = Gunicorn()
        task = asyncio.create_task(_Server(gunicorn).run())
        async with asyncio.timeout(120):
            await goes_on(gunicorn, task)
            await use(gunicorn, task)
            await task

    asyncio.run(run())


async def goes_on(gunicorn: Gunicorn, task: asyncio.Task[None]) -> None:
    """Wait until gunicorn was told some more times that the server lives."""
    wanted = gunicorn.beats + 3
    while gunicorn.beats < wanted:
        assert not task.done()
        await asyncio.sleep(0.001)


def test_told_to_reopen_its_log_it_does_each_time_and_goes_on() -> None:
    async def use(gunicorn: Gunicorn, task: asyncio.Task[None]) -> None:
        for times in (1, 2):
            signal.raise_signal(signal.SIGUSR1)
            await goes_on(gunicorn, task)
            assert gunicorn.reopened == times
        signal.raise_signal(signal.SIGINT)

    with_server(use)


def lose_the_master(gunicorn: Gunicorn) -> None:
    gunicorn.ppid = -1


ENDS: dict[str, Callable[[Gunicorn], None]] = {
    "SIGINT": lambda _: signal.raise_signal(signal.SIGINT),
    "SIGQUIT": lambda _: signal.raise_signal(signal.SIGQUIT),
    "the end of its master": lose_the_master,
}


@pytest.mark.parametrize("drains", [False, True], ids=["", "while it drains"])
@pytest.mark.parametrize("end", ENDS)
def test_what_ends_it_without_a_drain(end: str, drains: bool, said: Said) -> None:
    async def use(gunicorn: Gunicorn, task: asyncio.Task[None]) -> None:
        if drains:
            signal.raise_signal(signal.SIGTERM)
            await goes_on(gunicorn, task)
        ENDS[end](gunicorn)

    with_server(use)
    events = [line["event"] for line in said()]
    assert ("master_gone" in events) == (end == "the end of its master")


def test_one_that_hangs_ends_as_gunicorn_tells_it_to() -> None:
    aborted: list[object] = []
    config = Config()
    config.set("worker_abort", aborted.append)
    own = LoopWorker(1, os.getppid(), [], None, 0, config, None)
    before = {each: signal.getsignal(each) for each in LoopWorker.SIGNALS}
    try:
        own.init_signals()
        assert callable(signal.getsignal(signal.SIGABRT)), "else it would end this process"
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGABRT)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        own.tmp.close()
    assert (ended.value.code, aborted) == (1, [own])
