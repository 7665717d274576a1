"""Serves the operations over HTTP: from a request's bytes to an answer's.

Keys and rights, parameters, idempotency keys, errors and faults are the same for every operation,
and are dealt with here, in this order.
"""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from stripe_identity_sandbox import versions, wire, wire_v2
from stripe_identity_sandbox.faults import Fault, Faults
from stripe_identity_sandbox.objects import Answer, Illegal, Json
from stripe_identity_sandbox.operations import OPERATIONS
from stripe_identity_sandbox.operations.base import (
    DEFAULT_PERMISSIONS,
    PLATFORM,
    SENSITIVE_RECENT,
    Call,
    Operation,
    masked,
)
from stripe_identity_sandbox.parameters import Record
from stripe_identity_sandbox.recorder import Exchange, sessions_in
from stripe_identity_sandbox.settings import COMMAND_LINE_KEY
from stripe_identity_sandbox.state import World
from stripe_identity_sandbox.strikes import half, slow_down, strike
from stripe_identity_sandbox.wire import ApiError

#: docs.stripe.com/api/idempotent_requests.
IDEMPOTENCY_KEY_LENGTH = 255

#: How the paths of Stripe's API begin.
PATHS = ("/v1/", "/v2/")

#: Status, body, headers.
Reply = tuple[int, str, dict[str, str]]


