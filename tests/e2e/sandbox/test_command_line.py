"""The commands that drive a running sandbox."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TYPE = "identity.verification_session"


def command(sandbox: Any, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "stripe_identity_sandbox", *words, "--url", sandbox.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_json(sandbox: Any, *words: str) -> Any:
    return json.loads(command(sandbox, *words, "--json"))


@pytest.mark.parametrize(
    ("event", "on_the_way"),
    [
        ("created", ["created"]),
        ("processing", ["created", "processing"]),
        ("verified", ["created", "processing", "verified"]),
        ("requires_input", ["created", "processing", "requires_input"]),
        ("canceled", ["created", "canceled"]),
        ("redacted", ["created", "processing", "verified", "redacted"]),
    ],
)
def test_trigger(sandbox: Any, event: str, on_the_way: list[str]) -> None:
    result = as_json(sandbox, "trigger", event)
    assert [made["type"] for made in result["events"]] == [f"{TYPE}.{name}" for name in on_the_way]
    retrieved = sandbox.client().v1.events.retrieve(result["events"][-1]["id"])
    assert retrieved.data.object["id"] == result["session"]


def test_one_session_by_hand(sandbox: Any) -> None:
    session = as_json(
        sandbox, "create", "--selfie", "--id-number", "--metadata", "user=42",
        "--return-url", "https://app.example",
    )  # fmt: skip
    assert session["metadata"] == {"user": "42"}
    assert session["options"]["document"] == {
        "require_matching_selfie": True,
        "require_id_number": True,
    }
    failed = command(sandbox, "submit", session["id"], "selfie_manipulated")
    assert "last_error: selfie_manipulated" in failed
    assert "processing" in command(sandbox, "submit", session["id"], "--hold")
    assert "verified" in command(sandbox, "complete", session["id"])
    (event, *_) = sandbox.client().v1.events.list()
    assert as_json(sandbox, "resend", event.id) == []
    before = sandbox.control("GET", "clock")["ahead"]
    assert as_json(sandbox, "advance", "2m")["ahead"] == before + 120


def test_mistakes_are_explained(sandbox: Any) -> None:
    for words, why in (
        (["submit", "vs_x", "--url", sandbox.url], "No such VerificationSession: 'vs_x'"),
        (["advance", "soon"], "is no time"),
        (["create", "--url", "nobody"], "is no address"),
        (["create", "--url", "http://127.0.0.1:9"], "stripe-identity-sandbox serve"),
        (["serve", "--deliver-to", "http://127.0.0.1:9"], "--deliver-to and --secret go together"),
        # What is empty is not left out.
        (["create", "--return-url", "", "--url", sandbox.url], "cannot be unset"),
        (["serve", "--deliver-to", "http://127.0.0.1:9", "--secret", ""], "go together"),
        (["serve", "--deliver-thin-to", "http://127.0.0.1:9", "--thin-secret", ""], "go together"),
        (["serve", "--port", "0", "--state", ""], "'--state'"),
        (["serve", "--port", "0", "--host", ""], "'--host'"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "stripe_identity_sandbox", *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode != 0
        assert why in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "option", "what_to_do"),
    [
        (["--host", "nobody.invalid"], "--host", "try 127.0.0.1"),
        (["--host", "a..b"], "--host", "try 127.0.0.1"),
        (["--host", "192.0.2.1"], "--host", "no address of this machine"),
        (["--port", "TAKEN"], "--port", "choose another one; 0 takes any"),
    ],
)
def test_where_it_cannot_listen_is_said_at_once(
    sandbox: Any, words: list[str], option: str, what_to_do: str
) -> None:
    taken = sandbox.url.rpartition(":")[2]
    words = [taken if word == "TAKEN" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "stripe_identity_sandbox", "serve", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert f"Invalid value for '{option}'" in done.stderr
    assert what_to_do in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scenario_is_played_by_the_clock(run: Any, tmp_path: Path) -> None:
    sandbox = run()
    file = tmp_path / "scenario.yaml"
    file.write_text(
        "sessions: 3\nevery: 1m\nlives:\n"
        "  - life: created, 3s, document_expired, 1h, processing, 5s, verified, 4d, redacted\n"
        "faults: [{kind: slow, route: GET /v1/nothing}]\n"
    )
    words = ["play", str(file), "--at-once", "--json", "--url", sandbox.url]
    done = subprocess.run(
        [sys.executable, "-m", "stripe_identity_sandbox", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)["sessions"]
    events = sandbox.client().v1.events.list({"limit": 100}).data[::-1]
    for id_ in played:
        mine = [event for event in events if event.data.object["id"] == id_]
        assert [event.type.rpartition(".")[2] for event in mine] == [
            *("created", "processing", "requires_input", "processing", "verified", "redacted")
        ]
        assert 3600 + 8 <= mine[4].created - mine[0].created <= 3600 + 8 + 50
    assert sandbox.control("GET", "faults") == []
    file.write_text("lives: []")
    refused = subprocess.run(
        [sys.executable, "-m", "stripe_identity_sandbox", *words], capture_output=True, check=False
    )
    assert refused.returncode == 1
    assert b"length >= 1" in refused.stderr


def test_zero_is_a_number_to_every_option_that_takes_one(
    run: Any, listener: Any, tmp_path: Path
) -> None:
    # unit/sandbox/test_command_line.py reads that there are no others. `run` gives each sandbox
    # the port 0.
    sandbox = run(
        *("--deliver-to", listener.url, "--secret", "whsec_x", "--retries", "live"),
        *("--retry-after-scale", "0", "--redaction-time", "0"),
    )
    assert not sandbox.url.endswith(":12111")
    listener.answer(*[500] * 9)
    id_ = as_json(sandbox, "create")["id"]
    first, *others = [listener.next() for _ in range(10)]
    # Stripe's three days are four minutes by default.
    assert others[-1].time - first.time < 60
    assert as_json(sandbox, "submit", id_, "--delay", "0")["status"] == "verified"
    redacted = sandbox.client().v1.identity.verification_sessions.redact(id_)
    assert redacted.redaction.status == "redacted"
    before = sandbox.control("GET", "clock")["ahead"]
    assert as_json(sandbox, "advance", "0")["ahead"] == before

    def lives(seed: int, *words: str) -> list[str]:
        """What becomes of the sessions of a scenario with this seed."""
        file = tmp_path / "scenario.yaml"
        life = "lives: [{life: created}, {life: 'created, canceled'}]"
        file.write_text(f"sessions: 20\nseed: {seed}\n{life}\n")
        played = as_json(sandbox, "play", str(file), *words)["sessions"]
        sessions = sandbox.client().v1.identity.verification_sessions
        return [sessions.retrieve(one).status for one in played]

    assert lives(7, "--seed", "0") == lives(0) != lives(7)
