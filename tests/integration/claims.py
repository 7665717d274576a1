"""How tests get hold of one certain event."""

from __future__ import annotations

from service.inbox import QUEUE, Inbox, Refused
from service.record import Claim


def claim_of(inbox: Inbox, key: str) -> Claim | Refused:
    """Claim this event, or learn why not, whatever else waits in the queue."""
    inbox._redis.lpush(f"rq:queue:{QUEUE}", f"{key}-0")
    (answer,) = inbox.take()
    return answer
