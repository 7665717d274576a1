"""Events to accept, and how tests get hold of a certain one."""

from __future__ import annotations

from service.event import Event
from service.inbox import Claim, ClaimResult, Inbox
from service.inbox.keys import QUEUE


def event(name: str = "1", session: str = "1", **changes: object) -> Event:
    fields: dict[str, object] = {"kind": "verified", "form": "thin", "created": 1_700_000_000}
    return Event(f"evt_{name}", session=f"vs_{session}", livemode=False, **(fields | changes))


def claim_of(inbox: Inbox, key: str) -> ClaimResult:
    """Claim this event, or learn why not, whatever else waits in the queue."""
    inbox._redis.lpush(f"rq:queue:{QUEUE}", f"{key}-0")
    (answer,) = inbox.claim()
    return answer


def claim_next(inbox: Inbox) -> ClaimResult | None:
    return next(iter(inbox.claim()), None)


def claimed(inbox: Inbox, key: str = "evt_1") -> Claim:
    claim = claim_of(inbox, key)
    assert isinstance(claim, Claim)
    return claim


def claimed_again(inbox: Inbox, key: str) -> Claim:
    """Claim it, whoever had it and whatever wakes it."""
    for field in ("lease", "not_before"):
        inbox._redis.hdel(f"iw:evt:{inbox.find(key).key}", field)
    inbox._redis.delete("iw:session::vs_1", "iw:waiting::vs_1")
    return claimed(inbox, key)
