"""URLs in settings, split once: a host that can be looked up, a port that can be connected to.

Python's own functions drop line breaks in silence, take any text for a host, and raise a
UnicodeError where a name is looked up that is none.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, unquote, urlsplit

_LABEL = re.compile(rb"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
"""A part of a name (RFC 1123), and `_`, which container engines put into names."""


def split(url: str) -> SplitResult:
    """Split a URL whose host, if it has one, can be looked up.

    Raises:
        ValueError: in words that quote nothing of the URL, to go on after "cannot be read: ".
    """
    if re.search(r"[\t\r\n]", url):
        raise ValueError("it holds a tab or a line break")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ValueError("its host is no name and no address") from None
    if "," in parts.netloc.rpartition("@")[2]:
        raise ValueError("it names several hosts, where one has to stand")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is no number from 1 to 65535")
    if host and not is_host(unquote(host)):
        raise ValueError("its host is no name and no address")
    return parts


def is_host(host: str) -> bool:
    """Whether a host can be looked up: a name as DNS takes it, or an address."""
    try:
        if ":" in host:
            return bool(ipaddress.IPv6Address(host))
        name = host.encode("idna").removesuffix(b".")
    except ValueError:  # a UnicodeError is one, too
        return False
    return len(name) <= 253 and all(map(_LABEL.match, name.split(b".")))
