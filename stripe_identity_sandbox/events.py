"""The events that happened, found by either of their ids, for 30 days."""

from stripe_identity_sandbox import lifetimes
from stripe_identity_sandbox.journal import Journal
from stripe_identity_sandbox.objects import Event, Session


class Events:
    """The events of every account, oldest first."""

    def __init__(self, journal: Journal) -> None:
        self.by_id: dict[str, Event] = {}
        self._journal = journal
        self._thin: dict[str, str] = {}
        self._of_session: dict[str, list[str]] = {}

    def add(self, event: Event) -> None:
        """Keep an event, a new one or one that was stored."""
        self._journal.keep(self.by_id, event)
        self._thin[event.thin_id] = event.id
        self._of_session.setdefault(event.session, []).append(event.id)

    def find(self, event_id: str) -> Event | None:
        """Return an event by its id in either form."""
        event = self.by_id.get(self._thin.get(event_id, event_id))
        return event if event and self._alive(event) else None

    def alive(self) -> list[Event]:
        """Return the events that can still be listed, oldest first."""
        return [event for event in self.by_id.values() if self._alive(event)]

    def of(self, session: Session) -> list[Event]:
        """Return all events of a session, oldest first."""
        return [self.by_id[event_id] for event_id in self._of_session[session.id]]

    def erase(self, session: Session, redacted: dict[str, object]) -> None:
        """Take personal data and secrets out of what the events show of a session."""
        kept: dict[str, object] = {"metadata": {}, "client_secret": None, "url": None}
        for event in self.of(session):
            if "provided_details" in event.snapshot:
                kept["provided_details"] = redacted.get("provided_details")
            event.snapshot = event.snapshot | kept
            self._journal.touch(event)

    def _alive(self, event: Event) -> bool:
        return event.created > self._journal.now() - lifetimes.EVENT
