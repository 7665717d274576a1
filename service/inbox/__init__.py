"""The inbox: the durable record of every event, in Redis. What others use of it stands here."""

from service.inbox.inbox import Inbox, memory_is_short
from service.inbox.pipeline import (
    AcceptResult,
    Limits,
    Pipeline,
    Refused,
    Reply,
    Swept,
    save_progress_at_end,
)
from service.inbox.record import Claim, Progress, Record, State, Status

__all__ = [
    "AcceptResult",
    "Claim",
    "Inbox",
    "Limits",
    "Pipeline",
    "Progress",
    "Record",
    "Refused",
    "Reply",
    "State",
    "Status",
    "Swept",
    "memory_is_short",
    "save_progress_at_end",
]
