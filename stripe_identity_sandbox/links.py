"""The hosted pages' links: each opens one session, for 48 hours, once."""

import secrets

from stripe_identity_sandbox import lifetimes
from stripe_identity_sandbox.journal import Journal
from stripe_identity_sandbox.objects import Session


class Links:
    """Which session a token opens. The same token ends the url and the client_secret."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._sessions: dict[str, Session] = {}

    def load(self, session: Session) -> None:
        """Take over the links of a stored session."""
        self._sessions |= dict.fromkeys(session.links, session)

    def open(self, session: Session) -> None:
        """Give a session a new link. Earlier ones live on until they expire or one is used."""
        token = secrets.token_hex(20)
        session.links = session.links | {token: self._journal.now()}
        self._sessions[token] = session
        self._journal.touch(session)

    def close(self, session: Session) -> None:
        """End all links of a session."""
        for token in session.links:
            del self._sessions[token]
        session.links = {}
        self._journal.touch(session)

    def session(self, token: str) -> Session | None:
        """Return the session whose hosted page this token opens now."""
        session = self._sessions.get(token)
        alive = session and self._journal.now() < session.links[token] + lifetimes.URL
        return session if alive else None

    def secret_of(self, session: Session) -> str | None:
        """Return the token of a client_secret that can still be used."""
        return session.token(self._journal.now(), lifetimes.CLIENT_SECRET)

    def link_of(self, session: Session) -> str | None:
        """Return the token of a url that can still be opened."""
        return session.token(self._journal.now(), lifetimes.URL)
