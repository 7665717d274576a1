"""The life of a plugin: what it is called for besides events, and what it may rely on."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from identity_webhooks import Dead, Discard, Retry, Verification, on, on_dead, on_start, on_stop
from identity_webhooks.event import Event
from service.inbox import AcceptResult, Inbox, Progress
from service.settings import Settings
from tests.conftest import wait_until
from workers import hooks, plugins
from workers.jobs import Processor
from workers.router import Failed, Router

PLUGIN = """
import os, threading, time
from pathlib import Path
from identity_webhooks import Verification, on, on_start, on_stop

LIFE = Path(os.environ["LIFE"])
state = threading.local()
def note(word: str) -> None:
    with LIFE.open("a") as file:
        file.write(f"{word} {os.getpid()}\\n")

note("imported")

@on_start
def start() -> None:
    thread = threading.Thread(target=note, args=["thread"], daemon=True)
    thread.start()
    thread.join()
    note("start")
    if os.environ.get("LATE"):
        import late
    if os.environ.get("FAIL"):
        raise RuntimeError("no database at postgresql://u:secret@h")

@on("verified", own_process=bool(os.environ.get("OWN")))
def handle(v: Verification) -> None:
    note("handle")

@on_stop
def stop() -> None:
    time.sleep(float(os.environ.get("STOP_TAKES", 0)))
    note("stop")
"""
BESIDE = """
from identity_webhooks import on, on_start, on_stop
from living import note

@on("canceled")
def idle(v): ...

@on_start
def start() -> None:
    note("beside_start")

@on_stop
def stop() -> None:
    note("beside_stop")
