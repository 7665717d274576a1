"""Takes so many events into the inbox, as the receiver does: each of a session of its own."""

from __future__ import annotations

import os
import sys
import time

from redis import Redis

from identity_webhooks.event import Event
from service.inbox import AcceptResult, Inbox


def main(count: int) -> None:
    inbox = Inbox(Redis.from_url(os.environ["REDIS_URL"]))
    for number in range(count):
        event = Event(
            id=f"evt_{number:026}",
            kind="verified",
            form="snapshot",
            session=f"vs_{number:026}",
            created=int(time.time()),
            livemode=False,
        )
        if inbox.accept(event) is not AcceptResult.NEW:
            raise RuntimeError(f"{event.id} was not taken")


if __name__ == "__main__":
    main(int(sys.argv[1]))
