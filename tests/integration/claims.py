"""How tests get hold of one certain event."""

from __future__ import annotations

from service.inbox import Claim, Inbox, Refused
from service.inbox.keys import QUEUE


def claim_of(inbox: Inbox, key: str) -> Claim | Refused:
    """Claim this event, or learn why not, whatever else waits in the queue."""
    inbox._redis.lpush(f"rq:queue:{QUEUE}", f"{key}-0")
    (answer,) = inbox.claim()
    return answer
