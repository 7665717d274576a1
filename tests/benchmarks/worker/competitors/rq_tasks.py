"""RQ as its users write it. `rq worker` forks for each job, and the fork imports this module."""

from __future__ import annotations

import os
import sys

import stripe
from redis import Redis
from rq import Queue

stripe.api_key = "sk_test_benchmark"
stripe.api_base = os.environ["STRIPE_API_BASE"]


def process_event(session_id: str) -> None:
    session = stripe.identity.VerificationSession.retrieve(
        session_id, expand=["last_verification_report"]
    )
    if session.status != "verified":
        raise ValueError(session_id)


if __name__ == "__main__":
    queue = Queue("naive", connection=Redis.from_url(os.environ["REDIS_URL"]))
    for number in range(int(sys.argv[1])):
        queue.enqueue("rq_tasks.process_event", f"vs_{number:024}")
