"""Stripe's manner on the wire: nested form names in, errors, expansion and pages out.

Texts without a note are on public record; of the others, the note says what they are modelled on.
"""

import operator
import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote

import msgspec

from stripe_identity_sandbox.objects import Expand, Json

Item = TypeVar("Item")

BOUNDS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


class Named(Json):
    """What names in square brackets made of a form. JSON says by itself what is an array."""


#: "between 1 and 100", default 10 (Stripe's OpenAPI).
DEFAULT_LIMIT, MAX_LIMIT = 10, 100
#: docs.stripe.com/expand: four levels.
MAX_EXPAND_DEPTH = 4
#: Levels of nested parameters. Stripe's limit is not published; no operation here has more than 4.
MAX_DEPTH = 32


#: Characters of a parameter that an error quotes, and of all that it says.
MAX_QUOTED, MAX_SAID = 100, 2000


class ApiError(Exception):
    """An answer in Stripe's error envelope."""

    def __init__(  # noqa: PLR0913 -- by name, and most are seldom given
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
        executed: bool = False,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= MAX_SAID else f"{message[:MAX_SAID]} ..."
        self.code = code
        self.param = param and param[:MAX_SAID]
        self.kind = kind
        self.headers = headers or {}
        #: The operation ran and came to this: such an answer is kept for its idempotency key.
        self.executed = executed
        #: What is wrong with ``param``, where /v2 has other words for it.
        self.reason = reason

    def envelope(self, request_id: str) -> Json:
        """Return the body; fields that do not apply are left out, as Stripe does."""
        error = {"code": self.code}
        if self.code:
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        error |= {
            "message": self.message,
            "param": self.param,
            "request_log_url": f"https://dashboard.stripe.com/test/logs/{request_id}",
            "type": self.kind or None,
        }
        return {"error": {name: value for name, value in error.items() if value is not None}}


def new_request_id() -> str:
    """Return an id for a request."""
    return f"req_{secrets.token_hex(7)}"


# -- form parameters -------------------------------------------------------------------------


def pairs(form: bytes, place: str) -> list[tuple[str, str]]:
    """Return the names and values of a form or a query; ``place`` is the one that errors name.

    Raises:
        ApiError: one is not in UTF-8.
    """
    # Bytes and their escapes may stand beside each other in one character.
    escaped = quote(form, safe=string.printable)
    found = parse_qsl(escaped, keep_blank_values=True, errors="surrogateescape")
    for text in (text for pair in found for text in pair):
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
            # On record for bodies (stripe/stripe-dotnet issue 1654); what it quotes is a guess.
            raise ApiError(
                400, f'Invalid UTF-8 characters found in {place}: "{shown[:MAX_QUOTED]}".'
            ) from None
    return found


def nest(pairs: Iterable[tuple[str, str]]) -> Json:
    """Turn ``options[document][allowed_types][0]=passport`` into nested dicts.

    Array positions stay dict keys (``"0"``, ``"1"``, or ``""`` for ``[]``, whose values are
    collected in a list) until a schema says what they are.

    Raises:
        ApiError: a name has more than ``MAX_DEPTH`` levels.
    """
    nested = Named()
    for name, value in pairs:
        *outer, last = _path(name)
        if len(outer) >= MAX_DEPTH:
            raise _too_deep()
        here = nested
        for key in outer:
            # ``a=1&a[b]=2``: the later one wins, as with a plain name given twice.
            if not isinstance(here.get(key), Named):
                here[key] = Named()
            here = here[key]
        if last == "" and outer:
            if not isinstance(here.get(""), list):
                here[""] = []
            here[""].append(value)
        else:
            here[last] = value
    return nested


def _path(name: str) -> list[str]:
    head, bracket, rest = name.partition("[")
    return [head, *rest.removesuffix("]").split("][")] if bracket else [head]


def items(value: Any) -> list[Any] | None:
    """Return the items of an array as ``nest`` leaves it, in the order of their positions.

    None: the value is no array, or a position has more than nine digits.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, Named) or not all(
        key == "" or (key.isdecimal() and len(key) <= 9) for key in value
    ):
        return None
    unnumbered = value.get("", [])
    listed = list(unnumbered) if isinstance(unnumbered, list) else [unnumbered]
    return listed + [value[key] for key in sorted((k for k in value if k), key=int)]


def plain(value: Any) -> Any:
    """Return nested parameters with lists where names look like the positions of an array."""
    if value and (listed := items(value)) is not None:
        return [plain(inner) for inner in listed]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def json_object(body: bytes) -> Json:
    """Return a JSON body.

    Raises:
        ApiError: it is no JSON object, or has more than ``MAX_DEPTH`` levels. JSON that has no form
            in UTF-8 (half of a surrogate pair) or that is no number (NaN) is none.
    """
    try:
        given = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        given = None
    if not isinstance(given, dict):
        raise ApiError(400, "The body must be a JSON object.", kind="")  # the words are ours
    level, depth = [given], 0
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
    return given


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep() -> ApiError:
    # The words are ours.
    return ApiError(400, f"Parameters can be nested {MAX_DEPTH} levels deep.")


# -- expansion -------------------------------------------------------------------------------


def expansion(paths: Sequence[str], allowed: Expand, *, on_list: bool = False) -> Expand:
    """Turn expand paths into a tree, or refuse what cannot be expanded.

    The OpenAPI document calls ``options``, ``redaction`` and ``last_error`` expandable too; they
    are objects, not ids, and are refused here, so that nobody relies on asking for them.
    """
    tree: Expand = {}
    for path in paths:
        names = path.split(".")
        if len(names) > MAX_EXPAND_DEPTH:
            # The limit is documented, the sentence from memory.
            raise ApiError(400, f"You cannot expand more than 4 levels of a property ({path}).")
        if on_list and names[0] == "data":
            names = names[1:]
        elif on_list:
            hint = f" You may want to try expanding 'data.{path}' instead."
            raise ApiError(400, f"This property cannot be expanded ({path}).{hint}")
        here, below = tree, allowed
        for name in names:
            if name not in below:
                raise ApiError(400, f"This property cannot be expanded ({path}).")
            here, below = here.setdefault(name, {}), below[name]
    return tree


def sensitive(tree: Expand, allowed: Expand) -> bool:
    """Say whether a tree reaches a leaf of what can be expanded: only some keys may see those."""
    return any(not allowed[name] or sensitive(tree[name], allowed[name]) for name in tree)


# -- pages -----------------------------------------------------------------------------------


def page(
    items: Sequence[Item],
    params: Json,
    *,
    url: str,
    find: Callable[[str, str], Item],
    keep: Callable[[Item], bool],
    view: Callable[[Item], Json],
) -> Json:
    """Return one page of ``items`` (oldest first) as Stripe lists them (newest first).

    ``find`` returns a cursor's item or raises for an unknown one; its second argument is the
    parameter's name. ``limit`` is clamped silently: that is on record for another resource.
    """
    limit = min(max(params.get("limit", DEFAULT_LIMIT), 1), MAX_LIMIT)
    after, before = (
        find(params[name], name) if name in params else None
        for name in ("starting_after", "ending_before")
    )
    if after is not None and before is not None:
        raise ApiError(
            400,
            "Received both starting_after and ending_before parameters. Please pass in only one.",
        )
    if before is not None:
        newer = (item for item in items[_index(items, before) + 1 :] if keep(item))
        found = _take(newer, limit + 1)
        data = found[:limit][::-1]
    else:
        end = len(items) if after is None else _index(items, after)
        older = (items[i] for i in range(end - 1, -1, -1) if keep(items[i]))
        found = _take(older, limit + 1)
        data = found[:limit]
    return {
        "object": "list",
        "data": [view(item) for item in data],
        "has_more": len(found) > limit,
        "url": url,
    }


def _index(items: Sequence[Item], item: Item) -> int:
    return next(i for i, other in enumerate(items) if other is item)


def _take(items: Iterable[Item], count: int) -> list[Item]:
    taken = []
    for item in items:
        taken.append(item)
        if len(taken) == count:
            break
    return taken


def within(at: Any, bounds: Json | None) -> bool:
    """Say whether a time, as it is shown, lies within gt, gte, lt, lte."""
    return all(BOUNDS[name](at, bound) for name, bound in (bounds or {}).items())
