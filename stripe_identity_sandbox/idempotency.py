"""What was answered under each idempotency key, for 24 hours."""

import itertools

from stripe_identity_sandbox import lifetimes
from stripe_identity_sandbox.journal import Journal
from stripe_identity_sandbox.objects import Answer, Session


class Answers:
    """The saved answers, oldest first."""

    def __init__(self, journal: Journal) -> None:
        self.by_id: dict[str, Answer] = {}
        self._journal = journal

    def load(self, answer: Answer) -> None:
        """Take over a stored answer; one that was being made never will be."""
        if answer.status:
            self.by_id[answer.id] = answer

    def find(self, id_: str) -> Answer | None:
        """Return what was answered under an idempotency key."""
        answer = self.by_id.get(id_)
        return answer if answer and not self._expired(answer) else None

    def begin(self, answer: Answer) -> None:
        """Note that a request with this idempotency key is under way; forget those of old."""
        self.by_id.pop(answer.id, None)
        self._journal.keep(self.by_id, answer)
        for old in list(itertools.takewhile(self._expired, self.by_id.values())):
            self._journal.forget(self.by_id, old)

    def end(self, answer: Answer, status: int, body: str, session: Session | None) -> None:
        """Keep what was answered; status 0 forgets the key, as if it had never been used.

        ``session`` is the one the body shows. It may have been redacted since it was read.
        """
        if status == 0:
            self._journal.forget(self.by_id, answer)
        else:
            answer.status, answer.body = status, body
            if session:
                answer.session = session.id
                if session.redaction == "redacted":
                    answer.body = ""
            self._journal.touch(answer)

    def erase(self, session: Session) -> None:
        """Drop the bodies that show a session."""
        for answer in self.by_id.values():
            if answer.session == session.id:
                answer.body = ""
                self._journal.touch(answer)

    def _expired(self, answer: Answer) -> bool:
        return answer.created <= self._journal.now() - lifetimes.IDEMPOTENCY_KEY
