"""Accepts and works off a batch of events for each line read, and prints what one event cost.

Run by tests/benchmarks/scale/cost.py on the modules of the checkout that is to be measured.
Arguments: port and process id of Redis, events in a batch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from redis import Redis

from identity_webhooks.event import Event
from service.inbox import Claim, Inbox, Progress, save_progress_at_end


def main(port: int, pid: int, size: int) -> None:
    """Measure each batch in the microseconds of CPU and in the commands of Redis."""
    client = Redis(port=port)
    inbox = Inbox(client)
    inbox.sweep()
    clock = Path(f"/proc/{pid}/task/{pid}/schedstat")

    def spent() -> tuple[float, float]:
        return int(clock.read_text().split()[0]) / 1000, time.thread_time() * 1e6

    for number, _ in enumerate(sys.stdin):
        events = [event(each) for each in range(number * size, (number + 1) * size)]
        client.config_resetstat()
        redis, own = spent()
        for each in events:
            inbox.accept(each)
        accepted_redis, accepted_own = spent()
        work_off(inbox)
        end_redis, end_own = spent()
        stats = client.info("commandstats")
        commands = sum(each["calls"] for name, each in stats.items() if "evalsha" not in name)
        found = {
            "accept: Redis us": accepted_redis - redis,
            "accept: client us": accepted_own - own,
            "work: Redis us": end_redis - accepted_redis,
            "work: client us": end_own - accepted_own,
            "commands": commands,
        }
        print(json.dumps({name: value / size for name, value in found.items()}), flush=True)  # noqa: T201


def event(number: int) -> Event:
    """Return an event; four in a row are of one session."""
    session = f"vs_1P{number // 4:08}abcdefghijklmn"
    return Event(f"evt_1P{number:08}abcdefghijklmn", "verified", "snapshot", session, 10**9, False)


def work_off(inbox: Inbox) -> None:
    """Have one handler done with each event, as workers do: the next claim goes with the end."""
    (claim,) = inbox.claim()
    while isinstance(claim, Claim):
        save_progress_at_end(claim, "audit.log_event", Progress("done"))
        with inbox.pipeline() as pipe:
            pipe.finish(claim, "done", outcome="verified")
            following = pipe.claim()
        claim = next(iter(following.result()), None)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
