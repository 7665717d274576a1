"""Descriptions of parameters: what each accepts, in every spelling that Stripe's SDKs send it.

An operation has one ``Record``. It turns what came (texts from a form, values from JSON) into
Python values, and raises Stripe's error for the first thing that is wrong.
"""

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from stripe_identity_sandbox import versions, wire
from stripe_identity_sandbox.objects import EVENT_TYPES, Json
from stripe_identity_sandbox.wire import ApiError

MAX_STRING = 5000
#: Digits of a whole number, so that it fits into 64 bits.
MAX_DIGITS = 18
#: docs.stripe.com/api/metadata.
METADATA_KEYS, METADATA_KEY_LENGTH, METADATA_VALUE_LENGTH = 50, 40, 500


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """One kind of value. ``unset``: an empty value is allowed and stands for None."""

    unset: bool = False

    def read(self, value: Any, param: str) -> Any:
        """Return the value of a parameter that came as ``value``.

        Raises:
            ApiError: it is none of this kind; ``param`` is the name the error gives.
        """
        if value in ("", None):
            if self.unset:
                return None
            raise _empty(param)
        return self.convert(value, param)

    @abstractmethod
    def convert(self, value: Any, param: str) -> Any:
        """Return the value of something that is not empty."""


@dataclass(frozen=True)
class Text(Kind):
    """A text of up to 5000 characters."""

    def convert(self, value: Any, param: str) -> str:
        """Return the text."""
        if not isinstance(value, str):
            raise ApiError(400, f"Invalid string: {_shown(value)}", param=param)
        if len(value) > MAX_STRING:
            # The limit is in the OpenAPI document, the sentence is ours.
            raise ApiError(
                400, f"Invalid string: {param} must be at most {MAX_STRING} characters", param=param
            )
        return value


@dataclass(frozen=True)
class Url(Text):
    """An address. A page to return to may have an app's own scheme, an endpoint is on the web."""

    web: bool = False

    def convert(self, value: Any, param: str) -> str:
        """Return the address as it came."""
        text = super().convert(value, param)
        try:
            parts = urlsplit(text)
            # A name that cannot be looked up could not be sent to either.
            host = (parts.hostname or "").encode("idna")
            valid = bool(parts.scheme and host and (parts.port is None or parts.port))
        except ValueError:
            valid = False
        web = not self.web or text.startswith(("http://", "https://"))
        if not valid or not web or re.search(r"[\s\x00-\x1f\x7f]", text):
            raise ApiError(400, "Not a valid URL", code="url_invalid", param=param)
        return text


@dataclass(frozen=True)
class Integer(Kind):
    """A whole number."""

    def convert(self, value: Any, param: str) -> int:
        """Return the number."""
        text = value if isinstance(value, str) else json.dumps(value)
        if not re.fullmatch(rf"-?\d{{1,{MAX_DIGITS}}}", text, re.ASCII):
            raise ApiError(
                400,
                f"Invalid integer: {_shown(value)}",
                code="parameter_invalid_integer",
                param=param,
            )
        return int(text)


@dataclass(frozen=True)
class ApiVersion(Text):
    """A version of the API that can exist."""

    def convert(self, value: Any, param: str) -> str:
        """Return the version as it came."""
        version = super().convert(value, param)
        if not versions.exists(version):
            raise ApiError(400, f"Invalid Stripe API version: {version}", param=param)
        return version


@dataclass(frozen=True)
class Boolean(Kind):
    """``true`` or ``false``; ``True`` and ``False`` are what stripe-python sent up to 12.0."""

    def convert(self, value: Any, param: str) -> bool:
        """Return the truth."""
        if isinstance(value, bool):
            return value
        if value not in ("true", "false", "True", "False"):
            # By analogy with integers.
            raise ApiError(400, f"Invalid boolean: {_shown(value)}", param=param)
        return bool(value.lower() == "true")


@dataclass(frozen=True)
class Enum(Kind):
    """One of these words."""

    values: tuple[str, ...]

    def convert(self, value: Any, param: str) -> str:
        """Return the word."""
        if value not in self.values:
            Text().convert(value, param)
            # On record for the status of subscriptions (stripe/stripe-python issue 686).
            *most, last = self.values
            comma = "," if len(most) > 1 else ""
            listed = f"{', '.join(most)}{comma} or {last}" if most else last
            raise ApiError(
                400,
                f"Invalid {param}: must be one of {listed}",
                param=param,
                reason=f"Unrecognized enum value '{value}', valid values are:"
                f" {', '.join(sorted(self.values))}.",
            )
        return str(value)


@dataclass(frozen=True)
class EventName(Kind):
    """The name of a type of event; of snapshots also ``*``. ``form`` is the names' form.

    Thin destinations take no ``*`` (stripe/stripe-cli pull 1395).

    Only Identity's are known here. A name of another product is accepted when it looks like one,
    because an app registers all its events at once.
    """

    form: str

    def convert(self, value: Any, param: str) -> str:
        """Return the name."""
        name = Text().convert(value, param)
        pattern, prefix = NAMES[self.form]
        known = tuple(f"{prefix}{one}" for one in EVENT_TYPES)
        if self.form == "snapshot":
            known = ("*", *known)
        identity = name.startswith(f"{prefix}identity.")
        if name not in known and (identity or not re.fullmatch(pattern, name, re.ASCII)):
            return Enum(known).convert(name, param)
        return name


