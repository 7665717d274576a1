"""FastAPI, `construct_event`, and arq, which knows a job by the event's id."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import stripe
from arq import create_pool
from arq.connections import RedisSettings
from fastapi import FastAPI, Request, Response

SECRET = os.environ["STRIPE_WEBHOOK_SECRET"]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.pool = await create_pool(RedisSettings.from_dsn(os.environ["REDIS_URL"]))
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/webhooks/stripe")
async def webhook(request: Request) -> Response:
    try:
        event = stripe.Webhook.construct_event(
            await request.body(), request.headers.get("stripe-signature", ""), SECRET
        )
    except (ValueError, stripe.SignatureVerificationError):
        return Response(status_code=400)
    await app.state.pool.enqueue_job("process_event", event.id, _job_id=event.id)
    return Response()
