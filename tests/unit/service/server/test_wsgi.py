"""`service.server.wsgi`: what an application sees of a request."""

from __future__ import annotations

from typing import Any

import pytest

from service.server.http import Request
from service.server.wsgi import environ


def seen(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """Return what the application sees of the headers."""
    request = Request("POST", "/x", "/x", "1.1", list(headers), b"body", keep_alive=True)
    variables = environ(request, "192.0.2.1", ("127.0.0.1", 80))
    return {k: v for k, v in variables.items() if k.startswith(("HTTP_", "CONTENT_"))}


@pytest.mark.parametrize(
    ("headers", "variables"),
    [
        ([(b"X-User", b"ann")], {"HTTP_X_USER": "ann"}),
        ([(b"x-uSER", b"ann")], {"HTTP_X_USER": "ann"}),
        ([(b"X-User", b"ann"), (b"x-user", b"bob")], {"HTTP_X_USER": "ann,bob"}),
        ([(b"X-User", b"\xe9")], {"HTTP_X_USER": "\xe9"}),
        ([(b"Content-Type", b"text/plain")], {"CONTENT_TYPE": "text/plain"}),
        ([(b"X_User", b"eve")], {}),
        ([(b"X_User", b"eve"), (b"X-User", b"ann")], {"HTTP_X_USER": "ann"}),
        ([(b"X-User", b"ann"), (b"x-us_er", b"eve"), (b"X_User", b"eve")], {"HTTP_X_USER": "ann"}),
        ([(b"Content_Type", b"eve")], {}),
        ([(b"Content-Length", b"9")], {}),
        ([(b"Content_Length", b"9")], {}),
        ([(b"Transfer-Encoding", b"chunked"), (b"Expect", b"100-continue")], {}),
    ],
)
def test_no_header_poses_as_another(headers, variables) -> None:
    assert seen(*headers) == {"CONTENT_LENGTH": "4"} | variables
