"""Celery as its users write it: a task whose result nobody asks for."""

from __future__ import annotations

import os
import sys

import stripe
from celery import Celery

stripe.api_key = "sk_test_benchmark"
stripe.api_base = os.environ["STRIPE_API_BASE"]
app = Celery("celery_tasks", broker=os.environ["REDIS_URL"])


@app.task(ignore_result=True)
def process_event(session_id: str) -> None:
    session = stripe.identity.VerificationSession.retrieve(
        session_id, expand=["last_verification_report"]
    )
    if session.status != "verified":
        raise ValueError(session_id)


if __name__ == "__main__":
    # Not as __main__.process_event, which the worker would not know.
    from celery_tasks import process_event as task

    for number in range(int(sys.argv[1])):
        task.delay(f"vs_{number:024}")
