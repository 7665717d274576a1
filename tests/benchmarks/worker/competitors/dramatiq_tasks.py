"""dramatiq as its users write it: an actor, run by threads of one or more processes."""

from __future__ import annotations

import os
import sys

import dramatiq
import stripe
from dramatiq.brokers.redis import RedisBroker

stripe.api_key = "sk_test_benchmark"
stripe.api_base = os.environ["STRIPE_API_BASE"]
dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))


@dramatiq.actor
def process_event(session_id: str) -> None:
    session = stripe.identity.VerificationSession.retrieve(
        session_id, expand=["last_verification_report"]
    )
    if session.status != "verified":
        raise ValueError(session_id)


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        process_event.send(f"vs_{number:024}")
