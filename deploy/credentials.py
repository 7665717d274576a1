"""Makes what the services of compose.yaml need of each other, before they start.

Each Redis user gets a password of its own, made here and kept in a volume that only its role can
read. Redis gets their hashes, web the mode of the API key instead of the key. Runs before every
start and keeps the passwords that are there; the users' rights are those of this release.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path

import click

from service.settings import Settings, SettingsError

RULES = Path(__file__).with_name("redis-acl.conf")
ROLES = ("web", "worker", "tool")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--redis", default="redis:6379", show_default=True, help="Where Redis is.")
def main(folder: Path, redis: str) -> None:
    """Write FOLDER/redis/users.conf and probe-password, and FOLDER/{web,worker,tool}/redis-url."""
    try:
        livemode = Settings.load("tool").livemode
    except SettingsError as error:
        sys.exit(f"refusing to start: {error}")
    passwords = {role: _url(folder / role / "redis-url", role, redis) for role in ROLES}
    passwords["probe"] = _kept(folder / "redis/probe-password", secrets.token_urlsafe(32))
    rules = RULES.read_text(encoding="utf-8")
    for role, password in passwords.items():
        hashed = hashlib.sha256(password.encode()).hexdigest()
        rules = rules.replace(f"#SHA256_OF_THE_PASSWORD_OF_{role.upper()}", f"#{hashed}")
    _write(folder / "redis/users.conf", rules)
    _write(folder / "web/livemode", "" if livemode is None else str(int(livemode)))


def _url(file: Path, role: str, redis: str) -> str:
    """Keep or make the URL of a role; its password."""
    url = _kept(file, f"redis://{role}:{secrets.token_urlsafe(32)}@{redis}/0")
    return url.split("@")[0].rpartition(":")[2]


def _kept(file: Path, text: str) -> str:
    if not file.exists():
        _write(file, text)
    return file.read_text(encoding="utf-8")


def _write(file: Path, text: str) -> None:
    # Whole or not at all. The volume is the guard: Redis reads it as another user.
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o444)
    new.replace(file)


if __name__ == "__main__":
    main()
