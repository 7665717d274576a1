"""The same three commands everywhere, and nothing weaker in one place than in another."""

import json
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from deploy.local import procfile
from service.settings import Settings

ROOT = Path(__file__).parents[2]
ROLES = procfile(ROOT / "Procfile")
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8").splitlines()
IMAGE_COMMAND = json.loads(DOCKERFILE[-1].removeprefix("CMD "))
OURS = [name for name in COMPOSE["services"] if name != "redis"]


def test_the_roles_are_the_same_everywhere():
    app = json.loads((ROOT / "app.json").read_text(encoding="utf-8"))

    assert set(ROLES) == set(OURS) == set(app["formation"]) == {"web", "worker", "periodic"}
    assert set(ROLES) < set(procfile(ROOT / "Procfile.dev"))


@pytest.mark.parametrize("role", OURS)
def test_a_container_runs_what_the_procfile_says(role):
    assert COMPOSE["services"][role].get("command", IMAGE_COMMAND) == shlex.split(ROLES[role])


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_may_do_little_and_comes_back(name):
    service = COMPOSE["services"][name]

    assert service["restart"] == "always"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["stop_grace_period"] == "30s"


def test_the_image_runs_as_nobody_in_particular():
    assert "USER 10001:10001" in DOCKERFILE
    assert "--require-hashes" in "".join(DOCKERFILE)


def test_the_image_holds_every_package_that_its_processes_import():
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ours = [name for name in config["tool"]["mypy"]["packages"] if "sandbox" not in name]

    assert len(ours) == 3
    assert {f"COPY {name} {name}" for name in ours} <= set(DOCKERFILE)
    assert {f"!{name}" for name in ours} <= set(ignored)


def test_each_role_gets_its_own_secrets_only():
    emptied = {
        role: {name for name, value in service["environment"].items() if value == ""}
        for role, service in COMPOSE["services"].items()
        if role != "redis"
    }

    assert emptied == {
        "web": {"STRIPE_API_KEY", "STRIPE_RESTRICTED_KEY"},
        "worker": {"STRIPE_WEBHOOK_SECRET"},
        "periodic": {"STRIPE_WEBHOOK_SECRET"},
    }


def test_what_the_platforms_set_are_settings():
    app = json.loads((ROOT / "app.json").read_text(encoding="utf-8"))
    given = {name for role in OURS for name in COMPOSE["services"][role]["environment"]}

    assert (set(app["env"]) | given) <= {name.upper() for name in Settings.model_fields}


def test_redis_keeps_what_it_is_given():
    lines = (ROOT / "deploy/redis.conf").read_text(encoding="utf-8").splitlines()

    assert {
        "bind 127.0.0.1",
        "appendonly yes",
        "appendfsync everysec",
        "maxmemory-policy noeviction",
    } <= set(lines)
