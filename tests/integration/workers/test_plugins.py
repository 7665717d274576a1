"""Plugins as processes meet them: installed, listed, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

ACME = {"ACME_URL": "https://accounts.example", "STRIPE_RESTRICTED_KEY": "rk_test_51Hb7Zk"}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the distribution `acme-identity` and install it into a folder of its own."""
    folder = tmp_path_factory.mktemp("plugins")
    source = folder / "source"
    # A copy, so that building leaves nothing in the repository.
    for path in (ROOT / "tests/data/acme_plugin").rglob("*"):
        if path.suffix in {".py", ".toml"}:
            copy = source / path.relative_to(ROOT / "tests/data/acme_plugin")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*pip, *offline, "--target", folder / "site", source], check=True, capture_output=True
    )
    return folder / "site"


@pytest.fixture
def workers(tmp_path: Path) -> Run:
    """Run `python -m workers ...`, with plugin modules of the test's own to import."""

    def workers(
        *arguments: str, path: Path = tmp_path, **env: str
    ) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        # Nothing listens there: what a refused worker would need is not even looked for.
        given = {"STRIPE_API_KEY": "sk_test_workers", "REDIS_URL": "redis://127.0.0.1:9/0"}
        return subprocess.run(
            [sys.executable, "-m", "workers", *arguments],
            cwd=ROOT,
            env=kept | given | {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"} | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return workers


def test_an_installed_distribution_is_found_by_its_entry_point(workers, installed) -> None:
    done = workers("handlers", "--json", path=installed, **ACME)
    assert (done.returncode, done.stderr) == (0, "")
    found = {handler["name"]: handler for handler in json.loads(done.stdout)}
    assert found["acme.grant_access"] == {
        "name": "acme.grant_access",
        "events": ["verified"],
        "reasons": [],
        "needs": ["verified_outputs.dob"],
        "superseded": False,
        "retries": 5,
        "timeout": 10,
        "origin": "entry point acme of acme-identity",
    }
    assert found["acme.remind"]["reasons"] == ["abandoned", "document_expired"]
    assert found["audit.log_event"]["origin"] == "file workers.handlers.audit"


def test_as_a_table(workers, installed) -> None:
    lines = workers("handlers", path=installed, **ACME).stdout.splitlines()
    assert lines[0].split() == ["HANDLER", "EVENTS", "NEEDS", "RETRIES", "TIMEOUT", "ORIGIN"]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert rows["acme.grant_access"].startswith("verified verified_outputs.dob 5 10 s entry point")
    assert rows["audit.log_event"] == "* - 3 days 60 s file workers.handlers.audit"


def test_its_missing_settings_are_refused(workers, installed) -> None:
    done = workers(path=installed)
    assert done.returncode == 78
    assert done.stderr == (
        "refusing to start: plugins that cannot be used:\n"
        "entry point acme of acme-identity: setting ACME_URL: Field required: set it in the"
        f" environment of the worker ({installed}/acme_identity/__init__.py:8)\n"
    )
    needy = workers(path=installed, ACME_URL="x").stderr
    assert needy.splitlines()[1:] == [
        "entry point acme of acme-identity: acme.grant_access needs verified_outputs.dob:"
        " set STRIPE_RESTRICTED_KEY (rk_...)"
    ]


BAD = {
    "broken": ("import nowhere", "cannot be imported: ModuleNotFoundError: No module named"),
    "leaving": ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
    "empty": ("", "holds no handler: mark a function with @on(...)"),
    "typo": (
        "@on('verifed')\ndef f(v): ...",
        "typo.f: unknown event 'verifed': perhaps 'verified'",
    ),
    "mute": ("@on()\ndef f(v): ...", "mute.f: names no event: one of created"),
    "field": ("@on('*', needs='dob')\ndef f(v): ...", "field.f: unknown field in needs 'dob'"),
    "reason": ("@on('verified', reason='abandoned')\ndef f(v): ...", "reason.f: reason= filters"),
    "retry": ("@on('*', retries=-1)\ndef f(v): ...", "retry.f: retries= must be"),
    "hasty": ("@on('*', timeout=0)\ndef f(v): ...", "hasty.f: timeout= must be"),
    "later": ("@on('*')\nasync def f(v): ...", "later.f: is async"),
    "lazy": ("@on('*')\ndef f(v): yield", "lazy.f: is a generator"),
    "greedy": ("@on('*')\ndef f(v, w): ...", "greedy.f: must take one argument"),
    "twice": ("@on('*')\ndef f(v): ...\ng = f", "twice.f: is the same function as twice.f"),
    "needy": (
        "@on('*', needs='verified_outputs.dob')\ndef f(v): ...",
        "needy.f needs verified_outputs.dob: set STRIPE_RESTRICTED_KEY",
    ),
    "unset": (
        "class S(BaseSettings):\n  acme_port: int\n  @on('*')\n  def f(self, v): ...",
        "setting ACME_PORT: Field required",
    ),
}


@pytest.mark.parametrize("command", [(), ("handlers",)], ids=["worker", "handlers"])
def test_every_kind_of_bad_plugin_is_refused_in_one_message(command, workers, tmp_path) -> None:
    imports = "from identity_webhooks import on\nfrom pydantic_settings import BaseSettings\n"
    for name, (source, _) in BAD.items():
        (tmp_path / f"{name}.py").write_text(imports + source + "\n")
    done = workers(*command, HANDLERS=",".join(["nowhere.at.all", *BAD]))
    assert (done.returncode, done.stdout) == (78, "")
    heading, *lines = done.stderr.splitlines()
    assert heading == "refusing to start: plugins that cannot be used:"
    expected = {
        "nowhere.at.all": "cannot be imported: ModuleNotFoundError",
        **{name: words for name, (_, words) in BAD.items()},
    }
    found = dict(line.removeprefix("HANDLERS ").split(": ", 1) for line in lines)
    assert found.keys() == expected.keys()
    assert len(lines) == len(expected), "one line each"
    for name, words in expected.items():
        assert found[name].startswith(words)


def test_what_a_plugin_prints_into_the_log_stays_out_of_the_answer(workers, tmp_path) -> None:
    source = "import logging, warnings\nfrom identity_webhooks import on\n" + (
        "logging.getLogger('acme').warning('hello')\nwarnings.warn('old')\n@on('*')\ndef f(v): ..."
    )
    (tmp_path / "noisy.py").write_text(source)
    done = workers("handlers", "--json", HANDLERS="noisy")
    assert "noisy.f" in {handler["name"] for handler in json.loads(done.stdout)}
    assert [json.loads(line)["logger"] for line in done.stderr.splitlines()] == [
        "acme",
        "py.warnings",
    ]


def test_the_old_import_is_told_to_the_operator(workers, tmp_path) -> None:
    (tmp_path / "old.py").write_text("from workers import on\n\n@on('*')\ndef f(v): ...\n")
    done = workers("handlers", HANDLERS="old")
    assert "old.f" in done.stdout
    (line,) = map(json.loads, done.stderr.splitlines())
    assert "old.py:1: FutureWarning: on has moved: write `from identity_w" in line["event"]


def test_somebody_elses_service_package_is_refused(tmp_path) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service/__init__.py").write_text("raise RuntimeError('theirs was imported')")
    done = subprocess.run(
        [sys.executable, "-c", "import workers.__main__"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: `service` is another package here ({tmp_path}/service/")
