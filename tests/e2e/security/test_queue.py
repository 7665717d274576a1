"""Whoever can write to Redis can put things into RQ's queue. None of it is run."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from redis import Redis
from rq import Callback, Queue, Worker
from rq.job import Job

QUEUE, QUEUE_KEY = "identity", "rq:queue:identity"


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """The file that any forged job would make."""
    return tmp_path / "someone-elses-code-ran"


def forge(client: Redis, proof: Path) -> list[str]:
    """Queue jobs that run a shell in every way RQ knows of; their ids."""
    made = []
    shell, callback = f"touch {proof}", Callback("os.mkdir", timeout=5)
    for serializer in ("json", "pickle"):
        queue = Queue(QUEUE, connection=client, serializer=serializer)
        for number, job_id in enumerate([None, "evt_known-1", "evt_unknown-77", "a:b"]):
            job = queue.enqueue(
                "os.system",
                shell,
                job_id=None if job_id == "a:b" else job_id and f"{job_id}{number}{serializer}",
                on_success=callback,
                on_failure=callback,
                on_stopped=callback,
                result_ttl=1000,
            )
            made.append(job.id)
        made.append(queue.enqueue("subprocess.run", ["touch", str(proof)]).id)
        made.append(queue.enqueue("workers.supervisor.os.system", shell).id)
    # Jobs that only RQ's upkeep would come across.
    for registry in ("rq:wip", "rq:scheduled", "rq:deferred", "rq:failed", "rq:finished"):
        job = Job.create("os.system", (shell,), connection=client, id=f"upkeep-{registry[3:]}")
        job.save()
        client.zadd(f"{registry}:{QUEUE}", {job.id: 1, f"{job.id}:execution": 1})
        made.append(job.id)
    client.rpush(f"rq:queue:{QUEUE}:intermediate", "evt_1-1", *made)
    return made


def litter(client: Redis) -> None:
    """Put into the queue what is not even a job."""
    client.hset("rq:job:bomb-1", mapping={"data": zlib.compress(b"\0" * (200 << 20), 9)})
    client.hset("rq:job:noise-1", mapping={b"\xff\xfe": b"\x80", "data": b"\x80\x04.", "ttl": "x"})
    client.hset("rq:job:hook-1", mapping={"webhook": '{"url": "http://127.0.0.1:1/"}', "data": ""})
    client.rpush("rq:job:list-1", "a list where a hash belongs")
    client.rpush(
        QUEUE_KEY,
        *("bomb-1", "noise-1", "hook-1", "list-1", "", "-1", "%s%s%n", "../../x-1", "a b-1"),
        *(b"\xff\xfe\x00", b"x" * 1_000_000, b"evt_" + b"1" * 100_000 + b"-1", "iw:due-1", "*-1"),
    )


def test_nothing_of_it_runs_and_the_worker_goes_on(system, proof) -> None:
    child = system.worker_child()
    system.settle(system.verify())
    with system.server.client() as client:
        known = next(iter(client.scan_iter("iw:done:*"))).decode().removeprefix("iw:done:")
        forge(client, proof)
        litter(client)
        client.rpush(QUEUE_KEY, f"{known}-999")  # a surplus wake-up: settled, so nothing to do
        system.wait_until(lambda: client.llen(QUEUE_KEY) == 0)
        system.settle(system.verify())

        assert not proof.exists()
        assert system.worker_child() == child, "not even restarted"
        assert "worker_died" not in system.log("worker")
        assert client.exists("rq:job:bomb-1") == 0, "what was taken is gone"
        status = Path(f"/proc/{child}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0])
        assert peak < 150_000, "kB: nothing was decompressed"


@pytest.mark.walk
def test_commands_over_publish_reach_nobody(system) -> None:
    child = system.worker_child()
    with system.server.client() as client:
        system.wait_until(lambda: Worker.count(connection=client))
        for name in [worker.name for worker in Worker.all(connection=client)]:
            for command in ("shutdown", "kill-horse", "stop-job", "stop-execution"):
                message = json.dumps({"command": command, "job_id": "x", "execution_id": "y"})
                assert client.publish(f"rq:pubsub:{name}", message) == 0
            assert client.publish(f"rq:pubsub:{name}", "{") == 0
        assert client.pubsub_channels() == []
    system.settle(system.verify())
    assert system.worker_child() == child
