"""What every test of this suite uses: changes from the sandbox, and the count at the end."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import stripe
import urllib3
from redis import Redis

from identity_webhooks.event import Event
from service.event import parse
from tests.conftest import CANARY, ROOT, Processes, free_port, wait_until

CHAOS = ROOT / "tests" / "chaos"
SECRET = "whsec_Q2hhb3NUZXN0U2VjcmV0MTIzNDU2Nzg5"
API_KEY = "sk_test_chaos"
HANDLERS = ("steady", "slow", "flaky")


class Change(NamedTuple):
    """What happened to a session: no session of these tests has the same kind twice."""

    session: str
    kind: str


@dataclass(frozen=True)
class Delivery:
    """A body that Stripe delivers; its change comes in one form or in both."""

    body: bytes
    event: Event

    @property
    def change(self) -> Change:
        return Change(self.event.session, self.event.kind)

    def post(self, pool: urllib3.HTTPConnectionPool) -> int:
        """Deliver it, signed now; the status, or 0 where nobody answered."""
        signature = stripe.WebhookSignature.generate_signature_header(self.body.decode(), SECRET)
        try:
            return pool.request(
                "POST",
                "/webhooks/stripe",
                body=self.body,
                headers={"Stripe-Signature": signature, "Content-Type": "application/json"},
                retries=False,
            ).status
        except urllib3.exceptions.HTTPError:
            return 0


def deliver(deliveries: Iterable[Delivery], receiver: urllib3.HTTPConnectionPool) -> None:
    """Send each until it is answered 2xx, as Stripe does."""
    for each in deliveries:
        wait_until(lambda each=each: each.post(receiver) == 200 or time.sleep(0.2))


def start_receiver(
    processes: Processes, env: dict[str, str], patience: float = 30
) -> urllib3.HTTPConnectionPool:
    """Start the web process; what to send deliveries through. It may not listen yet."""
    port = free_port()
    processes.python(
        *("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "--workers", "1"),
        *("--bind", f"127.0.0.1:{port}", "service.app:create_app()"),
        env=env,
    )
    return urllib3.HTTPConnectionPool("127.0.0.1", port, timeout=patience)


class Sandbox:
    """A sandbox whose deliveries are collected, so that a test can send them as it likes."""

    def __init__(self, processes: Processes, forms: Iterable[str]) -> None:
        self._collected: list[Delivery] = []
        self._server = _collector(self._collected)
        hook = f"http://127.0.0.1:{self._server.server_port}/"
        options = {
            "snapshot": ("--deliver-to", hook, "--secret", SECRET),
            "thin": ("--deliver-thin-to", hook, "--thin-secret", SECRET),
        }
        self._forms = tuple(forms)
        self.process, log = processes.python(
            *(
                "-m",
                "stripe_identity_sandbox",
                "serve",
                "--port",
                "0",
                "--json",
                "--marker",
                CANARY,
            ),
            *itertools.chain.from_iterable(options[form] for form in self._forms),
        )
        wait_until(lambda: log.read_text().endswith("}\n"))
        self.url = json.loads(log.read_text())["url"]
        self._pool = urllib3.connection_from_url(self.url, maxsize=8, timeout=120)
        self._auth = urllib3.make_headers(basic_auth=f"{API_KEY}:")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def control(self, path: str, method: str = "POST", **body: Any) -> None:
        answer = self._pool.request(method, f"/_sandbox/{path}", json=body)
        assert answer.status == 200, answer.data

    def changes(self, sessions: int, *, within: float = 120) -> list[Delivery]:
        """Take new sessions from `created` over `processing` to their end: three changes each."""
        with ThreadPoolExecutor(4) as pool:
            ours = set(pool.map(self._verify, range(sessions)))
        wanted = sessions * 3 * len(self._forms)

        def collected() -> list[Delivery]:
            return [each for each in self._collected if each.event.session in ours]

        wait_until(lambda: len(self._collected) >= wanted, within=within)
        wait_until(lambda: len(collected()) >= wanted, within=within)
        return sorted({each.event.key: each for each in collected()}.values(), key=_by_event)

    def _verify(self, number: int) -> str:
        answer = self._pool.request(
            "POST",
            "/v1/identity/verification_sessions",
            fields={"type": "document"},
            encode_multipart=False,
            headers=self._auth,
        ).json()
        outcome = "verified" if number % 4 else "document_expired"
        self.control(f"sessions/{answer['id']}/submit", outcome=outcome)
        return answer["id"]


def _by_event(delivery: Delivery) -> tuple[int, str]:
    return delivery.event.created, delivery.event.key


def _collector(collected: list[Delivery]) -> ThreadingHTTPServer:
    class Collect(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            event = parse(body)
            assert event is not None
            collected.append(Delivery(body, event))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collect)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def environment(redis_url: str, sandbox_url: str, ledger: Path, **more: str) -> dict[str, str]:
    """What every process of the service is given; `more` wins."""
    return {
        "PYTHONPATH": f"{CHAOS / 'killpoints'}:{CHAOS / 'handlers'}:{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "REDIS_URL": redis_url,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "STRIPE_API_KEY": API_KEY,
        "STRIPE_API_BASE": sandbox_url,
        "HANDLERS": "ledger",
        "LEDGER": str(ledger),
        "LOG_FORMAT": "json",
        **more,
    }


def keep_reconciliation_out(client: Redis) -> None:
    """Have the periodic process not ask Stripe: what is delivered must do without."""
    client.set("iw:turn:reconcile", 10**15)


class Effect(NamedTuple):
    """A line of the ledger (handlers/ledger.py)."""

    session: str
    kind: str
    handler: str
    key: str
    version: str
    pid: str
    moment: str
    attempt: str

    @property
    def change(self) -> Change:
        return Change(self.session, self.kind)


def read_ledger(path: Path) -> list[Effect]:
    if not path.exists():
        return []
    return [Effect(*line.split()) for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class Tally:
    """The total-queue check of one handler: what went in against what came out, in changes."""

    accepted: int
    completed: int
    lost: int
    unexpected: int
    repeats: int
    """Effects beyond the first of a change, as a handler without the idempotency key has them."""
    repeats_with_key: int
    """The same for a handler that has its effect once per idempotency key."""

    @property
    def kept(self) -> bool:
        """Whether the delivery contract was kept."""
        return self.lost == self.unexpected == self.repeats_with_key == 0


def tally(
    accepted: set[Change],
    effects: Iterable[Effect],
    handler: str,
    *,
    allowed: set[Change] | None = None,
) -> Tally:
    """Count for one handler; `allowed` are changes that it may see beside those it must."""
    wanted = accepted
    ours = [effect for effect in effects if effect.handler == handler]
    runs = Counter(effect.change for effect in ours)
    keys = Counter(change for change, _ in {(effect.change, effect.key) for effect in ours})
    return Tally(
        accepted=len(wanted),
        completed=len(wanted & runs.keys()),
        lost=len(wanted - runs.keys()),
        unexpected=len(runs.keys() - (allowed or wanted)),
        repeats=runs.total() - len(runs),
        repeats_with_key=keys.total() - len(keys),
    )
