"""Deliveries made beforehand: distinct events of 2.5 to 4 kB, rightly signed, byte for byte."""

from __future__ import annotations

import hmac
import json
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path


def write(path: Path, count: int, secret: str, seed: int) -> None:
    """Write `count` requests, each behind its length, as load.c reads them.

    They are good for five minutes, which is what Stripe's libraries allow a signature.
    """
    with path.open("wb") as file:
        for _, request in make(count, secret, seed):
            file.write(struct.pack("<I", len(request)) + request)


def make(count: int, secret: str, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield the ids and requests of `count` events, each signed when it is asked for."""
    padding = random.Random(seed)
    for number in range(count):
        now = int(time.time())
        event = _event(f"1T{seed:06}{number:08}kdIwHu7i", now, padding)
        yield str(event["id"]), _request(json.dumps(event, indent=2).encode(), secret, now)


def _event(unique: str, now: int, padding: random.Random) -> dict[str, object]:
    """Return an event of the shape that Stripe sends, its size made up by metadata."""
    metadata = {f"key_{number}": "x" * padding.randint(20, 130) for number in range(16)}
    return {
        "id": f"evt_{unique}",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": now,
        "data": {
            "object": {
                "id": f"vs_{unique}",
                "object": "identity.verification_session",
                "client_reference_id": None,
                "client_secret": None,
                "created": now - 60,
                "last_error": None,
                "last_verification_report": f"vr_{unique}",
                "livemode": False,
                "metadata": metadata,
                "options": {
                    "document": {
                        "allowed_types": ["driving_license", "passport", "id_card"],
                        "require_id_number": False,
                        "require_live_capture": True,
                        "require_matching_selfie": True,
                    }
                },
                "provided_details": {"email": "jenny.rosen@example.com"},
                "redaction": None,
                "related_customer": None,
                "status": "verified",
                "type": "document",
                "url": None,
                "verification_flow": None,
            }
        },
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": "identity.verification_session.verified",
    }


def _request(body: bytes, secret: str, now: int) -> bytes:
    mac = hmac.digest(secret.encode(), b"%d." % now + body, "sha256").hex()
    lines = [
        "POST /webhooks/stripe HTTP/1.1",
        "Host: 127.0.0.1",
        "User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        "Accept: */*; q=0.5, application/xml",
        "Content-Type: application/json; charset=utf-8",
        "Cache-Control: no-cache",
        f"Stripe-Signature: t={now},v1={mac}",
        f"Content-Length: {len(body)}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body
