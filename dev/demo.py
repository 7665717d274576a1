"""The way of every event, on this machine: `make demo`.

Takes verifications through all six types of events, each delivered as snapshot and as thin event,
to the service's own processes, and shows how each change was handled: once, by whichever form came
first. Ends with code 0 only if every one of them was.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import requests
import stripe

from dev.local import API_KEY, LOOPBACK, Failure, Processes, everything, free_port
from identity_webhooks.event import Kind
from service import connection
from service.inbox import Inbox, Record
from service.settings import Settings
from service.text import table

FORMS = 2
"""Deliveries of one change: as a snapshot and as a thin event, under two ids."""

# How the attempts of each verification end, and what becomes of it then.
STORIES: list[tuple[list[str], str]] = [
    (["verified"], "redact"),
    (["document_expired", "verified"], ""),
    (["selfie_face_mismatch"], "cancel"),
    (["document_unverified_other"], ""),
    (["under_supported_age"], ""),
]


@click.command()
@click.option("--time-limit", default=90.0, show_default=True, help="Seconds for all events.")
def demo(time_limit: float) -> None:
    """Show the way of every event, from Stripe's delivery to the handler."""
    started = time.monotonic()
    ports = {"web": free_port(), "sandbox": free_port(), "redis": free_port()}
    try:
        with tempfile.TemporaryDirectory(prefix="identity-webhooks-") as home:
            click.echo("starting Redis, web, worker, periodic and sandbox ...")
            with everything(Path(home), ports) as processes:
                inbox = empty_inbox()
                api = f"http://{LOOPBACK}:{ports['sandbox']}"
                click.echo(f"{len(STORIES)} people verify themselves ...\n")
                records = play(api, inbox, processes, time.monotonic() + time_limit)
                click.echo(f"\n{report(records)}\n")
                click.echo(summary(records, deliveries(api)))
    except Failure as failure:
        sys.exit(f"\nthe demo failed: {failure}")
    click.echo(f"Everything is stopped again, after {time.monotonic() - started:.0f} s.")


def empty_inbox() -> Inbox:
    """Return the inbox; Failure when it holds events already."""
    inbox = Inbox(connection.connect(Settings.load("tool")))
    if next(inbox.records("all", 1), None):
        raise Failure("the inbox at REDIS_URL is not empty: unset REDIS_URL")
    return inbox


def play(api: str, inbox: Inbox, processes: Processes, deadline: float) -> list[Record]:
    """Play the stories side by side, each going on when the last event has been handled.

    Returns:
        The record of every change, in the order of the stories.

    Raises:
        Failure: an event was not handled, a process ended, or the time was over.
    """
    client = stripe.StripeClient(API_KEY, base_addresses={"api": api})
    # Deliveries overtake each other: about half of the snapshots come after their thin event.
    late = {"kind": "delay", "event_type": "identity.*", "rate": 0.5, "seconds": 0.5}
    requests.post(f"{api}/_sandbox/faults", json=late, timeout=10).raise_for_status()
    stories = [
        verification(client, api, f"user-{number}", attempts, end)
        for number, (attempts, end) in enumerate(STORIES, 1)
    ]
    waiting = {story: next(story) for story in stories}
    expected = Counter(waiting.values())
    while waiting or len(deliveries(api)) < FORMS * expected.total():
        processes.check()
        records = list(inbox.records("all", 1000))
        changes = [r for r in records if r.outcome != "twin"]
        settled = Counter((r.event.session, r.event.kind) for r in changes if is_handled(r))
        for story, step in list(waiting.items()):
            if settled[step] == expected[step]:
                show_progress(step)
                try:
                    waiting[story] = next(story)
                    expected[waiting[story]] += 1
                except StopIteration:
                    del waiting[story]
        if time.monotonic() > deadline:
            missing = ", ".join(" ".join(step) for step in waiting.values())
            raise Failure(f"not handled in time: {missing}{processes.tail('worker')}")
        time.sleep(0.05)
    order = [session for session, kind in expected if kind == "created"]
    return sorted(changes, key=lambda r: (order.index(r.event.session), r.accepted))


