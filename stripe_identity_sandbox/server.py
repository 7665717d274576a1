"""The web server of the sandbox: one process, many threads, because the state is in its memory."""

import ipaddress
import json
import logging
import os
import string
import sys
from collections.abc import Callable, Container
from typing import Any
from urllib.parse import quote, urlsplit

from flask import Flask, Response, request
from gunicorn.glogging import Logger
from werkzeug.exceptions import HTTPException

from stripe_identity_sandbox import control, hosted, pages
from stripe_identity_sandbox.api import Api
from stripe_identity_sandbox.connections import BUG, Application, Worker, listen
from stripe_identity_sandbox.delivery import SENDERS, Deliverer
from stripe_identity_sandbox.faults import Faults
from stripe_identity_sandbox.objects import Illegal
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.wire import ApiError

#: Seconds for which the end waits for a step that is being made.
LAST_STEP = 1.0
#: In characters. Stripe's own limit is not published; what the API documents fits easily.
MAX_URL = 65_536


def create_app(world: World, faults: Faults, names: Container[str] | None = ()) -> Flask:
    """Return the WSGI application: Stripe's API, the control routes and the pages.

    ``names`` are those, besides localhost and addresses, by which it is reached. None: any.
    """
    app = Flask(__name__)
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
    def unreadable(error: HTTPException) -> Response:
        return api.refuse(ApiError(error.code or 400, str(error.description)))

    @app.errorhandler(500)
    def broken(_: HTTPException) -> Response:
        # The traceback is in the log of the sandbox.
        return api.refuse(ApiError(500, BUG, kind="api_error"))

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
        # with the sandbox then, and read what they like.
        if names is not None and not _is_here(request.host, names):
            raise ApiError(
                403,
                f"The sandbox is not served as {request.host}: use the address that it printed, or"
                " start it with this name as --host.",
            )

    return app


def _is_here(host: str, names: Container[str]) -> bool:
    """Say whether a Host header is an address, or a name that no other site can have."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in names or name == "localhost" or name.endswith(".localhost"):
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
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
        CannotListen: the host or the port cannot be had.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    listener = listen(host, port)
    app = Application()
    log = Logger(app.cfg)
    address, bound = listener.getsockname()[:2]
    # Who listens on every address is reached, by a browser on this machine, on this one.
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address)  # noqa: S104
    # Who listens on every address is reached by names that are not known here.
    names = None if loopback else {host.lower()}
    address = loopback or address
    url = f"http://{f'[{address}]' if ':' in address else address}:{bound}"

    world, faults = make_world(url), Faults()
    app.callable = tidied(create_app(world, faults, names))
    Deliverer(world, faults, senders=1 if in_order else SENDERS).start()
    sys.stdout.write((json.dumps({"url": url}) if as_json else f"sandbox: {url}") + "\n")
    sys.stdout.flush()
    if not as_json:
        sys.stderr.write(f"overview: {url}/_sandbox/\n")
    worker = Worker(0, os.getppid(), [listener], app, 0, app.cfg, log)

    def stop() -> None:
        # The thread of connections holds no step; one that another makes ends within moments.
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
