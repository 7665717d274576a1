"""One image and four roles, brought up once and followed from the first event to the stop."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import requests
import stripe

READY = "http://127.0.0.1:8000/readyz"
SANDBOX = "http://127.0.0.1:12111"
CANARY = "ZyxCanary7Q"
ROLES = ("web", "worker", "periodic", "redis")
ROOT = Path(__file__).parents[2]
KINDS = {"created", "processing", "requires_input", "verified", "canceled", "redacted"}

# How attempts end, and what becomes of the session then: together all six types of events.
STORIES = [(["verified"], "redact"), (["document_expired", "verified"], ""), ([], "cancel")]


@pytest.fixture(scope="module")
def played(up, status, wait_until):
    """The sandbox beside the rest, as docs/deploy.md says, and all events through it."""
    up.set(STRIPE_API_BASE="http://sandbox:12111")
    up.follow("docs/deploy.md", "dev")
    wait_until(lambda: status(f"{SANDBOX}/_sandbox/") == 200 and status(READY) == 200)
    for attempts, end in STORIES:
        play(attempts, end)
    return up


def play(attempts: list[str], end: str) -> None:
    """Take one session through a verification."""
    client = stripe.StripeClient(f"sk_test_{CANARY}", base_addresses={"api": SANDBOX})
    sessions = client.v1.identity.verification_sessions
    session = sessions.create({"type": "document", "metadata": {"name": CANARY}}).id
    for outcome in attempts:
        tell(session, "submit", outcome=outcome)
    if end == "cancel":
        sessions.cancel(session)
    elif end == "redact":
        sessions.redact(session)
        tell(session, "complete")


def tell(session: str, route: str, **form: str) -> None:
    url = f"{SANDBOX}/_sandbox/sessions/{session}/{route}"
    requests.post(url, data=form, timeout=10).raise_for_status()


def made() -> Counter[str]:
    """Return how many events of each type the sandbox has made."""
    listed = stripe.StripeClient("sk_test_x", base_addresses={"api": SANDBOX}).v1.events.list()
    return Counter(event.type.rpartition(".")[2] for event in listed.auto_paging_iter())


def done(engine) -> Counter[str]:
    """Return how many events of each type the inbox says are done."""
    tool = ("run", "--rm", "-T", "tool", "service", "events", "list", "--json", "--limit", "1000")
    return Counter(
        event["kind"]
        for event in json.loads(engine.compose("--profile", "tool", *tool))
        if event["state"] == "done"
    )


def settle(engine, *, within: float = 90) -> None:
    """Wait until all that the sandbox made is done."""
    deadline = time.monotonic() + within
    while (wanted := made()) != (got := done(engine)):
        assert time.monotonic() < deadline, (wanted, got)
        time.sleep(1)


# --- the image ---------------------------------------------------------------------------------


def test_what_is_in_the_image(engine) -> None:
    code = "import os, sys; print(os.getuid(), sorted(os.listdir()), sys.version_info[:2])"
    said = engine.run(
        *("docker", "run", "--rm", "--read-only", "--network", "none"),
        *("identity-webhooks", "python", "-c", code),
    )
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    python = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE))["PYTHON_IMAGE"]
    version = python.split(":")[1].split("-")[0].replace(".", ", ")
    packages = set(re.findall(r"^COPY (\w+) \1$", dockerfile, re.MULTILINE))
    assert {"service", "workers"} < packages
    assert said == f"10001 {sorted({*packages, 'pyproject.toml'})} ({version})\n"


def test_the_image_says_one_version(engine) -> None:
    label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
    of_the_label = engine.run("docker", "image", "inspect", "-f", label, "identity-webhooks")
    run = ("docker", "run", "--rm", "--read-only", "--network", "none", "identity-webhooks")
    for package in ("service", "workers"):
        said = engine.run(*run, "python", "-m", package, "--version")
        assert said == f"identity-webhooks {of_the_label}"


def test_labels_health_and_size(engine) -> None:
    (image,) = json.loads(engine.run("docker", "image", "inspect", "identity-webhooks"))
    config = image["Config"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "service", "health"]
    assert config["Cmd"] == ["python", "-m", "service", "serve"]
    assert config["User"] == "10001:10001"


def test_an_image_with_handlers_of_ones_own(engine, block) -> None:
    lines = block("README.md", "derived")
    assert len(lines.splitlines()) == 3
    folder = engine.folder / "derived"
    shutil.copytree(ROOT / "tests/data/acme_plugin", folder)
    (folder / "Dockerfile").write_text(lines)
    engine.run("docker", "build", "-t", "identity-webhooks-derived", folder, within=120)
    said = engine.run(
        *("docker", "run", "--rm", "--read-only", "--network", "none", "-e", "ACME_URL=x"),
        *("-e", f"STRIPE_RESTRICTED_KEY=rk_test_{CANARY}"),
        *("identity-webhooks-derived", "python", "-m", "workers", "handlers", "--json"),
    )
    names = {handler["name"] for handler in json.loads(said)}
    assert {"acme_identity.remind", "acme_identity.grant_access"} <= {
        name.replace("Accounts.", "") for name in names
    }


def test_an_image_with_a_package(engine, block) -> None:
    folder = engine.folder / "package"
    dist = folder / "dist"
    dist.mkdir(parents=True)
    (folder / "Dockerfile").write_text(block("docs/handlers.md", "package"))
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index")
    plugin = ROOT / "tests/data/acme_plugin"
    engine.run(*pip, "--no-build-isolation", "-w", dist, plugin, within=120)
    engine.run("docker", "build", "-t", "identity-webhooks-package", folder, within=120)
    run = ("docker", "run", "--rm", "--read-only", "--network", "none", "-e", "ACME_URL=x")
    run += ("-e", f"STRIPE_RESTRICTED_KEY=rk_test_{CANARY}", "identity-webhooks-package")
    said = engine.run(*run, "python", "-m", "workers", "handlers", "--json")
    origins = {handler["origin"] for handler in json.loads(said)}
    assert "entry point acme of acme-identity" in origins
    assert engine.run(*run, "id", "-u").strip() == "10001"


def test_what_make_sbom_writes(engine) -> None:
    show = ("docker", "run", "--rm", "--network", "none", "identity-webhooks-sbom", "cat")
    components = json.loads(engine.run(*show, "/sbom/sbom.cdx.json"))["components"]
    licences = engine.run(*show, "/sbom/licences.txt")
    locked = re.findall(
        r"^([a-z0-9_.-]+)==(\S+) \\$", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    assert len(locked) > 20
    found = {(each["name"].lower().replace("_", "-"), each["version"]) for each in components}
    assert set(locked) <= found
    plain = licences.lower().replace("_", "-")
    listed = {tuple(line.split()[:2]) for line in plain.splitlines()}
    assert set(locked) <= listed


# --- compose.yaml ------------------------------------------------------------------------------


def test_every_role_says_that_it_is_healthy(up, wait_until) -> None:
    for role in ROLES:
        wait_until(
            lambda role=role: up.container(role, "{{.State.Health.Status}}") == "healthy",
            within=300,
        )


@pytest.mark.parametrize("role", ROLES)
def test_a_container_may_do_little(up, role) -> None:
    said = up.compose("exec", "-T", role, "cat", "/proc/1/status")
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert status["Name"] in {"docker-init", "tini"}
    assert "0" not in status["Uid"].split()
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    form = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}"
    read_only, memory, pids = up.container(role, form).split()
    assert read_only == "true"
    assert 100 << 20 < int(memory) <= 1 << 30
    assert int(pids) == 256
    assert up.container(role, '{{index .HostConfig.LogConfig.Config "max-size"}}') == "10m"


@pytest.mark.parametrize("role", ["web", "worker", "periodic"])
def test_the_limits_hold_inside(up, role) -> None:
    said = up.python(
        role,
        "from pathlib import Path\n"
        "for file in '/app/x', '/venv/x', '/etc/x', '/run/credentials/x':\n"
        "  try: Path(file).touch()\n"
        "  except OSError as error: print(error.errno)\n"
        "Path('/tmp/x').write_text('x')\n"
        "root = Path('/sys/fs/cgroup')\n"
        "print([f.read_text().strip() for f in (root / 'pids.max', root / 'pids/pids.max')"
        " if f.exists()])\n",
    )
    # A read-only file system is errno 30.
    assert said == "30\n30\n30\n30\n['256']\n"


def test_each_role_has_its_own_secrets(up) -> None:
    for role, not_its_own in (("web", "rk_test_"), ("worker", "whsec_"), ("periodic", "whsec_")):
        child = up.python(role, "import os; print(dict(os.environ))")
        assert not_its_own not in child
        url = up.python(role, "print(open('/run/credentials/redis-url').read())")
        assert url.startswith(f"redis://{'web' if role == 'web' else 'worker'}:")
        assert url.split("@")[0] not in up.container(role, "{{json .Config}}")


def test_redis_lets_in_nobody_without_a_password(up) -> None:
    said = up.python(
        "web",
        "import redis\n"
        "try: print(redis.Redis(host='redis').ping())\n"
        "except redis.RedisError as error: print(error)\n",
    )
    assert "authenticated" in said


def test_all_six_events(played) -> None:
    settle(played)
    assert set(done(played)) == KINDS
    assert made() == {
        **dict.fromkeys(("requires_input", "canceled", "redacted"), 1),
        **dict.fromkeys(("created", "processing"), 3),
        "verified": 2,
    }


def test_nothing_is_lost_when_redis_dies(played, status, wait_until) -> None:
    before = started(played, "redis")
    kill(played, "redis", "valkey-server")
    play(["verified"], "")  # while it is away, or coming back: the sandbox delivers again
    wait_until(lambda: started(played, "redis") != before)
    wait_until(lambda: status(READY) == 200)
    settle(played)
    for role in ("web", "worker", "periodic"):
        assert played.container(role, "{{.RestartCount}}") == "0", f"{role} was restarted for it"


def test_nothing_is_lost_when_web_dies(played, status, wait_until) -> None:
    before = started(played, "web")
    kill(played, "web", "gunicorn")
    play(["verified"], "")
    wait_until(lambda: started(played, "web") != before)
    wait_until(lambda: status(READY) == 200)
    settle(played)
    assert played.container("worker", "{{.RestartCount}}") == "0"


def started(engine, service: str) -> str:
    return engine.container(service, "{{.State.StartedAt}}")


def kill(engine, service: str, process: str) -> None:
    """Kill what the container's init runs: an end that nobody asked the engine for."""
    code = f"""
import os, pathlib, signal
for each in pathlib.Path("/proc").glob("[0-9]*"):
    parent = (each / "stat").read_text().rpartition(")")[2].split()[1]
    if parent == "1" and {process!r} in (each / "cmdline").read_text():
        os.kill(int(each.name), signal.SIGKILL)
"""
    if service == "redis":
        command = ("sh", "-c", f"kill -9 $(pidof {process})")
    else:
        command = ("python", "-c", code)
    engine.compose("exec", "--detach", service, *command)  # which dies with the container


def test_what_is_printed_and_kept_names_nobody(played) -> None:
    logs = played.compose("logs", "--no-color", *ROLES, "credentials")
    kept = played.compose("exec", "-T", "redis", "sh", "-c", "cat /data/appendonlydir/*")
    for text in (logs, kept):
        assert text
        assert CANARY.lower() not in text.lower()


def test_all_stop_in_time(played) -> None:
    begun = time.monotonic()
    played.compose("--profile", "dev", "stop", within=120)
    assert time.monotonic() - begun < 30
    for role in ROLES:
        assert played.container(role, "{{.State.ExitCode}}") == "0", role
