"""Writes deploy/env.example from the settings: `make env-example`."""

import textwrap

import click
from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from service.settings import Settings

_HEAD = """\
# Every setting, as it is when nothing is set. Made by `make env-example`; do not edit.
# NAME_FILE=/path takes the value from a file instead. What is empty counts as not set.
"""


def render() -> str:
    """Return the text of deploy/env.example."""
    return "\n".join([_HEAD, *(_entry(*item) for item in Settings.model_fields.items())])


def _entry(name: str, field: FieldInfo) -> str:
    if isinstance(field.validation_alias, AliasChoices):
        name = str(field.validation_alias.choices[0])
    sentence = textwrap.fill(
        field.description or "", 98, initial_indent="# ", subsequent_indent="# "
    )
    default = plain(field.default)
    return f"{sentence}\n{'# ' if default else ''}{name.upper()}={default}\n"


def plain(default: object) -> str:
    """Return a default as it is written in the environment."""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, bool):
        return str(int(default))
    return str(default or "")


if __name__ == "__main__":
    click.echo(render(), nl=False)
