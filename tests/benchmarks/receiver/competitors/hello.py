"""What the frame alone costs: the body is read, nothing is done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, request

flask_app = Flask(__name__)


@flask_app.post("/webhooks/stripe")
def hello() -> str:
    request.get_data()
    return "hello"


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]
