"""The RQ job that the inbox writes is one that RQ itself would have written."""

from __future__ import annotations

import pytest
from rq import Queue
from rq.job import Job

from identity_webhooks.event import Event
from service.inbox import Inbox
from service.inbox.keys import QUEUE

EVENT = Event("evt_1", "verified", "snapshot", "vs_1", 1_700_000_000, livemode=False)
TIMES = {"created_at", "enqueued_at"}


def fields(job: Job) -> dict[str, object]:
    """What RQ's worker reads of a job."""
    stored = {name: value for name, value in job.to_dict().items() if name not in TIMES}
    del stored["data"]
    return stored | {"call": (job.func_name, job.args, job.kwargs), "ttl": job.ttl}


@pytest.mark.usefixtures("within_an_hour")
def test_our_job_reads_like_rqs_own(redis) -> None:
    queue = Queue(QUEUE, connection=redis, serializer="json")
    theirs = queue.enqueue(
        "workers.jobs.process_event",
        job_id="evt_1-0",
        job_timeout=-1,
        result_ttl=0,
        failure_ttl=3600,
        description=EVENT.key,
    )
    keys_of_theirs = set(redis.keys("rq:*"))
    Inbox(redis).accept(EVENT)
    ours = Job.fetch("evt_1-1", connection=redis, serializer="json")

    assert fields(ours) == fields(Job.fetch(theirs.id, connection=redis, serializer="json"))
    assert ours.created_at.date() == theirs.created_at.date()
    assert ours.enqueued_at.date() == theirs.enqueued_at.date()
    assert set(redis.keys("rq:*")) == keys_of_theirs | {b"rq:job:evt_1-1"}
    assert queue.job_ids == ["evt_1-0", "evt_1-1"]
    assert redis.smembers("rq:queues") == {b"rq:queue:identity"}


def test_rq_can_take_and_delete_it(redis) -> None:
    Inbox(redis).accept(EVENT)
    queue = Queue(QUEUE, connection=redis, serializer="json")

    job, _ = Queue.dequeue_any([queue], None, connection=redis, serializer="json")
    job.delete()

    assert (job.func_name, job.args) == ("workers.jobs.process_event", [])
    assert queue.is_empty()
    assert not redis.exists("rq:job:evt_1-1")
