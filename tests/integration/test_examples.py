"""The example plugin, and the package that `python -m workers new-handler` makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def run(*command: str | Path, cwd: Path, path: str = "", **extra: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env=env | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"} | extra,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    said = run("workers", "new-handler", "acme-checks", cwd=folder)
    assert "acme-checks/acme_checks/__init__.py" in said.splitlines()
    return folder / "acme-checks"


def test_nothing_of_the_examples_name_is_left(made: Path) -> None:
    for path in made.rglob("*"):
        if path.is_file():
            assert "shop" not in f"{path.name} {path.read_text()}".lower()


@pytest.mark.walk
@pytest.mark.parametrize("which", ["example", "made"])
def test_its_tests_and_its_types_hold(which: str, made: Path, tmp_path: Path) -> None:
    folder = made if which == "made" else ROOT / "examples/shop-identity"
    cache = f"cache_dir={tmp_path}"
    run("pytest", "-q", "-o", cache, "--rootdir", folder, folder, cwd=tmp_path, path=str(folder))
    name = "acme_checks" if which == "made" else "shop_identity"
    mypy = ("mypy", "--strict", "--cache-dir", tmp_path / "mypy", folder / name)
    run(*mypy, cwd=tmp_path, path=str(folder), MYPYPATH=str(ROOT))


@pytest.mark.sample(1)
@pytest.mark.parametrize("framework", ["django", "flask"])
def test_a_shop_shares_the_plugins_handler(framework: str, tmp_path: Path) -> None:
    folder, plugin = (ROOT / "examples" / each for each in (f"{framework}-shop", "shop-identity"))
    command = ("pytest", "-q", "-W", "error", "-o", f"cache_dir={tmp_path}", "--rootdir", folder)
    path = f"{folder}{os.pathsep}{plugin}"
    said = run(*command, folder, cwd=tmp_path, path=path, IDENTITY_WEBHOOKS=str(ROOT))
    assert "1 passed" in said


def test_the_django_shop_has_every_migration(tmp_path: Path) -> None:
    settings = {"DJANGO_SETTINGS_MODULE": "shop.settings"}
    settings["SHOP_DATABASE"] = f"sqlite:///{tmp_path}/shop.db"
    folder = str(ROOT / "examples/django-shop")
    check = ("django", "makemigrations", "--check", "--dry-run")
    assert "No changes detected" in run(*check, cwd=tmp_path, path=folder, **settings)


def test_it_is_installed_and_found(made: Path, tmp_path: Path) -> None:
    pip = ("pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    run(*pip, "--no-build-isolation", "--target", tmp_path / "site", made, cwd=tmp_path)
    listed = run(
        *("workers", "handlers", "--json"),
        cwd=ROOT,
        path=str(tmp_path / "site"),
        ACME_DATABASE="sqlite://",
        STRIPE_API_KEY="sk_test_reader",
    )
    found = {handler["name"]: handler["origin"] for handler in json.loads(listed)}
    assert found["acme.remember"] == found["acme.forget"] == "entry point acme of acme-checks"


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["", "Acme", "acme_checks", "../acme", "acme-checks"])
def test_what_cannot_be_made_is_refused(name: str, made: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers", "new-handler", name],
        cwd=made.parent,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "no name" in done.stderr or "is there already" in done.stderr
