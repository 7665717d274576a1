"""deploy/credentials.py: what the services of compose.yaml need of each other is made, and kept."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.credentials import ROLES, RULES, main
from service import redis_url

KEY = "rk_test_51Hb"
FILES = {*(f"{role}/redis-url" for role in ROLES), "web/livemode", "redis/probe-password"}


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Result]:
    """Run it as compose.yaml does, on volumes that may be empty."""

    def made(*options: str, **env: str) -> Result:
        for name in (*ROLES, "redis"):
            (tmp_path / name).mkdir(exist_ok=True)
        given = {"STRIPE_API_KEY": KEY, "STRIPE_LIVEMODE": "", "STRIPE_WEBHOOK_SECRET": ""}
        return CliRunner(env=given | env).invoke(main, [str(tmp_path), *options])

    return made


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_each_role_gets_a_password_of_its_own_and_redis_its_hash(made, tmp_path: Path) -> None:
    assert made().exit_code == 0
    found = files(tmp_path)
    assert found.keys() == {*FILES, "redis/users.conf"}
    passwords = {"probe": found["redis/probe-password"]}
    for role in ROLES:
        url = redis_url.parse(found[f"{role}/redis-url"])
        assert (url["username"], url["host"], url["port"], url["db"]) == (role, "redis", 6379, 0)
        passwords[role] = url["password"]
    assert len(set(passwords.values())) == len(ROLES) + 1
    assert min(map(len, passwords.values())) > 40
    expected = RULES.read_text()
    for role, password in passwords.items():
        hashed = hashlib.sha256(password.encode()).hexdigest()
        expected = expected.replace(f"#SHA256_OF_THE_PASSWORD_OF_{role.upper()} ", f"#{hashed} ")
    assert found["redis/users.conf"] == expected
    assert "SHA256_OF" not in expected


def test_redis_reads_all_of_them_as_another_user(made, tmp_path: Path) -> None:
    made()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files(tmp_path)}
    assert modes == {0o444}


def test_passwords_are_kept_and_rights_and_mode_are_those_of_this_start(
    made, tmp_path: Path
) -> None:
    made()
    before = files(tmp_path)
    (tmp_path / "redis/users.conf").chmod(0o644)
    (tmp_path / "redis/users.conf").write_text("user web on nopass +@all")
    assert made(STRIPE_LIVEMODE="", STRIPE_API_KEY="rk_live_51Hb").exit_code == 0
    assert files(tmp_path) == before | {"web/livemode": "1"}


def test_a_password_that_is_lost_is_made_anew_alone(made, tmp_path: Path) -> None:
    made()
    before = files(tmp_path)
    (tmp_path / "worker/redis-url").unlink()
    made()
    after = files(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {
        "worker/redis-url",
        "redis/users.conf",
    }


@pytest.mark.parametrize(
    ("env", "mode"),
    [
        ({"STRIPE_API_KEY": "rk_live_51Hb"}, "1"),
        ({"STRIPE_API_KEY": "rk_test_51Hb"}, "0"),
        ({"STRIPE_API_KEY": "", "STRIPE_LIVEMODE": "1"}, "1"),
        ({"STRIPE_API_KEY": "", "STRIPE_LIVEMODE": "0"}, "0"),
        ({"STRIPE_API_KEY": ""}, ""),
    ],
)
def test_web_gets_the_mode_and_not_the_key(made, tmp_path: Path, env, mode: str) -> None:
    assert made(**env).exit_code == 0
    found = files(tmp_path)
    assert found["web/livemode"] == mode
    assert not [name for name, text in found.items() if "51Hb" in text]


def test_redis_may_be_elsewhere(made, tmp_path: Path) -> None:
    assert made("--redis", "other:7000").exit_code == 0
    found = files(tmp_path)
    assert {redis_url.place(found[f"{role}/redis-url"]) for role in ROLES} == {"other:7000/0"}


def test_a_wrong_setting_is_said_and_nothing_is_made(made, tmp_path: Path) -> None:
    done = made(STRIPE_LIVEMODE="perhaps")
    assert done.exit_code == 1
    assert done.output.startswith("refusing to start: ")
    assert "STRIPE_LIVEMODE" in done.output
    assert files(tmp_path) == {}
