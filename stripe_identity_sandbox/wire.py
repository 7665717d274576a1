"""Stripe's manner on the wire: form parameters in, errors, expansion and pages out.

Texts without a note are on public record; of the others, the note says what they are modelled on.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from stripe_identity_sandbox.objects import Expand, Json

Item = TypeVar("Item")

#: "between 1 and 100", default 10 (Stripe's OpenAPI).
DEFAULT_LIMIT, MAX_LIMIT = 10, 100
#: docs.stripe.com/expand: four levels.
MAX_EXPAND_DEPTH = 4
#: Both stand in docs.stripe.com/api/metadata, with 500 characters for a value.
METADATA_KEYS, METADATA_KEY_LENGTH, METADATA_VALUE_LENGTH = 50, 40, 500
MAX_STRING = 5000


class ApiError(Exception):
    """An answer in Stripe's error envelope."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
        executed: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        self.headers = headers or {}
        #: The operation ran and came to this: such an answer is kept for its idempotency key.
        self.executed = executed

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


# -- form parameters -------------------------------------------------------------------------


def nest(pairs: Iterable[tuple[str, str]]) -> Json:
    """Turn ``options[document][allowed_types][0]=passport`` into nested dicts.

    Array positions stay dict keys (``"0"``, ``"1"``, or ``""`` for ``[]``, whose values are
    collected in a list) until a schema says what they are.
    """
    nested: Json = {}
    for name, value in pairs:
        *outer, last = _path(name)
        here = nested
        for key in outer:
            inner = here.setdefault(key, {})
            # ``a=1&a[b]=2``: the later one wins, as with a plain name given twice.
            here[key] = inner if isinstance(inner, dict) else {}
            here = here[key]
        if last == "" and outer:
            listed = here.get("")
            here[""] = [*listed, value] if isinstance(listed, list) else [value]
        else:
            here[last] = value
    return nested


def _path(name: str) -> list[str]:
    head, bracket, rest = name.partition("[")
    return [head, *rest.removesuffix("]").split("][")] if bracket else [head]


Check = Callable[[Any, str], Any]


def string(value: Any, param: str) -> str:
    """Accept any text of up to 5000 characters that is not empty."""
    if not isinstance(value, str):
        raise ApiError(400, f"Invalid string: {_shown(value)}", param=param)
    if value == "":
        # Stripe's sentence, from memory of its API; the code is documented.
        raise ApiError(
            400,
            f"You passed an empty string for '{param}'. We assume empty values are an attempt to"
            f" unset a field; however '{param}' cannot be unset. You should remove '{param}' from"
            " your request or supply a non-empty value.",
            code="parameter_invalid_empty",
            param=param,
        )
    if len(value) > MAX_STRING:
        # The limit is in the OpenAPI document, the sentence is ours.
        raise ApiError(
            400, f"Invalid string: {param} must be at most {MAX_STRING} characters", param=param
        )
    return value


def integer(value: Any, param: str) -> int:
    """Accept digits."""
    if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        raise ApiError(
            400, f"Invalid integer: {_shown(value)}", code="parameter_invalid_integer", param=param
        )
    return int(value)


def boolean(value: Any, param: str) -> bool:
    """Accept ``true`` and ``false``, as the SDKs send them."""
    if value not in {"true", "false"}:
        # By analogy with integers.
        raise ApiError(400, f"Invalid boolean: {_shown(value)}", param=param)
    return bool(value == "true")


def enum(*values: str) -> Check:
    """Accept one of these words."""

    def check(value: Any, param: str) -> str:
        if string(value, param) not in values:
            # On record for the status of subscriptions (stripe/stripe-python issue 686).
            *most, last = values
            comma = "," if len(most) > 1 else ""
            listed = f"{', '.join(most)}{comma} or {last}" if most else last
            raise ApiError(400, f"Invalid {param}: must be one of {listed}", param=param)
        return str(value)

    return check


def array(item: Check) -> Check:
    """Accept ``name[]=a``, ``name[0]=a``."""

    def check(value: Any, param: str) -> list[Any]:
        if not isinstance(value, dict):
            raise ApiError(400, "Invalid array", param=param)  # by analogy
        listed: list[Any] = []
        for key, inner in value.items():
            if key == "":
                listed += inner if isinstance(inner, list) else [inner]
            elif key.isdecimal():
                listed.append(inner)
            else:
                raise ApiError(400, "Invalid array", param=param)
        return [item(inner, f"{param}[{position}]") for position, inner in enumerate(listed)]

    return check


def record(required: Sequence[str] = (), **fields: Check) -> Check:
    """Accept a hash of known fields."""

    def check(value: Any, param: str) -> Json:
        if not isinstance(value, dict):
            raise ApiError(400, "Invalid object", param=param)  # by analogy
        return checked(value, fields, required=required, within=param)

    return check


def or_empty(check: Check) -> Check:
    """Accept also the empty string, which unsets."""
    return lambda value, param: {} if value == "" else check(value, param)


def metadata(value: Any, param: str) -> dict[str, str]:
    """Accept a map of texts; an empty value unsets a key, an empty map all of them."""
    if value == "":
        return {}
    if not isinstance(value, dict):
        raise ApiError(
            400, "Invalid metadata: metadata must be a set of key-value pairs", param=param
        )
    if len(value) > METADATA_KEYS:
        raise ApiError(400, f"Metadata can have up to {METADATA_KEYS} keys", param=param)
    for key, text in value.items():
        within = f"{param}[{key}]"
        if not isinstance(text, str):
            raise ApiError(400, f"Invalid string: {_shown(text)}", param=within)
        if len(key) > METADATA_KEY_LENGTH:
            raise ApiError(
                400, f"Metadata keys can be up to {METADATA_KEY_LENGTH} characters", param=within
            )
        if len(text) > METADATA_VALUE_LENGTH:
            raise ApiError(
                400,
                f"Metadata values can be up to {METADATA_VALUE_LENGTH} characters",
                param=within,
            )
    return value


def time_range(value: Any, param: str) -> Json:
    """Accept a Unix time, or bounds: gt, gte, lt, lte."""
    if isinstance(value, str):
        exactly = integer(value, param)
        return {"gte": exactly, "lte": exactly}
    bounds: Json = record(gt=integer, gte=integer, lt=integer, lte=integer)(value, param)
    return bounds


def checked(
    given: Json, fields: dict[str, Check], *, required: Sequence[str] = (), within: str = ""
) -> Json:
    """Return the parameters as their schema has them, or raise the first fault."""

    def named(name: str) -> str:
        return f"{within}[{name}]" if within else name

    for name in given:
        if name not in fields:
            raise ApiError(
                400,
                f"Received unknown parameter: {named(name)}",
                code="parameter_unknown",
                param=named(name),
            )
    for name in required:
        if name not in given:
            raise missing(named(name))
    return {name: fields[name](value, named(name)) for name, value in given.items()}


def missing(param: str) -> ApiError:
    """Say that a required parameter was not given."""
    return ApiError(400, f"Missing required param: {param}.", code="parameter_missing", param=param)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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


PAGE = {
    "ending_before": string,
    "expand": array(string),
    "limit": integer,
    "starting_after": string,
}


def within(moment: float, bounds: Json | None) -> bool:
    """Say whether a time lies within gt, gte, lt, lte."""
    at = int(moment)
    bounds = bounds or {}
    return all(
        (
            at > bounds.get("gt", at - 1),
            at >= bounds.get("gte", at),
            at < bounds.get("lt", at + 1),
            at <= bounds.get("lte", at),
        )
    )
