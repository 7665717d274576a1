"""`workers.own_process`: the process beside the worker, started for real."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from identity_webhooks import Discard, Retry
from identity_webhooks.testing import verification
from service.settings import Settings
from tests.conftest import CANARY, ROOT, Processes, children, state, wait_until
from workers import own_process, plugins
from workers.own_process import NotRun, OwnProcess
from workers.router import Failed, Handler, place

PLUGIN = """
import os, time
from pathlib import Path
from identity_webhooks import Discard, Retry, on, on_start, on_stop

def note(word):
    with Path(os.environ["EFFECTS"]).open("a") as effects:
        effects.write(f"{word} {os.getpid()}\\n")

if os.environ.get("FAILS") == "import":
    os._exit(0)

@on_start
def start():
    if os.environ.get("FAILS") == "on_start":
        os._exit(95)

@on_stop
def stop():
    note("stopped")

@on("verified", own_process=True, timeout=20)
def handle(v):
    note("ran")
    words = v.metadata.get("do", "").split()
    if words[:1] == ["exit"]:
        os._exit(int(words[1]))
    if words[:1] == ["kill"]:
        os.kill(os.getpid(), int(words[1]))
    if words[:1] == ["sleep"]:
        time.sleep(float(words[1]))
    if words[:1] == ["raise"]:
        raise eval(" ".join(words[1:]))
    if words == ["leave", "a", "program"]:
        os.system("sleep 30 >&- 2>&- & echo $! > $EFFECTS.left")
        os._exit(3)
    if words == ["leave", "a", "copy"]:
        if left := os.fork():
            Path(os.environ["EFFECTS"] + ".left").write_text(str(left))
            os._exit(3)
        time.sleep(30)
        os._exit(0)
"""


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    return tmp_path / "effects"


@pytest.fixture
def handler(
    redis, server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, effects: Path
) -> Handler:
    """The handler of the plugin above, for this process and for those that it starts."""
    (tmp_path / "besides.py").write_text(PLUGIN)
    given = {
        "HANDLERS": "besides",
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "EFFECTS": str(effects),
        "REDIS_URL": server.url,
        "STRIPE_API_KEY": f"sk_test_{CANARY}{'0' * 20}",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(tmp_path)
    router = plugins.load(Settings.load("worker"))
    (handler,) = (each for each in router.handlers if each.name == "besides.handle")
    return handler


@pytest.fixture
def started() -> Iterator[list[OwnProcess]]:
    started: list[OwnProcess] = []
    yield started
    for each in started:
        if each._process:
            each._end()


@pytest.fixture
def beside(handler: Handler, started: list[OwnProcess]) -> Callable[..., OwnProcess]:
    def make(idle: float | None = None) -> OwnProcess:
        started.append(OwnProcess([handler], idle=idle))
        return started[-1]

    return make


def run(own: OwnProcess, handler: Handler, do: str = "") -> None:
    with own.turn() as is_its_turn:
        assert is_its_turn
        own.run(handler, verification("verified", metadata={"do": do}), [])


def pids(effects: Path, word: str = "ran") -> list[str]:
    lines = effects.read_text().splitlines() if effects.exists() else []
    return [line.split()[1] for line in lines if line.startswith(word)]


@pytest.mark.walk
def test_one_that_is_idle_ends_and_is_started_again(handler, beside, effects) -> None:
    """Whenever it is asked: also at the very moment at which it ends."""
    own, idle, runs = beside(0.5), 0.5, 12
    for number in range(runs):
        run(own, handler)
        time.sleep(idle - 0.03 + number * 0.01)
    ran = pids(effects)
    assert len(ran) == runs, "each ran once"
    assert 1 < len(set(ran)) <= runs
    wait_until(lambda: set(pids(effects, "stopped")) == set(ran))


@pytest.mark.parametrize("way", ["idle", "killed"])
def test_one_that_has_ended_leaves_no_zombie(handler, beside, effects, way) -> None:
    own = beside(0.1 if way == "idle" else None)
    run(own, handler)
    (pid,) = pids(effects)
    if way == "killed":
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: not Path("/proc", pid).exists())
    run(own, handler)
    assert len(set(pids(effects))) == 2


@pytest.mark.sample(3)
@pytest.mark.parametrize("code", [0, 1, os.EX_SOFTWARE, os.EX_TEMPFAIL, 95, 128 + signal.SIGTERM])
def test_whatever_a_handler_ends_its_process_with_it_died(handler, beside, effects, code) -> None:
    """No exit code means that it did not run: it runs once."""
    with pytest.raises(Failed, match=rf"^its process died \(exit code {code}\)$"):
        run(beside(30), handler, f"exit {code}")
    assert len(pids(effects)) == 1


ANSWERS = [
    "",
    "raise Retry('later')",
    "raise Retry('later', delay=3600)",
    "raise Retry('later', delay=0)",
    "raise Discard('never')",
    "raise ValueError('of whom')",
    "raise SystemExit(3)",
]


@pytest.mark.parametrize("do", ANSWERS)
def test_what_it_answers_there_is_what_it_would_answer_here(handler, beside, do) -> None:
    def answer(ask: Callable[[], object]) -> tuple[str, str, float | None]:
        try:
            ask()
        except Retry as retry:
            return "retry", retry.reason, retry.delay
        except Discard as discard:
            return "discard", discard.reason, None
        except Failed as failed:
            return "failed", failed.reason, None
        except BaseException as error:  # noqa: BLE001 (what the handler raised, here)
            return "failed", place(error), None
        return "done", "", None

    here = answer(lambda: handler.run(verification("verified", metadata={"do": do})))
    assert answer(lambda: run(beside(), handler, do)) == here


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_and_whichever_signal(handler, beside, effects, number) -> None:
    with pytest.raises(Failed, match=rf"^its process died \(exit code -{int(number)}\)$"):
        run(beside(), handler, f"kill {int(number)}")
    assert len(pids(effects)) == 1


@pytest.mark.parametrize("what", ["program", "copy"])
def test_what_it_leaves_behind_does_not_hide_that_it_died(handler, beside, effects, what) -> None:
    try:
        with pytest.raises(Failed, match="exit code 3"):  # and no timeout
            run(beside(), handler, f"leave a {what}")
    finally:
        os.kill(int(effects.with_name("effects.left").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("timeout", "within", "ends"),
    [(1, 60, True), (20, 2, False)],
    ids=["less than a start has", "more"],
)
def test_a_run_has_the_time_of_its_handler_and_not_that_of_a_start(
    handler, beside, effects, monkeypatch, timeout, within, ends
) -> None:
    own = beside()
    run(own, handler)
    monkeypatch.setattr(own_process, "STARTED_WITHIN", within)
    began, takes = time.monotonic(), 30 if ends else 3
    with pytest.raises(Failed, match="timeout") if ends else nullcontext():
        run(own, replace(handler, timeout=timeout), f"sleep {takes}")
    assert (time.monotonic() < began + takes) == ends
    run(own, handler)
    assert len(set(pids(effects))) == (2 if ends else 1), "it ends with what ran too long"


class TestThatDoesNotStart:
    """The handler did not run, which is told apart from one that failed."""

    @pytest.mark.parametrize(("moment", "code"), [("import", 0), ("on_start", 95)])
    def test_since_the_plugin_fails_there(
        self, handler, beside, effects, monkeypatch, moment, code
    ) -> None:
        monkeypatch.setenv("FAILS", moment)
        with pytest.raises(NotRun, match=rf"did not start \(exit code {code}\)"):
            run(beside(), handler)
        assert pids(effects) == []

    def test_since_no_descriptor_is_left(self, handler, beside, effects) -> None:
        own = beside()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        verification("verified")  # imports what it needs
        os.close(first_free := os.dup(0))  # there may be others between those that are open
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
        try:
            with pytest.raises(NotRun, match=r"did not start \(OSError\)"):
                run(own, handler)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        run(own, handler)
        assert len(pids(effects)) == 1

    def test_since_no_thread_is_left(self, handler, beside, effects, monkeypatch) -> None:
        def fail(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        own = beside()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(NotRun, match="did not start"):
                run(own, handler)
        run(own, handler)
        assert len(pids(effects)) == 1

    def test_or_is_killed_again_and_again_before_it_begins(
        self, handler, beside, effects, monkeypatch
    ) -> None:
        own = beside()
        send = own_process._send

        def kill_first(sock, message) -> None:
            own._process.send_signal(signal.SIGKILL)
            own._process.wait()
            send(sock, message)

        monkeypatch.setattr(own_process, "_send", kill_first)
        with pytest.raises(NotRun, match="ended before the handler began"):
            run(own, handler)
        assert pids(effects) == []


def test_one_that_is_killed_before_it_begins_is_started_again(handler, beside, effects) -> None:
    own = beside()
    run(own, handler)
    own._process.send_signal(signal.SIGSTOP)
    killer = threading.Timer(0.3, own._process.send_signal, [signal.SIGKILL])
    killer.start()
    run(own, handler)
    killer.join()
    assert len(set(pids(effects))) == len(pids(effects)) == 2


KEEPER = """
import os, re, time
from pathlib import Path
import gate
from identity_webhooks import on