"""
Life = Callable[..., list[list[str]]]


@pytest.fixture
def worker(server, redis, sandbox, processes, tmp_path) -> Callable[..., Any]:
    """Start a worker with the plugin; its process, its log, and what the plugin wrote."""
    (tmp_path / "living.py").write_text(PLUGIN)
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "late.py").write_text("from identity_webhooks import on\n@on('*')\ndef f(v): ...\n")
    life = tmp_path / "life"

    def worker(*arguments: str, **extra: str) -> tuple[Any, Any, Callable[[], list[list[str]]]]:
        env = {
            "REDIS_URL": server.url,
            "STRIPE_API_KEY": "sk_test_workers",
            "STRIPE_API_BASE": sandbox.url,
            "HANDLERS": "living",
            "PYTHONPATH": str(tmp_path),
            "LIFE": str(life),
        }
        process, log = processes.python("-m", "workers", *arguments, env=env | extra)

        def lines() -> list[list[str]]:
            return [line.split() for line in life.read_text().splitlines()] if life.exists() else []

        return process, log, lines

    return worker


def accept(redis, sandbox) -> None:
    session = sandbox.session("verified")
    event = Event("evt_1", "verified", "snapshot", session.id, 1_790_000_000, livemode=False)
    assert Inbox(redis).accept(event) is AcceptResult.NEW


def test_start_and_stop_are_called_in_the_process_that_runs_handlers(
    worker, redis, sandbox
) -> None:
    # The periodic process would take in the sandbox's own event of the session, too.
    process, log, life = worker("--no-periodic")
    accept(redis, sandbox)
    wait_until(lambda: "event_settled" in log.read_text())
    process.terminate()
    assert process.wait(120) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    loaded = [line for line in lines if line["event"] == "plugin_loaded"]
    assert [(line["plugin"], line["origin"], line["running"]) for line in loaded] == [
        ("audit", "file workers.handlers.audit", ["log_event"]),
        ("living", "HANDLERS living", ["handle", "start", "stop"]),
    ]
    words = [word for word, _ in life()]
    assert words == ["imported", "thread", "start", "handle", "stop"]
    (child,) = {pid for word, pid in life() if word != "imported"}
    assert child != life()[0][1] == str(process.pid)


def test_a_process_of_its_own_calls_them_too_and_those_of_no_other_plugin(
    worker, redis, sandbox
) -> None:
    # It takes longer than until the process sees that the worker is gone.
    process, _, life = worker(OWN="1", HANDLERS="beside,living", STOP_TAKES="1")
    accept(redis, sandbox)
    # Its own event: periodic takes others in that the sandbox has, and they are settled sooner.
    wait_until(lambda: "handle" in [word for word, _ in life()])
    own = next(pid for word, pid in life() if word == "handle")
    assert ["start", own] in life()
    process.terminate()
    assert process.wait(120) == 0
    wait_until(lambda: ["stop", own] in life())
    (child,) = {pid for word, pid in life() if word == "beside_start"}
    assert child != own, "what it opens is opened once"
    # In the process that runs all handlers, the last plugin stops first.
    stops = [word for word, pid in life() if pid == child and word.endswith("stop")]
    assert stops == ["stop", "beside_stop"]


def test_a_worker_that_starts_says_which_handlers_it_has(worker, redis) -> None:
    """So that one can be replayed that no event was handled by yet."""
    process, log, _ = worker(HANDLERS="beside,living")
    wait_until(lambda: "worker_ready" in log.read_text())
    handlers = {"audit.log_event", "beside.idle", "living.handle"}
    assert {name.decode() for name in redis.hkeys("iw:handlers")} == handlers
    process.terminate()
    assert process.wait(120) == 0


def test_a_start_that_fails_runs_no_event_and_is_tried_again(worker, redis, sandbox) -> None:
    process, log, life = worker(FAIL="1")
    accept(redis, sandbox)
    wait_until(lambda: [word for word, _ in life()].count("start") >= 2)
    process.terminate()
    process.wait(120)
    assert not {"handle", "stop"} & {word for word, _ in life()}
    said = [json.loads(line) for line in log.read_text().splitlines()]
    failed = next(line for line in said if line["event"] == "worker_failed")
    assert failed["error"] == "RuntimeError"
    assert failed["where"].endswith(" start")


@pytest.mark.parametrize("own", [{}, {"OWN": "1"}], ids=["worker", "own process"])
def test_a_start_that_imports_handlers_fails_and_says_what_to_write(
    own, worker, redis, sandbox
) -> None:
    """Nobody would collect them any more."""
    process, log, life = worker(LATE="1", **own)
    accept(redis, sandbox)
    wait_until(lambda: "hook_failed" in log.read_text())
    process.terminate()
    process.wait(120)
    assert "handle" not in {word for word, _ in life()}
    said = [json.loads(line) for line in log.read_text().splitlines()]
    failed = next(line for line in said if line["event"] == "hook_failed")
    assert failed["reason"] == (
        "late.py:2 marks a function when the handlers are collected already, and it"
        " would never run: name late in HANDLERS or by an entry point"
    )


class TestDead:
    def settle(self, desk, handler, *more) -> list[Dead]:
        told: list[Dead] = []

        @on_dead
        def alarm(dead: Dead) -> None:
            told.append(dead)

        event = desk.accept("verified", desk.sandbox.session("verified"))
        desk.settle(desk.processor(handler, *more, alarm), event)
        return told

    def test_is_told_with_the_reason_and_the_key(self, desk) -> None:
        @on("verified", retries=1)
        def failing(v: Verification) -> None:
            assert v.last_attempt is (v.attempt == 2)
            raise Retry("ledger is closed")

        (dead,) = self.settle(desk, failing)
        assert (dead.handler, dead.attempts) == ("p.failing", 2)
        assert dead.reason == "retry: ledger is closed"
        assert dead.idempotency_key == f"{dead.event.key}:p.failing"

    @pytest.mark.parametrize("account", [None, "acct_1"])
    @pytest.mark.parametrize("form", ["snapshot", "thin"])
    def test_has_the_key_that_the_handler_had(self, form, account, desk) -> None:
        """What was done under it can be undone: a thin event has that of its snapshot event."""
        keys: list[str] = []

        @on("*")
        def failing(v: Verification) -> None:
            keys.append(v.idempotency_key)
            raise Discard("no such user")

        @on_dead
        def alarm(dead: Dead) -> None:
            keys.append(dead.idempotency_key)

        session, thin_id = desk.sandbox.session_and_thin_event()
        named = {"id": thin_id} if form == "thin" else {}
        if account:
            session = desk.sandbox.session(account=account)
        event = desk.accept("created", session, form=form, account=account, **named)
        if form == "thin" and account:  # its other form is known
            (claim,) = desk.processor(failing, alarm).claim()
            desk.inbox.link(claim, f"{account}-evt_snapshot")
            desk.inbox.release(claim, 0, "x")
        desk.settle(desk.processor(failing, alarm), event)
        had, told = keys
        assert told == had
        assert (event.key in had) == (form == "snapshot")

    def test_is_told_before_the_event_is_settled(self, desk) -> None:
        """So that it is told again when the process dies there."""
        states = []

        @on("verified")
        def failing(v: Verification) -> None:
            raise Discard("no such user")

        @on_dead
        def look(dead: Dead) -> None:
            states.append(desk.record(dead.event).state)

        self.settle(desk, failing, look)
        assert states == ["pending"]

    def test_is_not_told_of_what_was_done(self, desk) -> None:
        @on("verified")
        def fine(v: Verification) -> None: ...

        assert self.settle(desk, fine) == []

    @pytest.mark.parametrize("behaviour", ["raises", "hangs"])
    def test_one_that_fails_holds_nothing_up(self, behaviour, desk, monkeypatch) -> None:
        go_on = threading.Event()
        if behaviour == "hangs":
            monkeypatch.setattr(hooks, "DEAD_LIMIT", 0.1)

        @on("verified")
        def failing(v: Verification) -> None:
            raise Discard("no such user")

        @on_dead
        def bad(dead: Dead) -> None:
            if behaviour == "raises":
                raise ValueError
            go_on.wait(120)

        told = self.settle(desk, failing, bad)
        wait_until(lambda: told)  # the time may be over before its thread runs
        assert len(told) == 1, "the next one is called all the same"
        go_on.set()
        name = "hook_failed" if behaviour == "raises" else "hook_hangs"
        assert desk.logged(name)[0]["handler"] == "p.bad"


TWINS = """
from identity_webhooks import Discard, Verification, on, on_dead, on_start

