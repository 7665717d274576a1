"""What Stripe sends, reduced to identifiers.

Both forms come in: *snapshot* (`object: "event"`, with the session inside) and *thin*
(`object: "v2.core.event"`, with a pointer to it). Only ids, the type, times and the mode are
read; the session inside a snapshot, and any personal data with it, is skipped unparsed.

Works on bytes, does no I/O and reads no clock.
Shapes: https://docs.stripe.com/api/events/object and https://docs.stripe.com/api/v2/core/events.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from identity_webhooks.event import KINDS, TYPE_PREFIX, Event, Kind

# Thin events of /v1 resources carry the same names behind "v1." (stripe-python 16.1, measured).
_KIND_BY_TYPE: dict[tuple[str, str], Kind] = {
    (form, prefix + kind): kind
    for form, prefix in (("event", TYPE_PREFIX), ("v2.core.event", "v1." + TYPE_PREFIX))
    for kind in KINDS
}

_EventId = Annotated[str, msgspec.Meta(pattern=r"^evt_[A-Za-z0-9_]{1,120}\Z")]
_SessionId = Annotated[str, msgspec.Meta(pattern=r"^vs_[A-Za-z0-9_]{1,120}\Z")]
# One account, or a path of them from the platform down.
_Account = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]{1,64}(/[A-Za-z0-9_]{1,64}){0,3}\Z")]
# Patterns, not Literals: msgspec's message for a wrong Literal quotes the value.
_Envelope = Annotated[str, msgspec.Meta(pattern=r"^(event|v2\.core\.event)\Z")]
_Session = Annotated[str, msgspec.Meta(pattern=r"^identity\.verification_session\Z")]


def kind_of(type_: str) -> Kind | None:
    """Return the kind of a snapshot event by Stripe's name of its type; None for other types."""
    return _KIND_BY_TYPE.get(("event", type_))


class MalformedEvent(Exception):
    """A signed body that is no event. Its text names the fault and the place, never a value."""


def parse(body: bytes) -> Event | None:
    """Read a delivery; None when it is an event of another type.

    Raises:
        MalformedEvent: not JSON, not an event, or a field we need is missing or misshapen.
    """
    try:
        head = _decode_head(body)
        kind = _KIND_BY_TYPE.get((head.object, head.type))
        if kind is None:
            return None
        return _snapshot(body, kind) if head.object == "event" else _thin(body, kind)
    except msgspec.ValidationError as fault:
        # Such messages hold type names and a path ("Expected `str`, got `int` - at `$.id`").
        raise MalformedEvent(str(fault)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise MalformedEvent("the body is not JSON") from None


class _Head(msgspec.Struct):
    object: _Envelope
    type: str


class _Object(msgspec.Struct):
    id: _SessionId
    object: _Session


class _Data(msgspec.Struct):
    object: _Object


class _Snapshot(msgspec.Struct):
    id: _EventId
    created: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    livemode: bool
    data: _Data
    account: _Account | None = None
    context: _Account | None = None


class _Related(msgspec.Struct):
    id: _SessionId
    type: _Session


class _Thin(msgspec.Struct):
    id: _EventId
    created: Annotated[datetime, msgspec.Meta(tz=True)]
    livemode: bool
    related_object: _Related
    context: _Account | None = None


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_snapshot = msgspec.json.Decoder(_Snapshot).decode
_decode_thin = msgspec.json.Decoder(_Thin).decode


def _snapshot(body: bytes, kind: Kind) -> Event:
    event = _decode_snapshot(body)
    return Event(
        id=event.id,
        kind=kind,
        form="snapshot",
        session=event.data.object.id,
        created=event.created,
        livemode=event.livemode,
        account=event.account or event.context,
    )


def _thin(body: bytes, kind: Kind) -> Event:
    event = _decode_thin(body)
    return Event(
        id=event.id,
        kind=kind,
        form="thin",
        session=event.related_object.id,
        created=int(event.created.timestamp()),
        livemode=event.livemode,
        account=event.context,
    )
