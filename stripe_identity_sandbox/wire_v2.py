"""What differs under /v2: JSON bodies, pages with an address of the next one, ISO times."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

from stripe_identity_sandbox import wire
from stripe_identity_sandbox.objects import Json
from stripe_identity_sandbox.parameters import Array, Integer, Kind, Record, Text
from stripe_identity_sandbox.wire import ApiError, nest

Item = TypeVar("Item")

#: docs.stripe.com/api-v2-overview#list-pagination; the maximum is that of /v1, by analogy.
DEFAULT_LIMIT, MAX_LIMIT = 20, 100
PAGE: dict[str, Kind] = {"limit": Integer(), "page": Text()}


def query(pairs: Iterable[tuple[str, str]], known: Record) -> Json:
    """Return the nested parameters of a query, as ``wire.nest`` does.

    SDKs from before November 2025 write an array of /v2 as its plain name, once an item.
    """
    arrays = {name for name, kind in known.fields.items() if isinstance(kind, Array)}
    return nest((f"{name}[]" if value and name in arrays else name, value) for name, value in pairs)


@dataclass(frozen=True)
class Moment(Kind):
    """An ISO 8601 time; without a zone it is UTC's."""

    def convert(self, value: Any, param: str) -> str:
        """Return it as ``written`` writes times."""
        try:
            moment = datetime.fromisoformat(Text().convert(value, param))
            return _written(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        except (ValueError, OverflowError):  # the latter: in UTC it is of no year from 1 to 9999
            raise ApiError(400, f"Invalid timestamp: {value}", param=param) from None  # by analogy


def written(seconds: float) -> str:
    """Return Unix seconds as a text in UTC, which sorts as the times do."""
    return _written(datetime.fromtimestamp(seconds, UTC))


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


BOUNDS: dict[str, Kind] = dict.fromkeys(wire.BOUNDS, Moment())


@dataclass(frozen=True)
class MomentRange(Kind):
    """Bounds of time: gt, gte, lt, lte."""

    def convert(self, value: Any, param: str) -> Json:
        """Return the bounds."""
        return Record(BOUNDS).convert(value, param)


def page(
    items: Sequence[Item],
    params: Json,
    *,
    url: str,
    id_of: Callable[[Item], str],
    view: Callable[[Item], Json],
) -> Json:
    """Return one page of ``items``; ``page`` of the next one is the id of this one's last item."""
    limit = min(max(params.get("limit", DEFAULT_LIMIT), 1), MAX_LIMIT)
    start = 0
    if after := params.get("page"):
        start = next((n + 1 for n, item in enumerate(items) if id_of(item) == after), -1)
        if start < 0:
            raise ApiError(400, "The page token is invalid.", param="page")  # the words are ours
    shown = items[start : start + limit]
    more = start + limit < len(items)
    query = _flat(params | {"limit": limit, "page": id_of(shown[-1])}) if more else {}
    return {
        "data": [view(item) for item in shown],
        "next_page_url": f"{url}?{urlencode(query)}" if more else None,
        "previous_page_url": None,
    }


def _flat(params: Json) -> dict[str, Any]:
    """Return parameters as an SDK would send them in a query."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, list):
            flat |= {f"{name}[{n}]": item for n, item in enumerate(value)}
        elif isinstance(value, dict):
            flat |= {f"{name}[{key}]": inner for key, inner in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def invalid(error: ApiError) -> ApiError:
    """Return the error of a parameter in the words of /v2.

    On record of values and names that are unknown (stripe/terraform-provider-stripe issue 40, and
    apps' sources); of other mistakes by analogy.
    """
    path = re.sub(r"\[([^\]]*[^\]\d][^\]]*)\]", r".\1", error.param or "")
    reason = error.reason or f"{error.message.rstrip('.')}."
    return ApiError(
        error.status,
        f"Some fields in the request were invalid: '{path}: {reason}'",
        code="invalid_fields",
        param=error.param,
        kind="",
        executed=error.executed,
    )


def not_found(what: str) -> ApiError:
    """Return the error for an unknown id. The envelope of /v2 has no type; the words are ours."""
    return ApiError(404, f"The requested {what} does not exist.", code="not_found", kind="")
