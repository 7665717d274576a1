"""arq as its users write it: a coroutine, so the SDK's own async method, which takes httpx."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, ClassVar

import stripe
from arq import create_pool
from arq.connections import RedisSettings

stripe.api_key = "sk_test_benchmark"
stripe.api_base = os.environ["STRIPE_API_BASE"]


async def process_event(_context: dict[str, Any], session_id: str) -> None:
    session = await stripe.identity.VerificationSession.retrieve_async(
        session_id, expand=["last_verification_report"]
    )
    if session.status != "verified":
        raise ValueError(session_id)


class WorkerSettings:
    functions: ClassVar = [process_event]
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
    max_jobs = 50


async def enqueue(count: int) -> None:
    pool = await create_pool(WorkerSettings.redis_settings)
    for number in range(count):
        await pool.enqueue_job("process_event", f"vs_{number:024}")


if __name__ == "__main__":
    asyncio.run(enqueue(int(sys.argv[1])))