class Api:
    """Serves the operations: from a request's bytes to an answer's."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults

    def install(self, app: Flask) -> None:
        """Add the routes."""
        # A redirect would be followed by one SDK and not by the other; Stripe makes none.
        app.url_map.merge_slashes = False
        for op in OPERATIONS:
            app.add_url_rule(
                op.path,
                endpoint=f"{op.method} {op.path}",
                view_func=self._view(op),
                methods=[op.method],
                provide_automatic_options=False,
            )

    def _view(self, op: Operation) -> Callable[..., Response]:
        def view(**arguments: str) -> Response:
            asked = _asked(op)
            with self.world.step():
                if _key() != COMMAND_LINE_KEY:
                    asked.fault = self.faults.for_call(request.method, request.path)
            try:
                status, body, headers = self._answer(op, arguments, asked)
            except ApiError as error:
                status, body, headers = _failed(error, asked.id)
            return self._send(status, body, headers, asked)

        return view

    def unknown_route(self) -> Response:
        """Answer a path that is none of Stripe's."""
        return self.refuse(
            ApiError(
                404,
                f"Unrecognized request URL ({request.method}: {request.path}). If you are trying to"
                " list objects, remove the trailing slash. If you are trying to retrieve an object,"
                " make sure you passed a valid (non-empty) identifier in your code. Please see"
                " https://stripe.com/docs or we can help at https://support.stripe.com/.",
            )
        )

    def refuse(self, error: ApiError) -> Response:
        """Answer a request that comes to no operation."""
        asked = _asked(None)
        return self._send(*_failed(error, asked.id), asked)

    def _answer(self, op: Operation, arguments: dict[str, str], asked: "Asked") -> Reply:
        fault = asked.fault
        if fault and not fault.after and not fault.saved:
            strike(fault, self.faults)
        with self.world.step():
            key, permissions = self._authenticate()
            account = self._account(key)
            if op.right not in permissions:
                raise ApiError(
                    403,
                    f"The provided key '{masked(key)}' does not have the required permissions for"
                    f" this endpoint on account '{account or PLATFORM}'. Having the"
                    f" 'rak_{op.right}' permission would allow this request to continue.",
                )
        version = request.headers.get("Stripe-Version")
        if version is not None and not versions.exists(version):
            raise ApiError(400, f"Invalid Stripe API version: {version}")
        if asked.refusal:
            raise asked.refusal
        call = Call(
            world=self.world,
            params=asked.params or {},
            account=account,
            key=key,
            permissions=permissions,
            request_id=asked.id,
            arguments=arguments,
        )
        name = request.headers.get("Idempotency-Key")
        if op.method == "POST" and name is not None:
            return self._once(op, call, name, asked)
        return self._run(op, call, fault)

    def _run(self, op: Operation, call: Call, fault: Fault | None) -> Reply:
        if fault and fault.kind == "slow":
            slow_down(fault, self.faults)
        if fault and fault.saved:
            strike(fault, self.faults)
        with self.world.step():
            try:
                result = op.run(call)
            except Illegal as refusal:
                raise ApiError(400, str(refusal), executed=True) from refusal
            return 200, json.dumps(result, indent=2), {}

    def _once(self, op: Operation, call: Call, name: str, asked: "Asked") -> Reply:
        """Run an operation once per idempotency key; the first answer is given again."""
        if not 0 < len(name) <= IDEMPOTENCY_KEY_LENGTH:
            # On record (cartalyst/stripe issue 65, and later with its type in apps' sources).
            raise ApiError(
                400,
                f"Idempotent key length is {len(name)} characters long, which is outside accepted"
                f" lengths. Idempotent Keys must be 1-{IDEMPOTENCY_KEY_LENGTH} characters long. If"
                " you're looking for a decent generator, try using a UUID defined by IETF RFC"
                " 4122.",
                kind="idempotency_error",
            )
        if not name.isprintable():
            raise ApiError(400, "Idempotency keys are of printable characters.")  # words are ours
        call.idempotency_key = name
        # What was read, not what was sent: SDKs spell a value in several ways.
        read = json.dumps(call.params, sort_keys=True)
        mine = Answer(
            id=f"{call.account or PLATFORM}/{name}",
            path=request.path,
            fingerprint=hashlib.sha256(read.encode()).hexdigest(),
            request=call.request_id,
            created=self.world.now(),
        )
        asked.answer = mine.id
        with self.world.step() as world:
            if known := world.answers.find(mine.id):
                return self._again(known, mine, name)
            world.answers.begin(mine)
        # Not saved: an answer that only says what is wrong with the request.
        saved = 0, ""
        try:
            status, body, headers = self._run(op, call, asked.fault)
            saved = status, body
        except ApiError as error:
            status, body, headers = _failed(error, call.request_id)
            if error.executed:
                saved = status, body
        finally:
            with self.world.step() as world:
                world.answers.end(mine, *saved, world.sessions.get(call.session or ""))
        headers |= {"Idempotency-Key": name, "Original-Request": call.request_id}
        return status, body, headers

    def _again(self, known: Answer, mine: Answer, name: str) -> Reply:
        if known.path != mine.path:
            # On record (stripe/stripe-ruby issue 598); the type is that of the next one.
            raise ApiError(
                400,
                "Keys for idempotent requests can only be used for the same endpoint they were"
                f" first used for ('{mine.path}' vs '{known.path}'). Try using a key other than"
                f" '{name}' if you meant to execute a different request.",
                kind="idempotency_error",
            )
        if known.fingerprint != mine.fingerprint:
            raise ApiError(
                400,
                "Keys for idempotent requests can only be used with the same parameters they were"
                f" first used with. Try using a key other than '{name}' if you meant to execute a"
                " different request.",
                kind="idempotency_error",
            )
        if known.status == 0:
            # Sentence and type as woocommerce/woocommerce-gateway-stripe pull 503 matches them.
            raise ApiError(
                409,
                "There is currently another in-progress request using this Idempotent Key (that"
                " probably means you submitted twice, and the other request is still going"
                f" through): {name}. Please try again later.",
                code="idempotency_key_in_use",
            )
        # Redaction took the saved body away; what the session shows now has nothing to hide.
        session = self.world.sessions.get(known.session or "")
        body = known.body
        if not body and session:
            body = json.dumps(self.world.view(session), indent=2)
        headers = {
            "Idempotency-Key": name,
            "Idempotent-Replayed": "true",
            "Original-Request": known.request,
        }
        return known.status, body, headers

    def _authenticate(self) -> tuple[str, frozenset[str]]:
        """Return the key of the request and what it may do."""
        key = _key()
        if key is None:
            raise unauthorized(
                "You did not provide an API key. You need to provide your API key in the"
                " Authorization header, using Bearer auth (e.g. 'Authorization: Bearer"
                " YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for details,"
                " or we can help at https://support.stripe.com/."
            )
        if key.startswith(("sk_live_", "rk_live_")):
            raise unauthorized(
                f"Invalid API Key provided: {masked(key)}. This is a sandbox on your machine, not"
                " Stripe: it takes no live keys. Use any key that begins with sk_test_."
            )
        if key.startswith(("pk_test_", "pk_live_")):
            raise unauthorized(
                "This API call cannot be made with a publishable API key. Please use a secret API"
                " key. You can find a list of your API keys at"
                " https://dashboard.stripe.com/account/apikeys.",
                code="secret_key_required",
            )
        made = self.world.keys.get(key)
        if not key.startswith(("sk_test_", "rk_test_")) or (made and made.revoked):
            raise unauthorized(f"Invalid API Key provided: {masked(key)}")
        if made and made.permissions is not None:
            return key, frozenset(made.permissions)
        if key.startswith("rk_"):
            return key, DEFAULT_PERMISSIONS
        return key, DEFAULT_PERMISSIONS - {SENSITIVE_RECENT}

    def _account(self, key: str) -> str | None:
        """Return the connected account the request is about, None for the platform's own."""
        account, context = (request.headers.get(f"Stripe-{of}") for of in ("Account", "Context"))
        name = account or context
        if not name or name == PLATFORM:
            return None
        # Only a context may be a path of accounts.
        if not re.fullmatch(r"acct_\w+" if account else r"acct_\w+(/acct_\w+)*", name):
            raise ApiError(
                403,
                f"The provided key '{masked(key)}' does not have access to account '{name}' (or"
                " that account does not exist). Application access may have been revoked.",
                code="account_invalid",
            )
        return name

    def _send(self, status: int, body: str, headers: dict[str, str], asked: "Asked") -> Response:
        fault, sessions = asked.fault, sessions_in(request.path, body)
        if fault and fault.after:
            status, body, headers = self._failed_after(fault, asked.id, (status, body, headers))
        sent = request.headers
        version = sent.get("Stripe-Version")
        if request.path.startswith(PATHS):
            with self.world.step() as world:
                if (kept := world.answers.find(asked.answer or "")) and kept.session:
                    sessions = sorted({*sessions, kept.session})
                exchange = Exchange(
                    id=asked.id,
                    method=request.method,
                    path=request.path,
                    params=None if asked.params is None else json.dumps(asked.params),
                    account=sent.get("Stripe-Account") or sent.get("Stripe-Context"),
                    version=version,
                    idempotency_key=sent.get("Idempotency-Key"),
                    status=status,
                    answer=body,
                    fault=fault.kind if fault else None,
                    sessions=sessions,
                )
                world.recorder.note(exchange, world.sessions)
        response = Response(body, status, headers, mimetype="application/json")
        response.headers["Request-Id"] = asked.id
        response.headers["Stripe-Version"] = (
            version if version and versions.exists(version) else self.world.settings.api_version
        )
        if fault and fault.kind == "cut":
            response.headers["Content-Length"] = str(len(body.encode()))
            response.response = half(body.encode(), request.environ)
        return response

    def _failed_after(self, fault: Fault, request_id: str, done: Reply) -> Reply:
        """Return what is answered when the operation happened and its answer is lost."""
        try:
            strike(fault, self.faults)
        except ApiError as error:
            return _failed(error, request_id)
        return done