_PART = r"[a-z0-9_]+"
#: What a name of each form looks like, and how Identity's begin. Thin events of /v2 may have a part
#: of the object in square brackets: ``v2.core.account[requirements].updated``.
NAMES = {
    "snapshot": (rf"(?!v\d+\.){_PART}(\.{_PART})+", ""),
    "thin": (rf"v\d+(\.{_PART}(\[[a-z0-9_.]+\])?)+", "v1."),
}


@dataclass(frozen=True)
class Array(Kind):
    """``name[]=a&name[]=b`` or ``name[0]=a&name[1]=b``, in the order of the positions.

    An array that is ``filled`` has at least one item.
    """

    item: Kind
    filled: bool = False

    def read(self, value: Any, param: str) -> list[Any]:
        """Return the items; an empty value is an empty array."""
        return self.convert([] if value in ("", None) else value, param)

    def convert(self, value: Any, param: str) -> list[Any]:
        """Return the items."""
        if (listed := wire.items(value)) is None:
            # On record for enabled_events (activepieces/activepieces pull 15274).
            raise ApiError(400, "Invalid array", param=param)
        if self.filled and not listed:
            raise _empty(param)
        return [self.item.read(inner, f"{param}[{n}]") for n, inner in enumerate(listed)]


@dataclass(frozen=True)
class Record(Kind):
    """A hash of known fields."""

    fields: dict[str, Kind] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def convert(self, value: Any, param: str) -> Json:
        """Return the fields that were given."""
        if not isinstance(value, dict):
            raise ApiError(400, "Invalid object", param=param)  # by analogy

        def named(name: str) -> str:
            return f"{param}[{name}]" if param else name

        for name in value:
            if name not in self.fields:
                raise ApiError(
                    400,
                    f"Received unknown parameter: {named(name)}",
                    code="parameter_unknown",
                    param=named(name),
                    reason="Unknown field.",
                )
        for name in self.required:
            if name not in value:
                raise missing(named(name))
        return {name: self.fields[name].read(one, named(name)) for name, one in value.items()}


@dataclass(frozen=True)
class TimeRange(Kind):
    """A Unix time, or bounds: gt, gte, lt, lte."""

    def convert(self, value: Any, param: str) -> Json:
        """Return the bounds."""
        if isinstance(value, str | int):
            exactly = Integer().convert(value, param)
            return {"gte": exactly, "lte": exactly}
        return Record(dict.fromkeys(wire.BOUNDS, Integer())).convert(value, param)


@dataclass(frozen=True, kw_only=True)
class Metadata(Kind):
    """A map of texts. An empty value unsets a key, an empty map all of them."""

    unset: bool = True

    def convert(self, value: Any, param: str) -> dict[str, str]:
        """Return what was given, with "" for a key to unset.

        The first two sentences are on record (stripe/stripe-php issue 246), the others are ours.
        """
        if not isinstance(value, dict):
            raise ApiError(
                400, "Invalid metadata: metadata must be a set of key-value pairs", param=param
            )
        for key, text in value.items():
            reason = None
            if len(key) > METADATA_KEY_LENGTH:
                reason = f"key: {key} must be a string under {METADATA_KEY_LENGTH} characters"
            elif not isinstance(text, str | None) or len(text or "") > METADATA_VALUE_LENGTH:
                value = _shown(text)
                reason = f"val: {value} must be a string under {METADATA_VALUE_LENGTH} characters"
            elif not key or re.search(r"[\[\]]", key):
                reason = f"key: {key} must not be empty or contain square brackets"
            if reason:
                raise ApiError(400, f"Invalid {reason}", param=param)
        return {key: text or "" for key, text in value.items()}


def merged(kept: dict[str, str], given: dict[str, str] | None) -> dict[str, str]:
    """Return metadata after an update.

    Raises:
        ApiError: more than 50 keys result.
    """
    result = {} if given is None else {k: v for k, v in (kept | given).items() if v}
    if len(result) > METADATA_KEYS:
        # The limit is documented, the sentence is not.
        raise ApiError(400, f"Metadata can have up to {METADATA_KEYS} keys", param="metadata")
    return result


def missing(param: str) -> ApiError:
    """Say that a required parameter was not given."""
    return ApiError(
        400,
        f"Missing required param: {param}.",
        code="parameter_missing",
        param=param,
        reason="It is required.",
    )


def _empty(param: str) -> ApiError:
    # Stripe's sentence, from memory of its API; the code is documented.
    return ApiError(
        400,
        f"You passed an empty string for '{param}'. We assume empty values are an attempt to"
        f" unset a field; however '{param}' cannot be unset. You should remove '{param}' from"
        " your request or supply a non-empty value.",
        code="parameter_invalid_empty",
        param=param,
        reason="It must not be empty.",
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


PAGE: dict[str, Kind] = {
    "ending_before": Text(),
    "expand": Array(Text()),
    "limit": Integer(),
    "starting_after": Text(),
}
EXPAND: dict[str, Kind] = {"expand": Array(Text())}
