"""`python -m workers new-handler`: which names a package may have."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from workers import new_handler
from workers.new_handler import CannotStart, create

REFUSED = {
    # What is no name of a distribution.
    **dict.fromkeys(
        ("", "Acme", "acme_identity", "acme--identity", "-acme", "acme-", "1acme", "../acme", "ä"),
        "is no name: lower-case words with dashes, as in acme-identity",
    ),
    **dict.fromkeys(
        ("class", "match", "import", "print", "list", "class-checks", "type-checks", "id-checks"),
        "is a word of Python's",
    ),
    **dict.fromkeys(("json", "logging", "string", "signal", "ast"), "is a module of Python's"),
    # Installed with the service, or a part of it.
    **dict.fromkeys(
        ("stripe", "redis", "rq", "flask", "click", "urllib3", "pydantic", "pydantic-settings"),
        "is there already, and one would hide the other",
    ),
    **dict.fromkeys(
        ("service", "workers", "identity-webhooks", "stripe-identity-sandbox", "tests", "deploy"),
        "is there already, and one would hide the other",
    ),
    # With settings or a plugin that the service has.
    **dict.fromkeys(
        ("stripe-checks", "redis-checks", "identity-checks", "worker-checks", "inbox-checks"),
        "its settings begin with",
    ),
    **dict.fromkeys(("audit-checks",), "a handler that is built in is called audit"),
    # Its first word becomes a name in the code, which has one like it.
    **dict.fromkeys(
        ("run-checks", "users-checks", "text-checks", "verification-checks", "pytest-checks", "v"),
        "has a meaning of its own in the code that is written",
    ),
}


@pytest.mark.sample(24)
@pytest.mark.parametrize(("name", "words"), REFUSED.items(), ids=[*map(repr, REFUSED)])
def test_each_is_refused_with_a_reason(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CannotStart) as caught:
        create(name, tmp_path)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_module_of_python_is_refused(tmp_path: Path) -> None:
    names = [name for name in sys.stdlib_module_names if name.isalnum() and name.islower()]
    assert len(names) > 100
    for name in names:
        with pytest.raises(CannotStart):
            create(name, tmp_path)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_there_is_not_written_over(what: str, tmp_path: Path) -> None:
    there = tmp_path / "acme-checks"
    there.mkdir() if what == "folder" else there.touch()
    with pytest.raises(CannotStart, match="is there already"):
        create("acme-checks", tmp_path)
    assert list(there.rglob("*")) == []


def test_without_the_example_nothing_is_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(new_handler, "EXAMPLE", tmp_path / "nowhere")
    with pytest.raises(CannotStart, match="the example is not here: run this in a checkout"):
        create("acme-checks", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["acme-identity", "acme", "json-checks", "a1", "kyc", "our-own"])
def test_a_good_name_makes_a_package_of_python(name: str, tmp_path: Path) -> None:
    written = create(name, tmp_path)
    module = name.replace("-", "_")
    assert {path.relative_to(tmp_path / name).as_posix() for path in written} == {
        *(f"{module}/__init__.py", f"tests/test_{module}.py", "pyproject.toml", "README.md"),
        ".github/workflows/test.yml",
    }
    plugin = (tmp_path / name / module / "__init__.py").read_text(encoding="utf-8")
    short = name.partition("-")[0]
    assert f"{short}_" in plugin
    assert f"class {short.capitalize()}(" in plugin
    assert f"{short.upper()}_DATABASE" in (tmp_path / name / "README.md").read_text()
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert "shop" not in text.lower()
        if path.suffix == ".py":
            ast.parse(text)
