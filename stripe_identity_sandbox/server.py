"""The web server of the sandbox: one process, many threads, because the state is in its memory."""

import contextlib
import ipaddress
import json
import logging
import os
import socket
import string
import struct
import sys
from collections.abc import Callable, Container
from typing import Any
from urllib.parse import quote, urlsplit

from flask import Flask, Response, request
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.sock import create_sockets
from gunicorn.workers.gthread import ThreadWorker
from werkzeug.exceptions import HTTPException

from stripe_identity_sandbox import control, hosted, pages
from stripe_identity_sandbox.api import Api
from stripe_identity_sandbox.delivery import SENDERS, Deliverer
from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.objects import Illegal
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.wire import ApiError

#: Threads are started when they are needed. More than ``faults.MOST_WAITING``, so that answers that
#: wait leave room for others.
THREADS = 64
#: Seconds after which a client that sends no more of its request, or reads no more of its answer,
#: frees its thread.
SILENCE = 10
#: Seconds for which a connection that ends waits for what its client still sends, and how many
#: pieces of it are read, so that the last answer is not lost with them.
LINGER, MAX_DRAINED = 2.0, 16
#: Seconds for which the end waits for a step that is being made.
LAST_STEP = 1.0
#: In bytes.
MAX_BODY = 16_777_216
#: In characters. Stripe's own limit is not published; what the API documents fits easily.
MAX_URL = 65_536


def create_app(world: World, faults: Faults, hosts: Container[str] | None = ()) -> Flask:
    """Return the WSGI application: Stripe's API, the control routes and the pages.

    ``hosts`` are the names, besides those of loopback, by which the control routes are reached.
    None: any.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    api = Api(world, faults)
    api.install(app)
    control.install(app, world, faults)
    hosted.install(app, world)
    pages.install(app, world, faults)
    app.register_error_handler(ApiError, api.refuse)

    @app.errorhandler(Illegal)
    def illegal(error: Illegal) -> Response:
        return api.refuse(ApiError(400, str(error)))

    @app.errorhandler(404)
    @app.errorhandler(405)
    def unknown(_: HTTPException) -> Response:
        return api.unknown_route()

    @app.errorhandler(400)
    @app.errorhandler(413)
    def unreadable(error: HTTPException) -> Response:
        return api.refuse(ApiError(error.code or 400, str(error.description)))

    @app.errorhandler(500)
    def broken(_: HTTPException) -> Response:
        # The traceback is in the log of the sandbox.
        return api.refuse(ApiError(500, "The sandbox has a bug: see its log.", kind="api_error"))

    @app.before_request
    def no_endless_url() -> None:
        if len(request.path) + len(request.query_string) > MAX_URL:
            raise ApiError(414, f"The URL is longer than {MAX_URL} characters.")

    @app.before_request
    def no_other_site() -> None:
        # A page of another origin must not drive a sandbox that listens on the same machine.
        origin = request.headers.get("Origin")
        if origin and origin.partition("://")[2] != request.host:
            raise ApiError(403, f"Requests from {origin} are not served.")

    @app.before_request
    def no_other_name() -> None:
        # The name of another site may be made to mean this machine; its pages are of one origin
        # with the sandbox then.
        controls = request.path.startswith("/_sandbox")
        if controls and hosts is not None and not _is_here(request.host, hosts):
            raise ApiError(
                403,
                f"The control routes are not served as {request.host}: use the address that the"
                " sandbox printed.",
            )

    return app


def _is_here(host: str, others: Container[str]) -> bool:
    """Say whether a Host header names loopback, or one of the others."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in others or name == "localhost" or name.endswith(".localhost"):
            return True
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _App(BaseApplication):
    """What gunicorn's worker asks for: a configuration and a WSGI callable."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)


class _Worker(ThreadWorker):
    """gunicorn's threaded worker without a master: a second process would have a second state."""

    #: Called before the process ends.
    stop: Callable[[], None]

    def handle(self, conn: Any) -> Any:
        """Answer a request; returns whether the connection is kept."""
        kept = super().handle(conn)
        if not kept:
            # gunicorn waits for the client's end, for up to 2 s each, in the one thread that
            # accepts connections. Done here, that finds nothing to wait for.
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_WR)
                conn.sock.settimeout(LINGER)
                for _ in range(MAX_DRAINED):
                    if not conn.sock.recv(4096):
                        break
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RD)
        return kept

    def handle_exit(self, sig: int, frame: object) -> None:
        # Every step is stored when it is made, so there is nothing to finish or to lose.
        self.stop()
        os._exit(0)

    handle_quit = handle_exit

    def is_parent_alive(self) -> bool:
        return True


def serve(
    host: str,
    port: int,
    make_world: Callable[[str], World],
    close: Callable[[], None] | None = None,
    *,
    as_json: bool,
    in_order: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT.

    ``make_world`` gets the address that is served; ``close`` is called at the end. Port 0 takes a
    free one. The address is printed when requests are answered. ``in_order`` sends one event at a
    time.

    Raises:
        SystemExit: the address cannot be listened on.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    app = _App(
        {
            "bind": [f"{f'[{host}]' if ':' in host else host}:{port}"],
            "threads": THREADS,
            "keepalive": 75,
            # A long URL or header gets an answer of the application, not gunicorn's own page.
            "limit_request_line": 0,
            "limit_request_field_size": 65_536,
            "loglevel": "warning",
        }
    )
    log = Logger(app.cfg)
    sockets = create_sockets(app.cfg, log)
    for one in sockets:
        # The sockets of accepted connections inherit it.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            one.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", SILENCE, 0))
    address, bound = sockets[0].getsockname()[:2]
    # Who listens on every address is reached, by a browser on this machine, on this one.
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address)  # noqa: S104
    # Who listens on every address is reached by names that are not known here.
    hosts = None if loopback else {address, host.lower()}
    address = loopback or address
    url = f"http://{f'[{address}]' if ':' in address else address}:{bound}"

    world, faults = make_world(url), Faults()
    app.callable = tidied(create_app(world, faults, hosts))
    Deliverer(world, faults, senders=1 if in_order else SENDERS).start()
    sys.stdout.write((json.dumps({"url": url}) if as_json else f"sandbox: {url}") + "\n")
    sys.stdout.flush()
    if not as_json:
        sys.stderr.write(f"overview: {url}/_sandbox/\n")
    # gunicorn wraps the sockets, and its own annotation of the worker forgets it.
    worker = _Worker(0, os.getppid(), sockets, app, 0, app.cfg, log)  # type: ignore[arg-type]

    def stop() -> None:
        # The thread of signals holds no step; one that another thread makes ends within moments.
        if close and world.changed.acquire(timeout=LAST_STEP):
            close()

    worker.stop = stop
    worker.init_process()


def tidied(app: Any) -> Any:
    """Wrap a WSGI application: what Stripe takes, and Flask does not, is put in Flask's form.

    ``//v1/…`` is ``/v1/…``, without a redirect. Bytes of the query that are no ASCII are escaped.
    """

    def wrapped(environ: dict[str, Any], start_response: Any) -> Any:
        environ["PATH_INFO"] = "/" + environ["PATH_INFO"].lstrip("/")
        query = environ.get("QUERY_STRING", "")
        environ["QUERY_STRING"] = quote(query.encode("latin-1"), safe=string.printable)
        return app(environ, start_response)

    return wrapped
