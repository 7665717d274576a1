"""The version of the service: that of `pyproject.toml`, the only place where it is written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click

_ROOT = Path(__file__).resolve().parents[1]


def version(root: Path = _ROOT) -> str:
    """Return the version in the checkout, image or slug at `root`: that of this process.

    Raises:
        FileNotFoundError: when there is no `pyproject.toml`.
    """
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def _show(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        click.echo(f"identity-webhooks {version()}")
        context.exit()


# Not click's own option: that takes the version when the module is imported, at every start.
version_option = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show,
    help="Print the version and exit.",
)
