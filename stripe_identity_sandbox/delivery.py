"""Sends events to webhook endpoints, as Stripe does: signed, tried again, in no promised order."""

import functools
import hashlib
import hmac
import json
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING

from stripe_identity_sandbox.faults import Fault, Faults
from stripe_identity_sandbox.objects import Attempt, Delivery
from stripe_identity_sandbox.state import World

if TYPE_CHECKING:
    import urllib3

log = logging.getLogger("stripe_identity_sandbox.delivery")

#: Stripe's own limit is not published; its CLI forwards with 30 s.
TIMEOUT = 30.0
SENDERS = 8
#: On record (braze-inc/braze-docs) but for the content type, which is what stripe-cli sends.
HEADERS = {
    "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
    "Accept": "*/*; q=0.5, application/xml",
    "Cache-Control": "no-cache",
    "Accept-Encoding": "gzip",
    "Content-Type": "application/json; charset=utf-8",
}


class Deliverer:
    """Threads that send what is due, for as long as the process lives.

    With one sender each event is answered before the next one is sent.
    """

    def __init__(self, world: World, faults: Faults, *, senders: int = SENDERS) -> None:
        self._senders = senders
        self._world = world
        self._faults = faults
        self._work: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._held: dict[str, list[str]] = {}

    @functools.cached_property
    def _pool(self) -> "urllib3.PoolManager":
        # A start needs no urllib3. Two threads may make a pool each: one of them is dropped.
        import urllib3  # noqa: PLC0415

        return urllib3.PoolManager(maxsize=SENDERS, timeout=urllib3.Timeout(TIMEOUT), retries=False)

    def start(self) -> None:
        """Start sending."""
        for target in (self._watch, *[self._send_all] * self._senders):
            threading.Thread(target=target, daemon=True, name="sandbox-delivery").start()

    def _watch(self) -> None:
        while True:
            with self._world.step() as world:
                for delivery in world.outbox.take_due():
                    self._work.put(delivery.id)
            with self._world.changed:
                due = self._world.next_due()
                wait = None if due is None else due - self._world.now()
                if wait is None or wait > 0:
                    self._world.changed.wait(wait)

    def _send_all(self) -> None:
        while True:
            delivery_id = self._work.get()
            try:
                self._try(delivery_id)
            except Exception:
                # A bug of the sandbox must not end the thread; the delivery stays in plain sight.
                log.exception("delivery %s", delivery_id)

    def _try(self, delivery_id: str) -> None:
        with self._world.step() as world:
            delivery = world.outbox.by_id[delivery_id]
            endpoint = world.endpoints.by_id.get(delivery.endpoint)
            if endpoint is None:
                return
            faults = {
                fault.kind: fault
                for fault in self._faults.for_delivery(
                    endpoint.id,
                    endpoint.url,
                    world.events.by_id[delivery.event].type,
                    thin=delivery.form == "thin",
                    first=not delivery.struck,
                    sent=bool(delivery.attempts),
                )
            }
            delivery.struck = True
            if self._diverted(world, delivery, faults):
                return
            body = world.outbox.payload(delivery)
            if "oversized" in faults:
                body["sandbox_padding"] = "x" * faults["oversized"].bytes
            text = json.dumps(body, indent=2)
            signature = self._sign(text, world.endpoints.signing_secrets(endpoint), faults)
            started = world.now()

        for _ in range(1 + (faults["duplicate"].times if "duplicate" in faults else 0)):
            attempt = self._post(endpoint.url, text, signature)
            attempt.time = started
            attempt.fault = ", ".join(faults) or None
            with self._world.step() as world:
                world.outbox.record(delivery, attempt)
                self._release(world, delivery)

    def _diverted(self, world: World, delivery: Delivery, faults: dict[str, Fault]) -> bool:
        """Say whether a fault keeps the delivery from being sent now."""
        if "drop" in faults:
            world.outbox.drop(delivery, Attempt(time=world.now(), fault="drop", error="dropped"))
        elif "delay" in faults:
            world.outbox.put_off(delivery, faults["delay"].wait())
        elif "reorder" in faults:
            world.outbox.put_off(delivery, faults["reorder"].wait())
            self._held.setdefault(delivery.endpoint, []).append(delivery.id)
        else:
            return False
        return True

    def _release(self, world: World, sent: Delivery) -> None:
        """Let go what was held until something later had been sent to this endpoint."""
        for delivery_id in self._held.pop(sent.endpoint, []):
            held = world.outbox.by_id[delivery_id]
            if delivery_id != sent.id and held.state == "pending":
                world.outbox.put_off(held, 0.0)

    def _sign(self, text: str, secrets: list[str], faults: dict[str, Fault]) -> str:
        """Return the Stripe-Signature header: one v1 for each secret that is active."""
        # The receiver's clock is the machine's, however far the sandbox's own is ahead.
        moment = int(time.time())
        if stale := faults.get("stale_timestamp"):
            moment -= int(stale.wait())
        if future := faults.get("future_timestamp"):
            moment += int(future.wait())
        if "bad_signature" in faults:
            secrets = ["whsec_that_the_endpoint_does_not_have"]
        signed = [f"v1={_signature(text, secret, moment)}" for secret in secrets]
        # Stripe adds a fake v0 to events of test mode (docs.stripe.com/webhooks).
        return ",".join([f"t={moment}", *signed, f"v0={'0' * 64}"])

    def _post(self, url: str, text: str, signature: str) -> Attempt:
        import urllib3  # noqa: PLC0415

        attempt = Attempt(time=0.0)
        try:
            response = self._pool.request(
                "POST",
                url,
                body=text.encode(),
                headers=HEADERS | {"Stripe-Signature": signature},
                redirect=False,
            )
            attempt.status = response.status
        except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
            # A ValueError: the address cannot be looked up. urllib3 begins with the connection's
            # address, which the delivery has already.
            attempt.error = str(error).rpartition("): ")[2]
        return attempt


def _signature(text: str, secret: str, moment: int) -> str:
    """Return the HMAC-SHA256 of time and body (docs.stripe.com/webhooks, "Verify manually")."""
    return hmac.new(secret.encode(), f"{moment}.{text}".encode(), hashlib.sha256).hexdigest()
