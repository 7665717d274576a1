"""An API that fails, as the SDK sees it."""

import contextlib
import threading
import time
import uuid
from typing import Any

import pytest
import requests
import stripe

SESSIONS = "/v1/identity/verification_sessions"


@pytest.fixture(autouse=True)
def no_fault_stays(sandbox: Any) -> Any:
    yield
    sandbox.control("DELETE", "faults")


def fault(sandbox: Any, kind: str, **fields: Any) -> None:
    sandbox.control("POST", "faults", kind=kind, **fields)


def post(sandbox: Any, key: str, timeout: float = 120) -> requests.Response:
    return requests.post(
        sandbox.url + SESSIONS,
        data={"type": "document"},
        auth=("sk_test_x", ""),
        headers={"Idempotency-Key": key},
        timeout=timeout,
    )


def create(sandbox: Any, **options: Any) -> Any:
    client = sandbox.client(**options)
    return client.v1.identity.verification_sessions.create({"type": "document"})


def test_rate_limits(sandbox: Any) -> None:
    fault(sandbox, "rate_limit", next=1, retry_after=7)
    with pytest.raises(stripe.RateLimitError) as caught:
        create(sandbox, max_network_retries=2)
    assert caught.value.json_body["error"]["code"] == "rate_limit"
    assert caught.value.json_body["error"]["type"] == "invalid_request_error"
    assert caught.value.headers["Retry-After"] == "7"
    assert caught.value.headers["Stripe-Rate-Limited-Reason"] == "global-rate"
    assert create(sandbox)

    fault(sandbox, "rate_limit", next=1)
    with pytest.raises(stripe.RateLimitError) as caught:
        create(sandbox)
    assert "Retry-After" not in caught.value.headers


def test_a_lock_timeout_is_retried_by_the_sdk(sandbox: Any) -> None:
    fault(sandbox, "lock_timeout", next=2)
    with pytest.raises(stripe.RateLimitError) as caught:
        create(sandbox)
    assert caught.value.json_body["error"]["code"] == "lock_timeout"
    assert create(sandbox, max_network_retries=1)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_errors_are_retried_by_the_sdk(sandbox: Any, status: int) -> None:
    fault(sandbox, "error", status=status, next=2)
    with pytest.raises(stripe.APIError) as caught:
        create(sandbox)
    assert caught.value.http_status == status
    assert create(sandbox, max_network_retries=1)


def test_a_lost_answer_is_given_again(sandbox: Any) -> None:
    before = len(sandbox.client().v1.events.list({"limit": 100}).data)
    fault(sandbox, "error", status=503, after=True, next=1)
    assert create(sandbox, max_network_retries=1)
    after = len(sandbox.client().v1.events.list({"limit": 100}).data)
    assert after == before + 1, "the retry carried the same idempotency key"


def test_an_error_can_be_what_is_kept_for_a_key(sandbox: Any) -> None:
    fault(sandbox, "error", saved=True, next=1)
    first, again = post(sandbox, "kept"), post(sandbox, "kept")
    assert first.status_code == again.status_code == 500
    assert first.content == again.content
    assert again.headers["Idempotent-Replayed"] == "true"


def test_one_route_only(sandbox: Any) -> None:
    fault(sandbox, "error", route=f"POST {SESSIONS}")
    assert sandbox.client().v1.identity.verification_sessions.list().object == "list"
    with pytest.raises(stripe.APIError):
        create(sandbox)


def test_an_answer_that_does_not_come(sandbox: Any) -> None:
    fault(sandbox, "timeout", seconds=0.5, next=1)
    began = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        post(sandbox, "ended")
    assert time.monotonic() - began >= 0.5
    fault(sandbox, "timeout", seconds=30, next=1)
    with pytest.raises(requests.ReadTimeout):
        post(sandbox, "ended", timeout=0.2)


def test_a_slow_answer_and_a_second_request_with_its_key(sandbox: Any, wait_until: Any) -> None:
    fault(sandbox, "slow", seconds=6, next=1)
    slow: list[requests.Response] = []
    thread = threading.Thread(target=lambda: slow.append(post(sandbox, "slow")))
    thread.start()
    wait_until(lambda: all(each["struck"] for each in sandbox.control("GET", "faults")))
    conflict = post(sandbox, "slow")
    assert conflict.status_code == 409
    assert conflict.json()["error"]["code"] == "idempotency_key_in_use"
    assert conflict.headers["Stripe-Should-Retry"] == "true"
    thread.join()
    assert slow[0].status_code == 200
    assert post(sandbox, "slow").content == slow[0].content


def test_a_cut_answer(sandbox: Any) -> None:
    fault(sandbox, "cut", next=1)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        post(sandbox, "cut")
    fault(sandbox, "cut", next=1)
    # stripe-python 16.1 does not retry an answer that was cut, however many retries it may make.
    with pytest.raises(stripe.APIConnectionError):
        create(sandbox, max_network_retries=1)


def test_a_fault_counts_only_the_calls_that_it_struck(sandbox: Any, faults_of: Any) -> None:
    for kind in faults_of("the API"):
        # 0 is a number too: what comes late by that comes at once.
        fields = {"kind": kind, **({"seconds": 0} if kind in {"timeout", "slow"} else {})}
        faults = [
            sandbox.control("POST", "faults", **fields, **where)["id"]
            for where in (
                *({"rate": 0.0, "next": 1}, {"route": f"GET {SESSIONS}"}),
                *({"rate": 1.0, "next": 2}, {"next": 1}),
            )
        ]
        began = time.monotonic()
        for struck in [(1, 0), (None, 0), (None, None), (None, None)]:
            done = None
            with contextlib.suppress(requests.RequestException):
                done = post(sandbox, str(uuid.uuid4()))
            counts = {fault["id"]: fault["struck"] for fault in sandbox.control("GET", "faults")}
            assert [counts.get(id_) for id_ in faults] == [0, 0, *struck], kind
        assert time.monotonic() - began < 45, "three of 30 s each, were 0 no number"
        assert done is not None
        assert done.status_code == 200
        logged = [one["fault"] for one in sandbox.control("GET", "requests")[-4:]]
        assert logged == [kind, kind, kind, None]
        assert sandbox.control("DELETE", "faults") == {"cleared": 2}
