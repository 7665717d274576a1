"""gunicorn's settings, for every place the receiver runs.

The settings and their limits: https://docs.gunicorn.org/en/stable/settings.html.
"""

import gc
import os
from pathlib import Path

from service.process import keep_memory_private

keep_memory_private()

# No `bind`: gunicorn takes 0.0.0.0:$PORT where a platform sets PORT, else 127.0.0.1:8000.

# `python -m service serve` has checked both. Without it gunicorn fails on what is no number before
# it reads this file.
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)
worker_class = "service.server.worker.LoopWorker"
threads = 4  # for pages; deliveries are answered in the loop

# The settings are read, and Redis is checked, before any worker is started: one message, exit 3.
preload_app = True

timeout = 30  # a worker process silent for so long is replaced
graceful_timeout = 25  # platforms kill 30 s after SIGTERM; draining takes 19 s at most

# One log line per thing that happens, written by the service; no access log beside it.
logger_class = "service.logs.GunicornLogger"
accesslog = None

# On by default since gunicorn 26: a control socket in the home directory. Nobody asked for it.
control_socket_disable = True

# The heartbeat file on a disk that stalls looks like a worker that hangs. Where shared memory is
# read-only, gunicorn takes the directory for temporary files.
_MEMORY = Path("/dev/shm")  # noqa: S108 - gunicorn makes its file there safely (mkstemp)
if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
    worker_tmp_dir = str(_MEMORY)


def when_ready(_: object) -> None:
    """Leave what is loaded by now out of every collection of garbage, before workers are forked.

    They share its memory, and a collection would walk through all of it (docs/design.md).
    """
    gc.collect()
    gc.freeze()
