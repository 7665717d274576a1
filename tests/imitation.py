"""A server that says less, or other things, of itself than it does: a proxy that edits INFO.

python -m tests.imitation PORT name=value name=    the same as a process, which prints its own port
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading

from tests.chaos.proxy import Proxy

# An answer to INFO: a bulk string, or (RESP3) a verbatim one. It begins with its first section.
_INFO = re.compile(rb"([$=])(\d+)\r\n((?:txt:)?# [A-Z])")


class Imitation(Proxy):
    """Stands in front of a server; `changes` are the fields of INFO by name, None to hide one."""

    def __init__(self, target: int, **changes: str | None) -> None:
        super().__init__(target)
        self.changes = changes

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool = False
    ) -> None:
        if not replies:
            await super()._pump(reader, writer)
            return
        kept = b""
        while part := await reader.read(65_536):
            kept += part
            while found := _INFO.search(kept):
                begin, length = found.start(3), int(found[2])
                if len(kept) < begin + length + 2:
                    break
                text = self._edit(kept[begin : begin + length])
                writer.write(kept[: found.start()] + b"%b%d\r\n" % (found[1], len(text)))
                writer.write(text + b"\r\n")
                kept = kept[begin + length + 2 :]
            else:
                writer.write(kept)
                kept = b""
            await writer.drain()
        if not writer.is_closing():
            writer.write_eof()

    def _edit(self, text: bytes) -> bytes:
        for name, value in self.changes.items():
            line = b"" if value is None else f"{name}:{value}\r\n".encode()
            text, count = re.subn(rb"(?m)^%b:.*\r\n" % name.encode(), line, text)
            if not count and value is not None and text.startswith((b"# Server", b"txt:# Server")):
                text += line
        return text


if __name__ == "__main__":
    given = (each.partition("=") for each in sys.argv[2:])
    with Imitation(int(sys.argv[1]), **{name: value or None for name, _, value in given}) as front:
        sys.stdout.write(f"{front.port}\n")
        sys.stdout.flush()
        threading.Event().wait()
