"""Runs a WSGI application (PEP 3333) for one request that is whole."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from service import logs
from service.server.http import Request, Response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

log = logs.get(__name__)


def run(app: WSGIApplication, request: Request, client: str, server: tuple[str, int]) -> Response:
    """Call the application and collect its whole response; 500 when it raises."""
    status, headers, written = "", [("", "")], bytearray()

    def start_response(
        given: str, fields: list[tuple[str, str]], _: object = None
    ) -> Callable[[bytes], object]:
        nonlocal status, headers
        status, headers = given, fields
        return written.extend

    try:
        parts = app(environ(request, client, server), start_response)
        try:
            body = b"".join([bytes(written), *parts])
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return Response(int(status[:3]), body, headers)
    except Exception:
        log.exception("request_failed")
        return Response(500)


def environ(request: Request, client: str, server: tuple[str, int]) -> WSGIEnvironment:
    """Return the environment of a request.

    `client` is the address of the peer; forwarding headers are not evaluated.
    """
    _, _, query = request.target.partition("?")
    variables: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(request.path).decode("latin-1"),
        "QUERY_STRING": query.partition("#")[0],
        "RAW_URI": request.target,
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{request.version}",
        "REMOTE_ADDR": client,
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in request.headers:
        key = name.decode("latin-1").upper()
        if "_" in key or key in {"CONTENT-LENGTH", "TRANSFER-ENCODING", "EXPECT"}:
            # An underscore could pose as a dash; the others were dealt with by the server.
            continue
        key = key.replace("-", "_")
        key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
        text = value.decode("latin-1")
        variables[key] = f"{variables[key]},{text}" if key in variables else text
    return variables