def verification(
    client: stripe.StripeClient, api: str, user: str, attempts: list[str], end: str
) -> Iterator[tuple[str, Kind]]:
    """Take one verification from its creation to its end, and stop after each change.

    Yields:
        The session, and the kind of event that Stripe makes of the change.
    """
    sessions = client.v1.identity.verification_sessions
    session = sessions.create({"type": "document", "client_reference_id": user}).id

    def tell(route: str, **form: str) -> None:
        """Do what a person does on the hosted page, and what time does."""
        url = f"{api}/_sandbox/sessions/{session}/{route}"
        requests.post(url, data=form, timeout=10).raise_for_status()

    yield session, "created"
    for outcome in attempts:
        tell("submit", outcome=outcome, hold="true")
        yield session, "processing"
        tell("complete")
        yield session, "verified" if outcome == "verified" else "requires_input"
    if end == "cancel":
        sessions.cancel(session)
        yield session, "canceled"
    elif end == "redact":
        sessions.redact(session)
        tell("complete")
        yield session, "redacted"


def deliveries(api: str) -> list[str]:
    """Return the ids of the events that were delivered and answered 2xx."""
    answer = requests.get(f"{api}/_sandbox/deliveries", timeout=10)
    answer.raise_for_status()
    return [d["event"] for d in answer.json() if d["attempts"][-1:] and is_2xx(d["attempts"][-1])]


def is_2xx(attempt: dict[str, object]) -> bool:
    """Return whether this attempt of a delivery was answered with success."""
    return str(attempt["status"]).startswith("2")


def is_handled(record: Record) -> bool:
    """Return whether a handler ran to its end for this event.

    Raises:
        Failure: that will not happen any more.
    """
    statuses = {progress.status for progress in record.handlers.values()}
    if record.state == "dead" or (record.state == "done" and "done" not in statuses):
        why = [f"{name}: {p.status} {p.reason}" for name, p in record.handlers.items()]
        raise Failure(f"{record.key} ({record.event.kind}) was not handled: {', '.join(why)}")
    return record.state == "done"


def show_progress(step: tuple[str, Kind]) -> None:
    """Say that a change has been handled."""
    session, kind = step
    click.echo(f"  {short(session)}  {click.style(kind, fg=COLOURS.get(kind))}")


COLOURS = {"verified": "green", "requires_input": "yellow", "canceled": "red", "redacted": "cyan"}


def report(records: list[Record]) -> str:
    """Return the table of what each handler did."""
    rows = [
        (
            f"{r.event.kind} {short(r.event.id)}",
            r.event.form,
            short(r.event.session),
            name,
            r.outcome,
            r.reason,
            progress.ms,
        )
        for r in records
        for name, progress in r.handlers.items()
    ]
    return table(("EVENT", "FORM", "SESSION", "HANDLER", "OUTCOME", "REASON", "MS"), rows)


def summary(records: list[Record], delivered: list[str]) -> str:
    """Return the demo in a sentence."""
    kinds = len({r.event.kind for r in records})
    reasons = len({r.reason for r in records if r.reason})
    took = [progress.ms for r in records for progress in r.handlers.values()]
    return (
        f"{len(records)} changes of {kinds} types; verifications failed for {reasons} reasons.\n"
        f"Each came in {FORMS} forms ({len(delivered)} deliveries) and was handled once.\n"
        f"From accepted to handled: median {statistics.median(took):.0f} ms,"
        f" longest {max(took)} ms."
    )


def short(identifier: str) -> str:
    """Return an id by its prefix and its end: `vs_...Qm3x`."""
    return f"{identifier[:3]}...{identifier[-5:]}" if len(identifier) > 12 else identifier


if __name__ == "__main__":
    demo()
