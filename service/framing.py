"""Where a request ends in the bytes that come, and the bytes of an answer (RFC 9112).

Does no I/O. service/gunicorn_worker.py reads and sends.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from typing import Any

from gunicorn import util

from service.app import MAX_BODY

MAX_HEAD = 32_768
"""Bytes of request line and headers, at most; gunicorn's own limits are for each line."""


class Incoming:
    """The bytes of a connection, cut into requests. Does no I/O.

    Only the framing is looked at, to know when a request is complete. gunicorn's parser judges it,
    and where the two understand it differently the connection ends.
    """

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.wants_continue = False
        self._begin()

    def take(self, *, ended: bool) -> tuple[bytes, bool] | None:
        """Take the first request out, as soon as it is whole or can no longer become so.

        Args:
            ended: no more bytes will come.

        Returns:
            Its bytes, and whether they are all of it; None while more have to come.
        """
        end = self._find_end()
        if end is None and ended:
            end = _NEVER
        if end is None or not self.buffer:
            return None
        whole = end != _NEVER
        request = bytes(self.buffer[:end]) if whole else bytes(self.buffer)
        del self.buffer[: len(request)]
        self._begin()
        return request, whole

    def _begin(self) -> None:
        self._at = 0  # what is before was looked at
        self._chunked: bool | None = None  # None until the head is there
        self.wants_continue = False

    def _find_end(self) -> int | None:
        """Return where the first request ends: None when that is not here yet, or `_NEVER`."""
        if self._chunked is None:
            end = self.buffer.find(b"\r\n\r\n", self._at)
            if end < 0:
                self._at = max(0, len(self.buffer) - 3)
                return _NEVER if len(self.buffer) > MAX_HEAD else None
            head = bytes(self.buffer[: end + 2])
            self._at = end + 4
            self._chunked = _CHUNKED.search(head) is not None
            self.wants_continue = _CONTINUE.search(head) is not None
            if not self._chunked and (length := _LENGTH.search(head)):
                if int(length[1]) > MAX_BODY:
                    return _NEVER
                self._at += int(length[1])
        if self._chunked:
            return self._find_last_chunk()
        return self._at if self._at <= len(self.buffer) else None

    def _find_last_chunk(self) -> int | None:
        while self._at <= 2 * MAX_BODY:
            line = self.buffer.find(b"\r\n", self._at, self._at + _MAX_CHUNK_LINE)
            if line < 0:
                return _NEVER if len(self.buffer) >= self._at + _MAX_CHUNK_LINE else None
            size = _CHUNK_SIZE.match(bytes(self.buffer[self._at : line]))
            if size is None:
                return _NEVER
            if int(size[1], 16) == 0:
                end = self.buffer.find(b"\r\n\r\n", line)  # with or without trailers
                too_long = end < 0 and len(self.buffer) > line + MAX_HEAD
                return _NEVER if too_long else end + 4 if end >= 0 else None
            self._at = line + 2 + int(size[1], 16) + 2
        return _NEVER


_NEVER = 0
_MAX_CHUNK_LINE = 64
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding")
_CONTINUE = re.compile(rb"(?i)\r\nexpect:[ \t]*100-continue[ \t]*\r")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,6})[ \t]*(?:;|\Z)")


class Answer:
    """What an application answers: in one piece, so that its length is known."""

    def __init__(self, request: Any, *_: Any) -> None:
        self._request = request
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self.body = bytearray()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], _: object = None
    ) -> Callable[[bytes], None]:
        """Take status and headers (PEP 3333). Nothing is sent yet, so they may come again."""
        self._status, self._headers = status, headers
        return self.body.extend

    def encode(self, *, keep: bool) -> bytes:
        """Return the bytes to send; `keep` tells the client that it may ask again."""
        has_no_body = self._request.method == "HEAD" or self._status[:3] in _WITHOUT_BODY
        lines = [
            f"HTTP/1.1 {self._status}",
            f"Date: {_http_date(int(time.time()))}",
            f"Connection: {'keep-alive' if keep else 'close'}",
            *(f"{name}: {value}" for name, value in self._headers if name.lower() not in _FRAMING),
        ]
        if not has_no_body:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join(lines)
        if not self._status or head.count("\r") + head.count("\n") != 2 * (len(lines) - 1):
            raise ValueError("not a status and headers")
        return f"{head}\r\n\r\n".encode("latin-1") + (b"" if has_no_body else self.body)


_WITHOUT_BODY = {"204", "304"}
_FRAMING = {"connection", "content-length", "date", "server", "transfer-encoding", "upgrade"}
"""Headers that are the server's to say."""


@functools.lru_cache(1)
def _http_date(second: int) -> str:
    return util.http_date(second)
