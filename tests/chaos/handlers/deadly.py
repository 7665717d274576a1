"""A handler that ends its process, in the way DEADLY names, for the change in DEADLY_CHANGE."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from identity_webhooks import Verification, on

HOG = 4 << 30
"""Bytes: more than the limit leaves, as a container's memory limit would."""


@on("*", superseded=True, retries=3)
def deadly(v: Verification) -> None:
    if f"{v.event.session} {v.event.kind}" != os.environ["DEADLY_CHANGE"]:
        return
    match os.environ["DEADLY"]:
        case "exit":
            os._exit(0)
        case "segfault":
            ctypes.string_at(0)
        case "out of memory, killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "out of memory, refused":
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
            bytearray(HOG)
