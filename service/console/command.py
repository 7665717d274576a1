"""`python -m service console`: what is needed to switch the console on."""

from __future__ import annotations

import sys

import click

from service.arguments import PERSON
from service.console import people

SHORTEST = 12
"""Characters of a password, at least."""


@click.group()
def console() -> None:
    """Prepare the console, the pages at /console/ (docs/console.md)."""


@console.command("hash")
@click.argument("name", type=PERSON)
@click.option("--read-only", is_flag=True, help="May look, and do nothing.")
def hash_password(name: str, read_only: bool) -> None:
    """Ask for a password, and print CONSOLE_PASSWORD_HASH for the person NAME.

    The quotes belong to it in a shell and in an .env file: a hash has dollar signs. Of several
    people put the entries behind each other, separated by commas. Standard input may give the
    password, too, in one line.
    """
    if sys.stdin.isatty():
        text = click.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        text = sys.stdin.readline().rstrip("\r\n")
    if len(text) < SHORTEST:
        raise click.UsageError(f"the password should have {SHORTEST} characters or more")
    click.echo(f"CONSOLE_PASSWORD_HASH='{people.entry(name, text, may_act=not read_only)}'")
