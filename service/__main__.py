"""`python -m service`: run the web process, check it, and manage the inbox."""

from __future__ import annotations

import http.client
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import click
import redis

from service import connection, findings, status
from service.console.command import console
from service.event_commands import events
from service.findings import Finding
from service.inbox import asking
from service.redis_errors import UnsafeRedis, explain
from service.settings import Role, Settings, SettingsError
from service.version import version_option

_GUNICORN_CONF = Path(__file__).resolve().parents[1] / "deploy/gunicorn.conf.py"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def main() -> None:
    """Run the web process, check it, look at the inbox of REDIS_URL and put events back.

    Exit codes: 0 done, 1 no such event, nothing to do or not healthy, 2 wrong usage, 69 Redis
    cannot be reached, 78 the settings or Redis are not as they must be.
    """


@main.command()
def serve() -> None:
    """Receive deliveries until SIGTERM: gunicorn with deploy/gunicorn.conf.py.

    Listens on every address at PORT, else on 127.0.0.1:8000. gunicorn reads WEB_CONCURRENCY and
    PORT when it is imported and fails on anything but a number, so both are checked first.
    """
    settings = _settings("web")
    os.environ["WEB_CONCURRENCY"] = str(settings.web_concurrency)
    os.environ.pop("PORT", None)
    if settings.port:
        os.environ["PORT"] = str(settings.port)
    # On SIGUSR2 gunicorn starts itself anew with these arguments, which fails with `-m gunicorn`.
    script = Path(sys.executable).with_name("gunicorn")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "gunicorn"]
    arguments = ["-c", str(_GUNICORN_CONF), "service.app:create_app()"]
    os.execv(command[0], [*command, *arguments])  # noqa: S606  # no shell


@main.command()
@click.option(
    "--role",
    type=click.Choice(["web", "worker"]),
    help="Check what this role needs (worker: periodic, too). Default: both.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def check(role: Role | None, as_json: bool) -> None:
    """Check the settings, and whether Redis does what it must: before a release, for example.

    Lists each finding about Redis: good, bad, or unknown (Redis does not report it). A finding
    that you may vouch for names the word to add to REDIS_VOUCH_FOR.
    """
    roles: tuple[Role, ...] = (role,) if role else ("web", "worker")
    faults: dict[str, None] = {}  # in order, each once
    for each in roles:
        try:
            settings = Settings.load(each)
        except SettingsError as error:
            faults.update(dict.fromkeys(str(error).split("\n")))
    if faults:
        _refuse("\n".join(faults))
    with connection.connect(settings) as client:
        ask = asking(client)
        found = findings.look(ask, settings, for_workers="worker" in roles).found
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=2))
    else:
        click.echo("settings     complete")
        for finding in found:
            click.echo(_in_words(finding))
    for line in findings.warnings(found, settings):
        click.echo(line, err=True)
    if settings.given_up:
        click.echo(settings.given_up, err=True)
    try:
        findings.require(found)
    except UnsafeRedis as error:
        _refuse(str(error))


def _in_words(finding: Finding) -> str:
    state = "vouched for" if finding.vouched else finding.state
    said = finding.text if finding.state == "good" else f"{state}: {finding.text}"
    return f"{finding.name:12} {said}"


@main.command()
def health() -> None:
    """Ask the web process of this machine whether it answers, at PORT or 8000.

    Does not check Redis, since a restart would not repair it. Uses no proxy.
    """
    port = _settings("tool").port or 8000
    web = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        web.request("GET", "/healthz")
        status = web.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        click.echo(f"no answer on port {port} ({type(error).__name__})", err=True)
        sys.exit(1)
    click.echo(f"port {port} answers {status}")
    sys.exit(status != 200)


def _settings(role: Role) -> Settings:
    try:
        return Settings.load(role)
    except SettingsError as error:
        _refuse(str(error))


def _refuse(text: str) -> NoReturn:
    click.echo(f"refusing to start: {text}", err=True)
    sys.exit(os.EX_CONFIG)


main.add_command(console)
main.add_command(events)


main.add_command(status.command)


if __name__ == "__main__":
    try:
        main(prog_name="python -m service", complete_var="_SERVICE_COMPLETE")
    except redis.RedisError as fault:
        click.echo(f"Redis: {explain(fault)}", err=True)
        sys.exit(os.EX_UNAVAILABLE)
