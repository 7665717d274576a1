"""The process: how it starts, stops, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import requests
import stripe


def test_it_answers_as_soon_as_it_says_its_address_and_stops_when_told(run: Any) -> None:
    sandbox = run()
    assert requests.get(f"{sandbox.url}/_sandbox/clock", timeout=5).status_code == 200
    sandbox.stop()


def test_a_state_file_outlives_the_process(run: Any, tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state.sqlite"))
    first = run(*state)
    session = first.client().v1.identity.verification_sessions.create({"type": "document"})
    first.submit(session.id, hold=True)
    first.control("POST", "clock", advance=1000)
    events = [event.id for event in first.client().v1.events.list()]
    first.stop()

    second = run(*state)
    assert second.control("GET", "clock")["ahead"] == 1000
    client = second.client()
    assert client.v1.identity.verification_sessions.retrieve(session.id).status == "processing"
    assert [event.id for event in client.v1.events.list()] == events
    second.control("POST", f"sessions/{session.id}/complete")
    assert client.v1.identity.verification_sessions.retrieve(session.id).status == "verified"


def test_the_secret_given_last_is_the_one_that_signs(
    run: Any, tmp_path: Path, listener: Any
) -> None:
    state = ("--state", str(tmp_path / "state.sqlite"), "--deliver-to", listener.url)
    for secret in ("whsec_one", "whsec_two"):
        sandbox = run(*state, "--secret", secret)
        sandbox.client().v1.identity.verification_sessions.create({"type": "document"})
        got = listener.next()
        assert stripe.Webhook.construct_event(got.body, got.signature, secret)
        sandbox.stop()


def test_live_keys_are_refused_and_told_why(sandbox: Any) -> None:
    for key in ("sk_live_0123456789", "rk_live_0123456789"):
        with pytest.raises(stripe.AuthenticationError, match="takes no live keys") as caught:
            sandbox.client(key).v1.identity.verification_sessions.list()
        assert "0123456789" not in str(caught.value)


def test_pages_of_other_origins_are_not_served(sandbox: Any) -> None:
    answer = requests.post(
        f"{sandbox.url}/_sandbox/clock",
        json={"advance": 1},
        headers={"Origin": "https://evil.example"},
        timeout=5,
    )
    assert answer.status_code == 403


def test_it_never_redirects(sandbox: Any) -> None:
    for path in ("/v1/identity/verification_sessions/", "/v1//x", "//v1/events", "/nothing"):
        answer = requests.get(
            sandbox.url + path, auth=("sk_test_x", ""), allow_redirects=False, timeout=5
        )
        assert answer.status_code in {200, 404}
        assert answer.headers["Request-Id"].startswith("req_")


@pytest.mark.parametrize(("length", "status"), [(5_000, 400), (20_000, 400), (70_000, 414)])
def test_a_long_url_gets_stripes_envelope(sandbox: Any, length: int, status: int) -> None:
    answer = requests.get(
        f"{sandbox.url}/v1/identity/verification_sessions?surprise={'x' * length}",
        auth=("sk_test_x", ""),
        timeout=5,
    )
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_long_header_gets_stripes_envelope(sandbox: Any) -> None:
    answer = requests.post(
        f"{sandbox.url}/v1/identity/verification_sessions",
        data={"type": "document"},
        headers={"Idempotency-Key": "k" * 20_000},
        auth=("sk_test_x", ""),
        timeout=5,
    )
    assert answer.status_code == 400
    assert "255" in answer.json()["error"]["message"]
