"""The inbox: the durable record of every event, in Redis. Import it from here."""

from service.inbox.connections import asking
from service.inbox.inbox import Inbox, memory_is_short, pending_limit
from service.inbox.pipeline import (
    AcceptResult,
    ClaimResult,
    Limits,
    Pipeline,
    Refused,
    Reply,
    Swept,
    save_progress_at_end,
)
from service.inbox.record import Act, Attempt, Claim, Progress, Quarantined, Record, State, Status
from service.inbox.search import Filter, Page, Search

__all__ = [
    "AcceptResult",
    "Act",
    "Attempt",
    "Claim",
    "ClaimResult",
    "Filter",
    "Inbox",
    "Limits",
    "Page",
    "Pipeline",
    "Progress",
    "Quarantined",
    "Record",
    "Refused",
    "Reply",
    "Search",
    "State",
    "Status",
    "Swept",
    "asking",
    "memory_is_short",
    "pending_limit",
    "save_progress_at_end",
]
