"""Every event on its way to every endpoint: when it is tried, and what came of it."""

import heapq
import itertools

from stripe_identity_sandbox.endpoints import Endpoints
from stripe_identity_sandbox.events import Events
from stripe_identity_sandbox.journal import Journal, new_id
from stripe_identity_sandbox.objects import (
    Attempt,
    Delivery,
    Endpoint,
    Event,
    Json,
    event_view,
    notification_view,
)


class Outbox:
    """The deliveries, and the order in which they are due.

    ``retries`` are the waits in seconds between the tries of a delivery.
    """

    def __init__(
        self,
        journal: Journal,
        events: Events,
        endpoints: Endpoints,
        *,
        retries: tuple[float, ...],
        api_version: str,
    ) -> None:
        self.by_id: dict[str, Delivery] = {}
        self._journal = journal
        self._events = events
        self._endpoints = endpoints
        self._retries = retries
        self._api_version = api_version
        self._order = itertools.count()
        self._due: list[tuple[float, int, str]] = []

    def load(self, delivery: Delivery) -> None:
        """Take over a stored delivery; a try that was under way has to be made again."""
        if delivery.state == "sending":
            delivery.state, delivery.due = "pending", self._journal.now()
        self.by_id[delivery.id] = delivery
        self._send_when_due(delivery)

    def send(self, event: Event, *, manual: bool = False) -> list[Delivery]:
        """Send an event to every endpoint that takes it.

        ``manual`` is the button "resend": one try, and the automatic ones go on beside it. An
        endpoint that was made after the event gets it then.
        """
        deliveries = [
            Delivery(
                id=new_id("del_"),
                event=event.id,
                endpoint=endpoint.id,
                form=endpoint.form,
                manual=manual,
                due=self._journal.now(),
            )
            for endpoint in self._endpoints.subscribed(event)
        ]
        for delivery in deliveries:
            self._journal.keep(self.by_id, delivery)
            event.deliveries.append(delivery.id)
            self._send_when_due(delivery)
        self._journal.touch(event)
        return deliveries

    def next_due(self) -> float | None:
        """Return when something is to be sent next, by the sandbox's clock."""
        return self._due[0][0] if self._due else None

    def take_due(self) -> list[Delivery]:
        """Return the deliveries to try now, each marked as sending."""
        taken = []
        while self._due and self._due[0][0] <= self._journal.now():
            due, _, delivery_id = heapq.heappop(self._due)
            delivery = self.by_id[delivery_id]
            if delivery.due != due:
                continue
            endpoint = self._endpoints.by_id.get(delivery.endpoint)
            delivery.due = None
            if endpoint is None:
                delivery.state = "canceled"
            elif endpoint.status == "enabled":
                delivery.state = "sending"
                taken.append(delivery)
            self._journal.touch(delivery)
        return taken

    def put_off(self, delivery: Delivery, seconds: float) -> None:
        """Make the next try of a delivery so many seconds from now."""
        delivery.state, delivery.due = "pending", self._journal.now() + seconds
        self._journal.touch(delivery)
        self._send_when_due(delivery)

    def record(self, delivery: Delivery, attempt: Attempt) -> None:
        """Note one try; a failed one is tried again on Stripe's schedule while there is one.

        Further tries of a duplicate change nothing any more.
        """
        delivery.attempts.append(attempt)
        self._journal.touch(delivery)
        if attempt.status is not None and 200 <= attempt.status < 300:
            delivery.state, delivery.due = "delivered", None
        elif delivery.state == "sending":
            if delivery.tries < len(self._retries) and not delivery.manual:
                self.put_off(delivery, self._retries[delivery.tries])
                delivery.tries += 1
            else:
                delivery.state = "failed"

    def drop(self, delivery: Delivery, attempt: Attempt) -> None:
        """Lose a delivery for good."""
        delivery.state = "dropped"
        delivery.attempts.append(attempt)
        self._journal.touch(delivery)

    def pending(self, event: Event) -> int:
        """Return how many endpoints have not answered this event with a 2xx."""
        deliveries = [self.by_id[id_] for id_ in event.deliveries]
        wanted = {d.endpoint for d in deliveries if d.state != "canceled"}
        return len(wanted - {d.endpoint for d in deliveries if d.state == "delivered"})

    def event_view(self, event: Event, endpoint: Endpoint | None = None) -> Json:
        """Return the snapshot form of an event, as the API or an endpoint shows it."""
        own = endpoint.api_version if endpoint else None
        view = event_view(
            event, api_version=own or self._api_version, pending_webhooks=self.pending(event)
        )
        if endpoint and endpoint.account:
            view.pop("account", None)  # only platforms are told whose event it is
        return view

    def payload(self, delivery: Delivery) -> Json:
        """Return the body a delivery carries."""
        event, endpoint = (
            self._events.by_id[delivery.event],
            self._endpoints.by_id[delivery.endpoint],
        )
        if delivery.form == "snapshot":
            return self.event_view(event, endpoint)
        return notification_view(event) | ({"context": None} if endpoint.account else {})

    def change_endpoint(self, endpoint: Endpoint, **fields: object) -> None:
        """Set fields; an endpoint that is enabled again gets what is still due."""
        resumed = endpoint.status == "disabled" and fields.get("status") == "enabled"
        for name, value in fields.items():
            setattr(endpoint, name, value)
        self._journal.touch(endpoint)
        if resumed:
            for delivery in self.by_id.values():
                missed = delivery.state == "pending" and delivery.due is None
                if delivery.endpoint == endpoint.id and missed:
                    self.put_off(delivery, 0.0)

    def drop_endpoint(self, endpoint: Endpoint) -> None:
        """Delete an endpoint; what it has not received yet is not sent any more."""
        self._journal.forget(self._endpoints.by_id, endpoint)
        for delivery in self.by_id.values():
            if delivery.endpoint == endpoint.id and delivery.state in {"pending", "sending"}:
                delivery.state, delivery.due = "canceled", None
                self._journal.touch(delivery)

    def _send_when_due(self, delivery: Delivery) -> None:
        if delivery.due is not None:
            heapq.heappush(self._due, (delivery.due, next(self._order), delivery.id))
