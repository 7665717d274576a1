"""The receiver of the tutorials: Flask, `construct_event`, SET NX, `enqueue`."""

from __future__ import annotations

import os

import stripe
from flask import Flask, request
from redis import Redis
from rq import Queue

SECRET = os.environ["STRIPE_WEBHOOK_SECRET"]
redis = Redis.from_url(os.environ["REDIS_URL"])
queue = Queue("naive", connection=redis)
app = Flask(__name__)


@app.post("/webhooks/stripe")
def webhook() -> tuple[str, int]:
    try:
        event = stripe.Webhook.construct_event(
            request.get_data(), request.headers.get("Stripe-Signature", ""), SECRET
        )
    except (ValueError, stripe.SignatureVerificationError):
        return "", 400
    if redis.set(f"event:{event.id}", 1, nx=True, ex=86_400):
        queue.enqueue("tasks.process_event", event.id)
    return "", 200
