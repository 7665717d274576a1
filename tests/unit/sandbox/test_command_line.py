"""The commands against an application without a socket."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import click
import pytest
import urllib3
from click.testing import CliRunner, Result

from stripe_identity_sandbox.__main__ import Duration, main

from .conftest import SESSIONS, Api
from .test_store import UNUSABLE


@pytest.fixture
def run(api: Api, monkeypatch: pytest.MonkeyPatch) -> Any:
    def request(method: str, url: str, **given: Any) -> urllib3.HTTPResponse:
        path = url.removeprefix("http://sandbox.example")
        body = {"json": given["json"]} if given.get("json") is not None else {}
        if "body" in given:
            body = {"data": given["body"]}
        answer = api.client.open(path, method=method, headers=given["headers"], **body)
        return urllib3.HTTPResponse(answer.data, status=answer.status_code)

    monkeypatch.setattr(urllib3, "request", request)

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--url", "http://sandbox.example/"])

    return invoke


@pytest.mark.parametrize(
    ("event", "count"),
    [
        ("created", 1),
        ("processing", 2),
        ("verified", 3),
        ("requires_input", 3),
        ("canceled", 2),
        ("redacted", 4),
        ("identity.verification_session.verified", 3),
    ],
)
def test_trigger(run: Any, api: Api, event: str, count: int) -> None:
    result = run("trigger", event)
    assert result.exit_code == 0, result.output
    assert result.output.count("evt_") == count == len(api.world.events.by_id)
    assert list(api.world.events.by_id.values())[-1].type.endswith(event)


def test_a_session_by_hand(run: Any, api: Api) -> None:
    made = run("create", "--selfie", "--id-number", "--metadata", "a=b", "--return-url", "http://x")
    assert "requires_input" in made.output
    assert "/start/test_" in made.output
    (id_,) = api.world.sessions
    assert "last_error: document_expired" in run("submit", id_, "document_expired").output
    assert json.loads(run("submit", id_, "--hold", "--json").output)["status"] == "processing"
    assert "verified" in run("complete", id_).output
    assert run("advance", "90").output.startswith("It is 2026-11-18T11:08:10+00:00, 90 s ahead")
    assert run("resend", next(iter(api.world.events.by_id))).exit_code == 0
    api.control(f"sessions/{id_}/redact")
    assert "redaction: redacted" in run("complete", id_).output


def test_what_a_command_is_given_is_passed_on(run: Any, api: Api) -> None:
    assert run("trigger", "requires_input", "--outcome", "document_expired").exit_code == 0
    (triggered,) = api.world.sessions.values()
    assert (triggered.last_error or {})["code"] == "document_expired"
    run("create", "--type", "id_number", "--metadata", "a=b=c", "--metadata", "d=")
    made = list(api.world.sessions.values())[-1]
    assert (made.type, made.metadata) == ("id_number", {"a": "b=c"})
    assert "processing" in run("submit", made.id, "--delay", "90").output
    run("advance", "89")
    assert made.status == "processing"
    run("advance", "1")
    assert made.status == "verified"


def play(run: Any, tmp_path: Path, text: str) -> Result:
    file = tmp_path / "scenario.yaml"
    file.write_text(text)
    result = run("play", str(file), "--at-once")
    assert isinstance(result, Result)
    return result


def test_a_life_is_led_to_its_end_or_not_begun(run: Any, api: Api, tmp_path: Path) -> None:
    words = ("processing", "canceled", "redacted", "verified", "abandoned")
    led = 0
    for life in itertools.product(words, repeat=2):
        before = len(api.world.sessions)
        result = play(run, tmp_path, f"lives: [{{life: 'created, {', '.join(life)}'}}]")
        if result.exit_code:
            assert "cannot be led" in result.output
            assert len(api.world.sessions) == before, life
        else:
            led += 1
    assert 5 < led < 20


def test_a_wrong_fault_sets_none(run: Any, api: Api, tmp_path: Path) -> None:
    life = "lives: [{life: created}]"
    result = play(run, tmp_path, f"{life}\nfaults: [{{kind: drop}}, {{kind: drop, rate: 7}}]")
    assert result.exit_code == 1
    assert api.client.get("/_sandbox/faults").json == []
    assert not api.world.sessions


def test_faults_of_the_api_do_not_strike_the_one_who_sets_them(
    run: Any, api: Api, tmp_path: Path
) -> None:
    text = "lives: [{life: 'created, verified'}]\nsessions: 3\nfaults: [{kind: error}]"
    assert play(run, tmp_path, text).exit_code == 0
    assert {one.status for one in api.world.sessions.values()} == {"verified"}
    assert api.client.get("/_sandbox/faults").json == []
    api.control("faults", kind="error")
    assert run("create").exit_code == 0
    assert api.get(SESSIONS).status_code == 500


@pytest.mark.parametrize("version", ["banana", "2026-10-28", ""])
def test_a_version_that_events_cannot_have(version: str) -> None:
    answer = CliRunner().invoke(main, ["serve", "--api-version", version])
    assert answer.exit_code == 2
    assert "Invalid value for '--api-version'" in answer.output


def test_mistakes(run: Any) -> None:
    assert "No such VerificationSession" in run("submit", "vs_x").output
    for long in ("soon", "400d", "-4", "nan"):
        assert "no time up to a year" in run("advance", "--", long).output
    for pair in ("a", "=b", ""):
        assert "is not KEY=VALUE" in run("create", "--metadata", pair).output
    assert run("trigger", "nonsense").exit_code == 2
    both = CliRunner().invoke(main, ["serve", "--deliver-to", "http://x"])
    assert "--deliver-to and --secret go together" in both.output


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"1", b'{"detail": "x"}', b'{"error": "x"}']
)
def test_another_server_than_a_sandbox(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object, **__: object) -> urllib3.HTTPResponse:
        return urllib3.HTTPResponse(io.BytesIO(body), status=404)

    monkeypatch.setattr(urllib3, "request", answer)
    result = CliRunner().invoke(main, ["create", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "No sandbox answers at http://127.0.0.1:9; start one with" in result.output


@pytest.mark.parametrize("option", ["--deliver-to", "--deliver-thin-to"])
@pytest.mark.parametrize(
    "value", ["foo", "", "127.0.0.1:8000", "ftp://x.example", "http://", "http://a b/"]
)
def test_an_address_that_is_none(option: str, value: str) -> None:
    secret = "--thin-secret" if "thin" in option else "--secret"
    answer = CliRunner().invoke(main, ["serve", option, value, secret, "whsec_x"])
    assert answer.exit_code == 2
    assert f"Invalid value for '{option}'" in answer.output


@pytest.mark.parametrize("value", ["99999", "65536", "-1", "x"])
def test_a_port_that_there_is_not(value: str) -> None:
    answer = CliRunner().invoke(main, ["serve", "--port", value])
    assert answer.exit_code == 2
    assert "Invalid value for '--port'" in answer.output


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
def test_a_state_file_that_cannot_be_used(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    make(path)
    answer = CliRunner().invoke(main, ["serve", "--port", "0", "--state", str(path)])
    assert answer.exit_code == 2
    assert "Invalid value for '--state'" in answer.output
    assert "Traceback" not in answer.output


@pytest.mark.parametrize("option", ["--redaction-time", "--retry-after-scale"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "x"])
def test_a_number_that_no_clock_can_count(option: str, value: str) -> None:
    answer = CliRunner().invoke(main, ["serve", option, value])
    assert answer.exit_code == 2
    assert f"Invalid value for '{option}'" in answer.output


def test_the_options_that_take_a_number_are_those_tested_with_zero() -> None:
    """By e2e/sandbox/test_command_line.py: who adds one adds it there."""
    numbers = (click.types.IntParamType, click.types.FloatParamType, Duration)
    found = {
        (name, parameter.name)
        for name, command in main.commands.items()
        for parameter in command.params
        if isinstance(parameter.type, numbers)
    }
    assert found == {
        *(("serve", "port"), ("serve", "retry_after_scale"), ("serve", "redaction_time")),
        *(("submit", "delay"), ("advance", "duration"), ("play", "seed")),
    }
