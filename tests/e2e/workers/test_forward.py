"""The built-in handler `forward`, and a receiver in Node that verifies with the npm library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SECRET = "whsec_Rm9yd2FyZFNlY3JldE9mMzJCeXRlczEyMzQ1Njc4"
OTHER = "whsec_T3RoZXJTZWNyZXRPZjMyQnl0ZXMxMjM0NTY3ODkw"
LIBRARY = "standardwebhooks@1"


@pytest.fixture
def receiver(node_package, processes, free_port, wait_until):
    """Start a receiver that knows this secret; its URL and what it says of each message."""

    def start(secret: str) -> tuple[str, Any]:
        modules, port = node_package(LIBRARY) / "node_modules", str(free_port())
        script = Path(__file__).with_name("receiver.mjs")
        _, log = processes.start("node", script, modules, port, secret)
        wait_until(lambda: log.read_text().startswith("{}\n"))
        lines = lambda: [json.loads(line) for line in log.read_text().splitlines()[1:]]  # noqa: E731
        return f"http://127.0.0.1:{port}/identity", lines

    return start


def test_messages_are_verified_and_sent_again_until_they_are_taken(system, receiver) -> None:
    url, messages = receiver(SECRET)
    running = system(FORWARD_TO=url, FORWARD_SECRET=SECRET, FORWARD_PRIVATE="1")
    session = running.verify()
    event = running.settled(session)
    handlers = {handler["name"]: handler for handler in event["handlers"]}
    name = url.removeprefix("http://").removesuffix("/identity").replace(":", "-")
    sent = handlers[f"forward-{name}.send"]
    assert (sent["status"], sent["attempts"]) == ("done", 2)
    about = [each for each in messages() if each["data"]["session"] == session]
    first, second = [each for each in about if each["data"]["outcome"] == "verified"]
    assert (first["again"], second["again"]) == (False, True)
    assert first["id"] == second["id"] == event["id"]
    assert first["type"] == "identity.verification_session.verified"


def test_a_receiver_with_another_secret_refuses(system, receiver, wait_until) -> None:
    url, messages = receiver(OTHER)
    running = system(FORWARD_TO=url, FORWARD_SECRET=SECRET, FORWARD_PRIVATE="1")
    running.verify()
    wait_until(messages)
    assert {each["error"] for each in messages()} == {"No matching signature found"}
    wait_until(lambda: "the receiver answered 400" in running.worker_log())
