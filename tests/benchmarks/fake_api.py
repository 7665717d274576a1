"""Stands for Stripe's API where few calls a second are made: `... fake_api PORT DELAY_MS`.

Every session that is asked for exists and is verified; its answer of 4 kB comes DELAY_MS after the
question. Any list is empty.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

SESSION = re.compile(rb"GET /v1/identity/verification_sessions/vs_(\w{24})[ ?]")


def session(name: str) -> dict[str, object]:
    """Return a verified session as it is with its last report expanded."""
    report = {
        "id": name.replace("vs_", "vr_"),
        "object": "identity.verification_report",
        "created": 1_790_000_000,
        "livemode": False,
        "type": "document",
        "verification_session": name,
        "document": {
            "status": "verified",
            "type": "driving_license",
            "issuing_country": "US",
            "first_name": "Jenny",
            "last_name": "Rosen",
            "address": {"line1": "1 Main Street", "city": "Boston", "country": "US"},
            "files": [f"file_{number:024}" for number in range(2)],
            "error": None,
        },
    }
    return {
        "id": name,
        "object": "identity.verification_session",
        "client_reference_id": None,
        "created": 1_790_000_000,
        "last_error": None,
        "last_verification_report": report,
        "livemode": False,
        "metadata": {f"key_{number}": "x" * 150 for number in range(16)},
        "options": {"document": {"require_matching_selfie": True}},
        "redaction": None,
        "status": "verified",
        "type": "document",
        "url": None,
        "verified_outputs": {"first_name": "Jenny", "last_name": "Rosen"},
    }


def answer(body: object) -> bytes:
    """Return a whole HTTP answer."""
    text = json.dumps(body, indent=2).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRequest-Id: req_bench\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(text) + text


# Made once, for ids of the one length that the benchmarks use.
NAME = b"vs_" + b"X" * 24
VERIFIED = answer(session(NAME.decode()))
EMPTY = answer({"object": "list", "data": [], "has_more": False, "url": "/"})


class Connection(asyncio.Protocol):
    """Answers the requests of one connection, which have no bodies and come one after another."""

    def __init__(self, delay: float) -> None:
        self._delay, self._got = delay, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._got.endswith(b"\r\n\r\n"):
            return
        asked, self._got = SESSION.match(self._got), b""
        text = VERIFIED.replace(NAME[3:], asked[1]) if asked else EMPTY
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, text)
        else:
            self._transport.write(text)


async def serve(port: int, delay: float) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(delay), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))
