"""Makes one call of one step go wrong. Python imports this first, where this folder is on its path.

KILLPOINT is `<step>:<before|after>:<nth>:<fault>`: at the n-th call of the step in this process,

* `kill`, `term`, `stop`: the process sends itself that signal; one that is stopped is continued by
  another process KILLPOINT_STOPPED_FOR seconds later,
* `cut`: for a second no connection to Redis works, old or new,
* `lose-reply`: before the step, the first reply to what it asks gets lost (redis-py then asks
  again); after it, the step has happened and its caller is told that the connection broke.

It happens once: the file KILLPOINT_FIRED is made, which holds the pid, and whoever finds it there
goes on. KILLPOINT_TIMES shortens lease, horizon and the wait for a busy session by a factor; the
lease by KILLPOINT_LEASE_TIMES where that is given.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.connection import AbstractConnection

from service.inbox import Claim, Pipeline, keys

STEPS = {
    "fetch": ("workers.stripe_api", "StripeApi", "fetch"),
    "handler": ("workers.dispatch", "Dispatcher", "run_one"),
}
"""Steps that are methods. All others are scripts of the inbox, by name."""
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}


class Network:
    """What is wrong with the connections to Redis."""

    cut_until = 0.0

    def __init__(self) -> None:
        # Of the thread that reached the kill point: another's reply would be another step's.
        self.of_this_thread = threading.local()

    def check(self, connection: AbstractConnection) -> None:
        if time.monotonic() < self.cut_until:
            connection.disconnect()
            raise redis.ConnectionError("cut by the kill point")

    def loses_reply(self) -> bool:
        lost = getattr(self.of_this_thread, "lose_next_reply", False)
        self.of_this_thread.lose_next_reply = False
        return lost


network = Network()


def spoil(method: str) -> None:
    """Put the network in front of a method of redis-py's connections."""
    original = getattr(AbstractConnection, method)

    @functools.wraps(original)
    def spoiled(self: AbstractConnection, *args: Any, **kwargs: Any) -> Any:
        network.check(self)
        answer = original(self, *args, **kwargs)
        if method == "read_response" and network.loses_reply():
            self.disconnect()
            raise redis.ConnectionError("the reply was lost by the kill point")
        return answer

    setattr(AbstractConnection, method, spoiled)


def first_to_fire() -> bool:
    try:
        file = os.open(os.environ["KILLPOINT_FIRED"], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    os.write(file, str(os.getpid()).encode())
    os.close(file)
    return True


def fire(step: str, when: str, fault: str) -> None:
    if fault == "stop":
        seconds = os.environ["KILLPOINT_STOPPED_FOR"]
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    if fault in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault])
    elif fault == "cut":
        network.cut_until = time.monotonic() + 1
    elif when == "before":
        network.of_this_thread.lose_next_reply = True
    elif step == "fetch":
        raise importlib.import_module("workers.failures").StripeFailure("unreachable")
    else:
        raise redis.ConnectionError("the reply was lost by the kill point")


def arm(step: str, when: str, nth: int, fault: str) -> None:
    is_script = step not in STEPS
    module, owner_name, name = STEPS.get(step, ("service.inbox.connections", "Connections", "send"))
    owner = getattr(importlib.import_module(module), owner_name)
    original: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count(1)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_script and step not in args[0].names:
            return original(self, *args, **kwargs)
        if when == "before" and next(calls) == nth and first_to_fire():
            fire(step, when, fault)
        answer = original(self, *args, **kwargs)
        # A claim that claimed nothing is not the step.
        counts = step != "claim" or claimed(args[0])
        if when == "after" and counts and next(calls) == nth and first_to_fire():
            fire(step, when, fault)
        return answer

    setattr(owner, name, wrapped)


def arm_link(when: str, nth: int, fault: str) -> None:
    """Arm the step of the web process: accepting, over the connection in its event loop."""
    from service.server.redis_link import RedisLink  # noqa: PLC0415 (only where it is run)

    send, receive = RedisLink.send, RedisLink._receive
    calls = itertools.count(1)
    lose_next_reply = False

    def struck(link: RedisLink) -> None:
        nonlocal lose_next_reply
        if fault in SIGNALS:
            fire("accept", when, fault)
        elif fault == "cut":
            network.cut_until = time.monotonic() + 1
            link._connect_anew(redis.ConnectionError("cut by the kill point"))
        else:
            lose_next_reply = True

    def spoiled_send(self: RedisLink, pipe: Pipeline, done: Callable[[], None]) -> None:
        strikes = "accept" in pipe.names and next(calls) == nth and first_to_fire()

        def spoiled_done() -> None:
            if strikes and when == "after":
                struck(self)
            done()

        send(self, pipe, spoiled_done)
        if strikes and when == "before":
            struck(self)

    def spoiled_receive(self: RedisLink, reply: Any) -> None:
        nonlocal lose_next_reply
        if lose_next_reply:
            lose_next_reply = False
            self._connect_anew(redis.ConnectionError("the reply was lost by the kill point"))
            return
        receive(self, reply)

    RedisLink.send, RedisLink._receive = spoiled_send, spoiled_receive  # type: ignore[method-assign]


def claimed(pipe: Pipeline) -> bool:
    """Whether a pipeline that was sent has claimed an event."""
    replies = zip(pipe.names, pipe._replies, strict=True)
    return any(
        isinstance(each, Claim)
        for name, reply in replies
        if name == "claim"
        for each in reply.result()
    )


def shorten(name: str, factor: str) -> None:
    # Before any other module reads it.
    setattr(keys, name, getattr(keys, name) * float(factor))


times = os.environ.get("KILLPOINT_TIMES", "1")
shorten("HORIZON", times)
shorten("BUSY_DELAY", times)
shorten("LEASE", os.environ.get("KILLPOINT_LEASE_TIMES", times))
if point := os.environ.get("KILLPOINT"):
    named_step, named_when, number, named_fault = point.split(":")
    for spoiled_method in ("connect", "send_packed_command", "read_response"):
        spoil(spoiled_method)
    if named_step == "accept":
        arm_link(named_when, int(number), named_fault)
    else:
        arm(named_step, named_when, int(number), named_fault)
