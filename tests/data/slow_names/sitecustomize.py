"""Makes the resolver hang for one name while a file exists, as one does that gets no answer.

Python imports this first, where this folder is on its path. A real resolver would need a network
namespace of its own, and root.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

_resolve = socket.getaddrinfo
_hangs = Path(os.environ["SLOW_NAMES_WHILE"])


def _getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    if host != "slow.test":
        return _resolve(host, *args, **kwargs)
    ends = time.monotonic() + 60
    while _hangs.exists() and time.monotonic() < ends:
        time.sleep(0.1)
    if time.monotonic() >= ends:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return _resolve("127.0.0.1", *args, **kwargs)


socket.getaddrinfo = _getaddrinfo
