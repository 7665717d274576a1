"""Find values in a text, whatever way they were written into it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from datetime import date

_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})|\\x([0-9a-fA-F]{2})|\\u00([0-9a-fA-F]{2})")


def leaked(text: str, values: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of those values that are in a text.

    Found are other cases, escapes of JSON, of URLs and of `repr`, letters with something between
    them (a list), usual ways to write a date, hexadecimal digits and base64 of any text around it.
    Not found is what was compressed, encrypted or hashed.
    """
    plain = _plain(_ESCAPE.sub(lambda match: chr(int(match[match.lastindex or 1], 16)), text))
    # base64 may be broken into lines, and these be written as `repr` does.
    lower, base = text.lower(), re.sub(r"\s|\\[nr]", "", text).translate(_URLSAFE)
    for name, value in values.items():
        written = list(_written(value))
        if (
            any(_plain(each) in plain for each in written)
            or any(each.encode().hex() in lower for each in written)
            or any(part in base for each in written for part in _in_base64(each))
        ):
            yield name


_URLSAFE = str.maketrans("-_", "+/")


def _plain(text: str) -> str:
    """Leave letters and digits, in one case."""
    return "".join(each for each in text.casefold() if each.isalnum())


def _written(value: object) -> Iterator[str]:
    """Yield the ways in which a value is written."""
    yield str(value)
    if isinstance(value, date):
        year, month, day = value.year, value.month, value.day
        yield repr(value)
        for form in ("%d.%m.%Y", "%m/%d/%Y"):
            yield value.strftime(form)
        yield f"{day}.{month}.{year}"
        yield f"{month}/{day}/{year}"
        # As Stripe's objects are written.
        yield f"year {year} month {month} day {day}"
        yield f"day {day} month {month} year {year}"


def _in_base64(text: str) -> Iterator[str]:
    """Yield what base64 makes of a text, wherever it begins in what was encoded.

    Of the first and last character also what stands before and after it decides.
    """
    data = text.encode()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        yield encoded[(0, 2, 3)[before] : len(encoded) - ((before + len(data)) % 3 > 0)]
