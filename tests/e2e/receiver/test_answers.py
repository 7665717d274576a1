"""What a sender is answered, and what is then in the inbox."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

PAGES = ["/healthz", "/readyz", "/metrics"]
PENDING = "identity_webhooks_pending_events"

pytestmark = pytest.mark.any_server


def pending(receiver) -> int:
    """Read the number of pending events off the metrics page."""
    lines = receiver.get("/metrics").text.splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{PENDING} "))
    return int(float(value))


class TestAccepted:
    def test_an_event_is_in_the_inbox_when_it_is_answered(self, receiver, stored) -> None:
        answer = receiver.deliver(receiver.event())
        assert (answer.status, answer.json()) == (200, {"received": True, "answer": "new"})
        assert "iw:evt:evt_1" in stored()
        assert pending(receiver) == 1

    def test_a_thin_event(self, receiver) -> None:
        assert receiver.deliver(receiver.thin_event()).json()["answer"] == "new"
        assert pending(receiver) == 1

    def test_a_redelivery_is_known(self, receiver, redis) -> None:
        body = receiver.event()
        answers = [receiver.deliver(body).json()["answer"] for _ in range(3)]
        assert answers == ["new", "pending", "pending"]
        assert redis.llen("rq:queue:identity") == 1

    def test_fifty_posts_of_one_event_at_once_give_one_record(self, receiver, redis) -> None:
        body = receiver.event()
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(receiver.deliver, [body] * 50))
        assert {answer.status for answer in answers} == {200}
        assert [answer.json()["answer"] for answer in answers].count("new") == 1
        assert len(redis.keys("iw:evt:*")) == 1
        assert redis.llen("rq:queue:identity") == 1
        assert len(redis.keys("rq:job:*")) == 1

    def test_one_id_of_two_accounts_is_two_events(self, receiver) -> None:
        for account in ("acct_A", "acct_B"):
            answer = receiver.deliver(receiver.event(account=account))
            assert answer.json()["answer"] == "new"
        assert pending(receiver) == 2

    def test_while_rolling_the_secret_two_signatures_come(self, receiver) -> None:
        body = receiver.event()
        other = receiver.sign(body, secret="whsec_other").partition(",")[2]
        assert receiver.deliver(body, f"{receiver.sign(body)},{other}").status == 200
        assert pending(receiver) == 1

    def test_a_chunked_body(self, receiver) -> None:
        body = receiver.event()
        signed = f"Stripe-Signature: {receiver.sign(body)}"
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:400], body[400:], b"")
        )
        answer = receiver.send(receiver.request(chunks, "Transfer-Encoding: chunked", signed))
        assert answer.status == 200
        assert pending(receiver) == 1

    def test_keys_given_twice_count_as_in_the_sdks_the_last(self, receiver, stored) -> None:
        body = receiver.event("evt_first")[:-2] + b', "id": "evt_last"}'
        assert receiver.deliver(body).status == 200
        assert "iw:evt:evt_last" in stored()


class TestAcknowledged:
    """200, so that it is not sent again, and nothing is stored."""

    @pytest.mark.parametrize(
        ("changes", "answer"),
        [({"type": "charge.succeeded"}, "ignored"), ({"livemode": True}, "other_mode")],
        ids=["type", "mode"],
    )
    def test_what_is_not_ours(self, receiver, stored, changes, answer) -> None:
        reply = receiver.deliver(receiver.event(**changes))
        assert (reply.status, reply.json()["answer"]) == (200, answer)
        assert not stored()


class TestPages:
    def test_healthz(self, receiver) -> None:
        answer = receiver.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"alive": True})

    def test_readyz(self, receiver) -> None:
        answer = receiver.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"ready": True, "faults": []})

    @pytest.mark.sample(1)
    def test_metrics_agree_whichever_worker_answers(
        self, new_server, new_receiver, wait_until
    ) -> None:
        receiver = new_receiver(REDIS_URL=new_server().url, WEB_CONCURRENCY="2")
        for number in range(20):
            receiver.deliver(receiver.event(f"evt_{number}"))
        receiver.deliver(b"{}", "t=1,v1=0")
        # Each worker adds its counts within a second.
        counted = (
            'deliveries_total{answer="new"} 20.0',
            'refusals_total{reason="malformed_header"} 1.0',
        )

        def all_agree() -> bool:
            pages = [receiver.get("/metrics").text for _ in range(6)]
            return all(each in page for each in counted for page in pages)

        wait_until(all_agree)
        assert pending(receiver) == 20

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
    def test_only_post_on_the_hook(self, receiver, method) -> None:
        answer = requests.request(method, f"{receiver.url}/webhooks/stripe", timeout=120)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")

    @pytest.mark.parametrize("path", ["/", "/webhooks/stripe/", "/webhooks", "/admin"])
    def test_other_paths(self, receiver, path) -> None:
        assert receiver.get(path).status_code == 404

    @pytest.mark.any_server
    @pytest.mark.parametrize("path", ["//webhooks/stripe", "///webhooks/stripe", "//healthz"])
    def test_a_repeated_slash_is_another_path(self, receiver, stored, path) -> None:
        body = receiver.event()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\nStripe-Signature: {receiver.sign(body)}\r\n\r\n"
        assert receiver.send(head.encode() + body).status == 404
        assert not stored()

    @pytest.mark.sample(3)
    @pytest.mark.any_server
    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("/webhooks/stripe/", "/webhooks/stripe/"),
            ("//webhooks/stripe", "//webhooks/stripe"),
            ("/api/webhooks/stripe?token=Secret7Q", "/api/webhooks/stripe"),
            ("/Secret7Q/stripe", "/*/stripe"),
            ("/", "/"),
        ],
    )
    def test_a_wrong_path_is_logged_and_counted(
        self, new_server, new_receiver, path, shown
    ) -> None:
        receiver = new_receiver(REDIS_URL=new_server().url)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert receiver.send(head.encode()).status == 404
        text = receiver.log.read_text()
        (said,) = [each for each in map(json.loads, text.splitlines()) if "path" in each]
        assert (said["event"], said["level"]) == ("unknown_path", "warning")
        assert (said["path"], said["method"]) == (shown, "POST")
        assert "Secret7Q" not in text
        assert 'unknown_paths_total{method="POST"} 1.0' in receiver.get("/metrics").text

    @pytest.mark.sample(1)
    @pytest.mark.parametrize("path", ["/%77ebhooks/stripe", "/webhooks%2Fstripe"])
    def test_an_encoded_path_is_the_same_in_the_loop(self, new_server, new_receiver, path) -> None:
        own = new_server()
        receiver = new_receiver(REDIS_URL=own.url)
        own.freeze()
        body = receiver.event()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\nStripe-Signature: {receiver.sign(body)}\r\n\r\n"
        answer = receiver.send(head.encode() + body)
        own.thaw()
        assert answer.status == 503
        assert answer.seconds < 5, "a page would wait for a thread that asks Redis"

    @pytest.mark.parametrize(
        "path", ["/healthz", "/readyz", "/metrics", "/absent", "/webhooks/stripe"]
    )
    def test_headers(self, receiver, path) -> None:
        headers = receiver.get(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


class TestFull:
    @pytest.mark.sample(1)
    def test_above_the_limit_stripe_keeps_the_events(self, new_server, new_receiver) -> None:
        receiver = new_receiver(REDIS_URL=new_server().url, INBOX_LIMIT="2")
        answers = [receiver.deliver(receiver.event(f"evt_{number}")) for number in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 503]
        assert answers[2].json() == {"received": False, "answer": "full"}
        assert int(answers[2].headers["retry-after"]) > 0
        # What is known is still acknowledged.
        assert receiver.deliver(receiver.event("evt_0")).status == 200
        ready = receiver.get("/readyz")
        assert ready.status_code == 503
        assert "INBOX_LIMIT" in json.dumps(ready.json())
