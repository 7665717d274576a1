"""Who may log in to the console, as the settings name them. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from werkzeug.security import generate_password_hash

NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}\Z")
READ_ONLY = ":read-only"
"""Ends the name of a person who may look and do nothing."""

_HASH = re.compile(r"(scrypt:\d+:\d+:\d+|pbkdf2:sha(256|512):\d+)\$[^$]{8,}\$[0-9a-f]{64,}\Z")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may log in.

    Attributes:
        name: how the audit calls them.
        may_act: whether they may do more than look.
        password_hash: of their password; empty where a proxy has checked who they are.
    """

    name: str
    may_act: bool
    password_hash: str = field(default="", repr=False)


def parse(value: str) -> tuple[Person, ...]:
    """Read `CONSOLE_PASSWORD_HASH`: `name=hash` or `name:read-only=hash`, separated by commas.

    Raises:
        ValueError: with what is wrong, and no part of a hash.
    """
    people = []
    for number, part in enumerate((each.strip() for each in value.split(",")), 1):
        name, _, password_hash = part.partition("=")
        may_act = not name.endswith(READ_ONLY)
        name = name.removesuffix(READ_ONLY)
        if not NAME.match(name) or not _HASH.match(password_hash):
            raise ValueError(
                f"entry {number} should be NAME=HASH or NAME{READ_ONLY}=HASH, as"
                " `python -m service console hash` prints it"
            )
        people.append(Person(name, may_act, password_hash))
    if len({each.name for each in people}) < len(people):
        raise ValueError("two entries have the same name")
    return tuple(people)


def name_of(given: str) -> str:
    """Return the name of whom a proxy calls so: of an address what stands before the @."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", given.strip().partition("@")[0])[:32] or "_"


def entry(name: str, password: str, *, may_act: bool) -> str:
    """Return the entry of a person for `CONSOLE_PASSWORD_HASH` (scrypt, as Werkzeug makes it)."""
    return f"{name}{'' if may_act else READ_ONLY}={generate_password_hash(password)}"
