"""The same service as most would write it on plain RQ, to be put through the same storm.

A receiver that verifies and enqueues under the event's id (`unique=True`), RQ's own worker
(`Retry(max=10)`), and one job that runs all handlers. `python -m tests.chaos.plain_rq` works.
"""

from __future__ import annotations

import os
from contextlib import suppress
from types import SimpleNamespace

import redis
import rq
import stripe
from flask import Flask, request
from rq.exceptions import DuplicateJobError

from service.event import parse


def queue() -> rq.Queue:
    return rq.Queue("plain", connection=redis.Redis.from_url(os.environ["REDIS_URL"]))


def create_app() -> Flask:
    app = Flask("plain")
    jobs = queue()
    secret = os.environ["STRIPE_WEBHOOK_SECRET"]

    @app.post("/webhooks/stripe")
    def receive() -> tuple[str, int]:
        body = request.get_data(as_text=True)
        try:
            stripe.WebhookSignature.verify_header(
                body, request.headers.get("Stripe-Signature", ""), secret, 300
            )
        except stripe.SignatureVerificationError:
            return "", 400
        event = parse(body.encode())
        if event is not None:
            with suppress(DuplicateJobError):
                jobs.enqueue(process, body, job_id=event.id, unique=True, retry=rq.Retry(max=10))
        return "", 200

    return app


def process(body: str) -> None:
    import ledger  # noqa: PLC0415 (the receiver has no ledger)

    event = parse(body.encode())
    job = rq.get_current_job()
    attempt = 11 - (job.retries_left if job.retries_left is not None else 10)
    api = stripe.StripeClient(
        os.environ["STRIPE_API_KEY"], base_addresses={"api": os.environ["STRIPE_API_BASE"]}
    )
    api.v1.identity.verification_sessions.retrieve(event.session)
    for handler in (ledger.steady, ledger.slow, ledger.flaky):
        handler(
            SimpleNamespace(
                event=event, idempotency_key=f"{event.id}:{handler.__name__}", attempt=attempt
            )
        )


if __name__ == "__main__":
    # Run as `__main__`, this module is another one than the job's.
    jobs = queue()
    rq.SimpleWorker([jobs], connection=jobs.connection).work(logging_level="WARNING")
