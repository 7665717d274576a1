"""Proof that a delivery comes from Stripe: `verify` checks it, `sign` makes it.

Works on bytes, does no I/O and reads no clock, so that any input ends
in a result or in one of the three errors below.

The scheme (https://docs.stripe.com/webhooks#verify-manually): the header
`Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=<hex>...]` carries
HMAC-SHA256(key=the whole `whsec_...` string, message=`<t>.<body>`). While a secret is being
rolled Stripe sends one `v1` per active secret.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

TOLERANCE = 300
"""Largest age of a timestamp in seconds, the default of Stripe's libraries; also its largest lead,
which those do not check."""

MAX_SIGNATURES = 16
"""`v1` entries looked at. Stripe sends one per active secret, of which there are two at most
while rolling; 100,000 of them cost the SDK 70 ms (measured)."""

# No leading zero: the SDKs sign the number, printed anew.
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}\Z")
_SIGNATURE = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Secret:
    """A signing secret and the name an operator knows it by."""

    name: str
    key: bytes = field(repr=False)


class SignatureError(Exception):
    """The delivery is not proven to come from Stripe. Its text never holds body or header."""

    code: ClassVar[str]


class MalformedHeader(SignatureError):
    """The `Stripe-Signature` header is missing or not of the documented form."""

    code = "malformed_header"


class SignatureMismatch(SignatureError):
    """No `v1` entry was made with one of our secrets over exactly these bytes."""

    code = "signature_mismatch"


class SignatureExpired(SignatureError):
    """Correctly signed, but the timestamp is too far from our clock, in the past or the future."""

    code = "signature_expired"


def verify(
    body: bytes,
    header: str,
    secrets: Sequence[Secret],
    *,
    now: int,
    tolerance: int = TOLERANCE,
) -> Secret:
    """Return the secret that signed `body`.

    Args:
        body: the request body, byte for byte as received.
        header: the `Stripe-Signature` header as WSGI gives it.
        secrets: the secrets in force; all are tried, in constant time.
        now: the current time, unix seconds.
        tolerance: seconds the timestamp may differ from `now`, either way.

    Raises:
        MalformedHeader: not one `t` of 1 to 12 digits and 1 to 16 `v1` entries.
        SignatureMismatch: no entry fits any secret.
        SignatureExpired: signed, but outside the tolerance.
    """
    timestamp, candidates = _parse(header)
    message = timestamp.encode() + b"." + body
    matched: Secret | None = None
    for secret in secrets:
        expected = hmac.digest(secret.key, message, "sha256").hex().encode()
        # Every pair is compared, so that the time taken does not tell which one fitted.
        for candidate in candidates:
            if hmac.compare_digest(expected, candidate) and matched is None:
                matched = secret
    if matched is None:
        raise SignatureMismatch("no signature fits: wrong secret, or the body was changed")
    # Only after the proof, so that an unsigned request learns nothing about our clock.
    if abs(now - int(timestamp)) > tolerance:
        raise SignatureExpired(f"the timestamp is more than {tolerance} s away from our clock")
    return matched


def sign(body: bytes, secret: Secret, *, now: int) -> str:
    """Return the `Stripe-Signature` header for `body`, as Stripe would send it at `now`."""
    digest = hmac.digest(secret.key, b"%d." % now + body, "sha256").hex()
    return f"t={now},v1={digest}"


def _parse(header: str) -> tuple[str, list[bytes]]:
    timestamps: list[str] = []
    candidates: list[bytes] = []
    entries = 0
    for item in header.split(","):
        scheme, equals, value = item.partition("=")
        if not equals and scheme in {"t", "v1"}:
            raise MalformedHeader(f"{scheme} has no value")
        if scheme == "t":
            timestamps.append(value)
        elif scheme == "v1":
            entries += 1
            # A malformed entry is skipped, as Stripe's SDKs do.
            if _SIGNATURE.match(value):
                candidates.append(value.encode())
    # Python's SDK takes the first `t`, Node's the last: two are refused rather than chosen from.
    if len(timestamps) != 1 or not _TIMESTAMP.match(timestamps[0]):
        raise MalformedHeader("the header needs exactly one t=<unix seconds>")
    if not candidates or entries > MAX_SIGNATURES:
        raise MalformedHeader(f"the header needs 1 to {MAX_SIGNATURES} v1 entries")
    return timestamps[0], candidates