@dataclass
class Asked:
    """A request, as far as it could be read: parameters that are none leave a refusal."""

    params: Json | None = None
    refusal: ApiError | None = None
    fault: Fault | None = None
    #: The id of what is kept for its idempotency key.
    answer: str | None = None
    id: str = field(default_factory=wire.new_request_id)


def _asked(op: Operation | None) -> Asked:
    """Read the request; without an operation nothing says what its parameters mean."""
    asked = Asked()
    try:
        given = _parameters(op.params if op else Record())
        asked.params = wire.plain(given)
        if op:
            asked.params = op.params.convert(given, "")
    except ApiError as error:
        asked.refusal = error
    return asked


def _parameters(known: Record) -> Json:
    pairs = wire.pairs(request.query_string, "query")
    try:
        body = request.get_data() if request.method == "POST" else b""
    except HTTPException as error:  # too long, or cut short
        raise ApiError(error.code or 400, str(error.description)) from error
    if request.path.startswith("/v2/"):
        if body and not request.is_json:
            # By analogy with /v1.
            raise ApiError(400, "The body must be JSON, of type application/json.", kind="")
        return wire_v2.query(pairs, known) | (wire.json_object(body) if body else {})
    if request.is_json:
        # From memory of Stripe's API.
        raise ApiError(
            400,
            "Invalid request (check that your POST content type is"
            " application/x-www-form-urlencoded). If you have any questions, we can help at"
            " https://support.stripe.com/.",
        )
    if body and request.mimetype not in {"", "application/x-www-form-urlencoded"}:
        # On record of a text (vapor-community/stripe issue 39); of others by analogy.
        raise ApiError(
            400,
            f"Invalid request: unsupported Content-Type {request.content_type}. If error persists"
            " and you need assistance, please contact support@stripe.com.",
        )
    return wire.nest(pairs + wire.pairs(body, "POST body"))


def _key() -> str | None:
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(credentials, validate=True).decode().partition(":")[0] or None
        return None
    return credentials.strip() or None if scheme.lower() == "bearer" else None


def unauthorized(message: str, *, code: str | None = None) -> ApiError:
    """Return Stripe's 401."""
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": 'Basic realm="Stripe"'})


def _failed(error: ApiError, request_id: str) -> Reply:
    if error.param and request.path.startswith("/v2/"):
        error = wire_v2.invalid(error)
    headers = dict(error.headers)
    if error.status == 409 or error.status >= 500:
        headers.setdefault("Stripe-Should-Retry", "true")
    return error.status, json.dumps(error.envelope(request_id), indent=2), headers
