"""What the server uses of gunicorn and redis-py without their promise: a release may change it."""

from __future__ import annotations

import inspect
import socket

from gunicorn.config import Config
from gunicorn.workers.base import Worker
from redis import Redis

from service.server.worker import LoopWorker


def test_what_the_worker_class_overrides_is_there_to_be_overridden() -> None:
    ours = {name for name, value in vars(LoopWorker).items() if inspect.isfunction(value)}
    assert {name for name in ours if not name.startswith("_")} == {"init_signals", "run"}
    assert ours - {"_serve"} <= set(dir(Worker))


def test_gunicorn_calls_what_the_worker_class_overrides() -> None:
    source = inspect.getsource(Worker.init_process)
    assert "self.init_signals()" in source
    assert "self.run()" in source
    assert source.index("self.init_signals()") < source.index("self.load_wsgi()")


def test_a_worker_has_what_ours_reads() -> None:
    given = inspect.signature(Worker).parameters
    assert list(given) == ["age", "ppid", "sockets", "app", "timeout", "cfg", "log"]
    made = inspect.getsource(Worker.__init__) + inspect.getsource(Worker.load_wsgi)
    for name in ("ppid", "sockets", "cfg", "log", "wsgi"):
        assert f"self.{name} = " in made, name
    assert callable(Worker.notify)
    assert "threads" in Config().settings


def test_a_connection_of_redis_py_has_its_socket(redis: Redis) -> None:
    pool = redis.connection_pool
    connection = pool.connection_class(**pool.connection_kwargs)
    connection.connect()
    assert isinstance(vars(connection)["_sock"], socket.socket)
    connection.disconnect()
