"""A Stripe that can be told to answer any call with anything: what the sandbox cannot be told.

It serves the calls that workers make, and connected accounts. A failure strikes one session or one
account with one key, so that a test can look at what stands beside it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY, RESTRICTED_KEY = "sk_test_table", "rk_test_table"

CALLS = ("session", "report", "sensitive", "thin event", "list")
"""The report comes with its session, in one call: `report` strikes where there is one."""


@dataclass(frozen=True)
class Answer:
    """What a call is answered. `code` may be a word that is no code: `(html)`, `(cut-off)`, or JSON
    of another form: `([])`.
    """

    status: int
    code: str = ""

    def body(self) -> bytes:
        if self.code == "(html)":
            return b"<html><body>not Stripe's words</body></html>"
        if self.code.startswith("("):
            return self.code.strip("()").encode()
        error = {"type": "invalid_request_error", "message": "A sentence that may quote anything."}
        return json.dumps({"error": error | ({"code": self.code} if self.code else {})}).encode()


@dataclass
class Fault:
    """A call that fails, with one key and for one object: a session, an event or an account."""

    call: str
    key: str
    about: str
    answer: Answer
    struck: int = 0


@dataclass
class FakeStripe:
    """What it holds, and what is wrong with it."""

    now: int
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)
    fault: Fault | None = None
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    since: list[int] = field(default_factory=list)
    """The moments since which events were asked for."""
    url: str = ""

    def session(self, number: int, account: str | None = None, **fields: Any) -> str:
        """Add a session with a report, and the event that it was verified; its id."""
        id_ = f"vs_{number}"
        report = {
            "id": f"vr_{number}",
            "object": "identity.verification_report",
            "created": self.now,
            "livemode": False,
            "type": "document",
            "document": {"status": "verified", "number": "D123"},
        }
        self.sessions[id_] = {
            "id": id_,
            "object": "identity.verification_session",
            "account": account,
            "created": self.now,
            "livemode": False,
            "metadata": {},
            "status": "verified",
            "last_error": None,
            "redaction": None,
            "last_verification_report": report,
            "verified_outputs": {"first_name": "x", "dob": {"year": 1990, "month": 7, "day": 17}},
            **fields,
        }
        for kind in ("created", "verified"):
            self.events.append(
                {
                    "id": f"evt_{kind}{number}",
                    "object": "event",
                    "account": account,
                    "type": f"identity.verification_session.{kind}",
                    "created": self.now,
                    "livemode": False,
                    "data": {"object": {"id": id_}},
                }
            )
        return id_

    def answer(self, path: str, query: dict[str, list[str]], key: str, account: str) -> Any:
        """Return what a request is answered: an object, or an `Answer`."""
        call, about = self._read(path, query, account)
        self.calls.append((call, key, about))
        if path == "/v1/events":
            self.since.append(int(query["created[gte]"][0]))
        fault = self.fault
        if fault and (fault.call, fault.key, fault.about) == (call, key, about):
            fault.struck += 1
            return fault.answer
        if call == "thin event":
            return {"id": about, "object": "v2.core.event", "snapshot_event": f"{about}snapshot"}
        if call == "list":
            return {"object": "list", "has_more": False, "data": self._list(path, account)}
        found = self.sessions.get(path.rpartition("/")[2])
        return found or Answer(404, "resource_missing")

    def _read(self, path: str, query: dict[str, list[str]], account: str) -> tuple[str, str]:
        last = path.rpartition("/")[2]
        if path.startswith("/v2/core/events/"):
            return "thin event", last
        if not last.startswith("vs_"):
            return "list", account or path
        expanded = [value for name, values in query.items() if "expand" in name for value in values]
        if any(value.count(".") for value in expanded):
            return "sensitive", last
        has_report = self.sessions.get(last, {}).get("last_verification_report")
        return "report" if has_report else "session", last

    def _list(self, path: str, account: str) -> list[dict[str, Any]]:
        if path == "/v1/accounts":
            return [{"id": each, "object": "account"} for each in self.accounts]
        if path == "/v1/events":
            return [each for each in self.events if (each["account"] or "") == account]
        return []


@contextmanager
def serving(fake: FakeStripe) -> Iterator[FakeStripe]:
    """Serve it on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            account = self.headers.get("Stripe-Account") or self.headers.get("Stripe-Context") or ""
            fake.headers.append(dict(self.headers.items()))
            key = self.headers["Authorization"].removeprefix("Bearer ")
            answer = fake.answer(parts.path, parse_qs(parts.query), key, account)
            if isinstance(answer, Answer) and answer.code == "(cut-off)":
                self.close_connection = True
                return
            plain = not isinstance(answer, Answer)
            body = json.dumps(answer).encode() if plain else answer.body()
            self.send_response(200 if plain else answer.status)
            self.send_header("Request-Id", "req_fake")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
