"""The application runs whole on the servers that people already have."""

from __future__ import annotations

import pytest

GUNICORN = ("-m", "gunicorn", "--workers", "1", "--bind", "127.0.0.1:{port}")
APP = "service.app:create_app()"
SERVERS = {
    "gunicorn's sync": (*GUNICORN, "--worker-class", "sync", APP),
    "gunicorn's gthread": (*GUNICORN, "--worker-class", "gthread", "--threads", "4", APP),
    "gunicorn's gevent": (*GUNICORN, "--worker-class", "gevent", APP),
    "waitress": (
        "-m",
        "waitress",
        "--listen",
        "127.0.0.1:{port}",
        "--call",
        "service.app:create_app",
    ),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_deliveries_and_pages(command, serve, redis) -> None:
    receiver = serve(*command)
    body = receiver.event()
    assert receiver.deliver(body).json() == {"received": True, "answer": "new"}
    assert receiver.deliver(body).json() == {"received": True, "answer": "pending"}
    assert receiver.deliver(body, "t=1,v1=0").status == 400
    assert receiver.deliver(body + b" " * 262_144).status == 413
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    signed = f"Stripe-Signature: {receiver.sign(body)}"
    raw = receiver.request(chunks, "Transfer-Encoding: chunked", signed)
    assert receiver.send(raw).status == 200
    assert receiver.get("/readyz").json() == {"ready": True, "faults": []}
    assert "identity_webhooks_web_deliveries_total" in receiver.get("/metrics").text
    assert receiver.get("/webhooks/stripe").status_code == 405
    assert receiver.get("/webhooks/stripe/").status_code == 404
    assert redis.zcard("iw:due") == 1