TOLD = []

@on("verified")
def {name}(v: Verification) -> None:
    raise Discard("no such user")

@on_start
def start() -> None:
    TOLD.append("{name} starts")

@on_dead
def alarm(dead) -> None:
    TOLD.append(dead.handler)
"""


def test_plugins_of_one_name_have_hooks_of_their_own(tmp_path, monkeypatch, desk, request) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "shop.py").write_text(TWINS.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    router = plugins.load(Settings(audit=False, handlers=("one.shop", "two.shop")))
    assert [handler.name for handler in router.handlers] == ["shop.one", "shop.two"]
    told = {name: sys.modules[f"{name}.shop"].TOLD for name in ("one", "two")}
    processor = desk.add(Processor(desk.inbox, router, desk.sandbox.api(), desk.metrics, desk.stop))
    event = desk.accept("verified", desk.sandbox.session("verified"))
    assert desk.settle(processor, event).state == "dead"
    assert told == {"one": ["shop.one"], "two": ["shop.two"]}
    # As `own_process=True` and `run` have them: those of one plugin.
    hooks.Hooks(router, {router.handlers[1].plugin}).start()
    assert told == {"one": ["shop.one"], "two": ["shop.two", "two starts"]}
    # A handler that is no longer there has left its name alone.
    claim = SimpleNamespace(event=event, identity="k")
    hooks.Hooks(router).tell_dead(claim, "shop.gone", Progress("dead", 1))
    assert told["one"][-1] == told["two"][-1] == "shop.gone"
    for name in ("one", "one.shop", "two", "two.shop"):
        del sys.modules[name]


class TestSignals:
    MISUSES: ClassVar = {
        "ignores SIGTERM": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        "handles SIGINT": lambda: signal.signal(signal.SIGINT, lambda *_: None),
        "takes SIGCHLD": lambda: signal.signal(signal.SIGCHLD, lambda *_: None),
        "blocks SIGTERM": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}),
    }

    @pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
    def test_what_a_start_does_about_them_is_put_right(self, misuse, desk) -> None:
        before = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())

        @on("verified")
        def handle(v: Verification) -> None: ...

        @on_start
        def start() -> None:
            misuse()

        router = Router()
        router.add(type("Plugin", (), {"h": staticmethod(handle), "s": staticmethod(start)})(), "p")
        hooks.Hooks(router).start()
        now = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert now == before
        (said,) = desk.logged("signals_restored")
        assert said["handler"] == "p.start"
        assert said["faults"][0].split(" SIG")[0] in {"sets what is done about", "blocks"}

    def test_one_that_does_nothing_about_them_is_let_be(self, desk) -> None:
        router = Router()
        mark = on("verified")(lambda v: None)
        mark.__name__ = "handle"
        router.add(type("Plugin", (), {"h": staticmethod(mark)})(), "p")
        hooks.Hooks(router).start()
        assert desk.logged("signals_restored") == []


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_stop_that_fails_keeps_no_other_from_being_called(error, desk) -> None:
    called = []

    @on("verified")
    def handle(v: Verification) -> None: ...

    @on_stop
    def first() -> None:
        called.append("first")

    @on_stop
    def last() -> None:
        called.append("last")
        raise error

    router = Router()
    members = {each.__name__: staticmethod(each) for each in (handle, first, last)}
    router.add(type("Plugin", (), members)(), "p")
    hooks.Hooks(router).stop()
    assert called == ["last", "first"]
    (said,) = desk.logged("hook_failed")
    assert said["handler"] == "p.last"


@pytest.mark.parametrize("moment", [on_start, on_stop, on_dead], ids=lambda m: m.__name__)
def test_a_hook_that_returns_something_has_failed(moment, desk) -> None:
    """Such as a coroutine, of which nothing ran."""

    async def later() -> None: ...

    @on("verified")
    def handle(v: Verification) -> None: ...

    hook = moment((lambda dead: later()) if moment is on_dead else lambda: later())  # noqa: PLW0108
    hook.__name__ = "hook"
    router = Router()
    router.add(type("Plugin", (), {"h": staticmethod(handle), "k": staticmethod(hook)})(), "p")
    called = hooks.Hooks(router)
    if moment is on_start:
        with pytest.raises(Failed, match="nothing of it ran"):
            called.start()
    elif moment is on_stop:
        called.stop()
    else:
        event = desk.accept("verified", desk.sandbox.session("verified"))
        called.tell_dead(SimpleNamespace(event=event, identity="k"), "p.h", Progress("dead", 1))
    (said,) = desk.logged("hook_failed")
    assert said["reason"].startswith("returned a coroutine, and nothing of it ran")


CHANGES: dict[str, Callable[[Verification], None]] = {
    "its status": lambda v: setattr(v.session, "status", "canceled"),
    "its metadata": lambda v: v.session.metadata.__setitem__("user_id", "changed"),
    "an output": lambda v: setattr(v.session.verified_outputs, "first_name", "changed"),
    "its report": lambda v: setattr(v.report, "status", "changed"),
    "what is in its report": lambda v: setattr(v.report.document, "status", "changed"),
    "the report in the session": lambda v: setattr(
        v.session.last_verification_report.document, "status", "changed"
    ),
}


@pytest.mark.parametrize("needs", [(), ("verified_outputs.dob",)], ids=["beside", "needy"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_one_handler_changes_the_next_does_not_see(change, needs, desk) -> None:
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []

    @on("verified")
    def first(v: Verification) -> None:
        seen.append((v.session.to_dict(), v.report.to_dict()))
        CHANGES[change](v)
        assert (v.session.to_dict(), v.report.to_dict()) != seen[0]
        assert type(v.session).__name__ == "VerificationSession"
        assert type(v.report).__name__ == "VerificationReport"

    @on("verified", needs=needs)
    def second(v: Verification) -> None:
        seen.append((v.session.to_dict(), v.report.to_dict()))

    event = desk.accept("verified", desk.sandbox.session("verified", metadata={"user_id": "u-1"}))
    processor = desk.processor(first, second, restricted_key="rk_test_x")
    assert desk.settle(processor, event).state == "done"
    before, after = seen
    assert before == after