if gate.IS_BESIDE and gate.MOMENT == "boot":
    time.sleep(60)

@on("verified", own_process=True, timeout=60)
def keep(v):
    gate.hold("handler")
    re.match("(a+)+$", "a" * 60 + "b")  # keeps the interpreter's lock, for years
"""
WORKER = """
from identity_webhooks.testing import verification
from service.settings import Settings
from workers import plugins
from workers.own_process import OwnProcess

handlers = plugins.load(Settings.load("worker")).handlers
(handler,) = (each for each in handlers if each.name == "keeper.keep")
own = OwnProcess([handler])
with own.turn():
    own.run(handler, verification("verified"), [])
"""


@pytest.mark.parametrize("moment", ["boot", "handler"])
def test_one_that_hangs_ends_with_its_worker(
    server, processes: Processes, tmp_path: Path, moment: str
) -> None:
    """While it imports a plugin, and where its handler keeps the interpreter's lock."""
    (tmp_path / "keeper.py").write_text(KEEPER)
    (tmp_path / "worker.py").write_text(WORKER)
    reached, passed = tmp_path / "reached", tmp_path / "pass"
    env = {
        "HANDLERS": "keeper",
        "PYTHONPATH": f"{ROOT / 'tests/chaos/gates'}:{ROOT}:{tmp_path}",
        "GATE": f"own:{moment}",
        "REACHED": str(reached),
        "PASS": str(passed),
        "REDIS_URL": server.url,
        "STRIPE_API_KEY": f"sk_test_{CANARY}{'0' * 20}",
    }
    worker, _ = processes.python(tmp_path / "worker.py", env=env)
    wait_until(reached.exists)
    (own,) = children(worker.pid)
    if moment == "handler":
        passed.touch()
        time.sleep(0.5)
    worker.kill()
    worker.wait(120)
    passed.touch()
    wait_until(lambda: state(own) == "Z")
