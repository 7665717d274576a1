"""How a command ends: the message and the exit code for each failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click
import redis

from service.redis_errors import UnsafeRedis, explain
from service.settings import SettingsError
from workers import plugins


def refuse_or(run: Callable[[], int]) -> None:
    """Exit with what `run` returns, or with the exit code of the failure."""
    try:
        code = run()
    except (SettingsError, UnsafeRedis, plugins.PluginError) as error:
        click.echo(f"refusing to start: {error}", err=True)
        code = os.EX_CONFIG
    except redis.RedisError as error:
        click.echo(f"Redis: {explain(error)}", err=True)
        code = os.EX_UNAVAILABLE
    sys.exit(code)
