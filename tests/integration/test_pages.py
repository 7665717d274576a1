# ruff: noqa: S102, S307  (it runs what our own pages show)
"""What looks like code in README.md and docs/handlers.md works, also within a sentence.

The blocks of Python and shell are run by tests/e2e/test_readme.py; here it is seen to that there is
no other block than those that something runs or makes.
"""

from __future__ import annotations

import contextvars
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import django.conf
import pytest
import sqlalchemy
from django.db import transaction
from django.db.migrations import RunPython
from sqlalchemy.orm import sessionmaker

import identity_webhooks
from identity_webhooks.database import create_table as create_sessions
from identity_webhooks.once import create_table
from identity_webhooks.testing import verification
from identity_webhooks.testing.stack import Stack
from service.settings import Settings
from tests.conftest import ROOT

PAGES = ("README.md", "docs/handlers.md")
BLOCK = re.compile(r"(?:<!-- ([^\n]*?) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAKES = ("README.md", "sh")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks() -> Iterator[tuple[str, str, str, str]]:
    """Yield page, mark above it, language and text."""
    for page in PAGES:
        for mark, language, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
            yield page, mark, language, text


def words() -> list[str]:
    """Return what stands between backticks in sentences, and the commands in plain blocks."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    plain = [text for _, mark, language, text in blocks() if language == "text" and not mark]
    return sorted({*found, *"".join(plain).splitlines()})


WORDS = words()
COMMANDS = [word for word in WORDS if re.match(r"python -m \w", word)]
TARGETS = {found[1] for word in WORDS if (found := re.match(r"(?:\w+=\S+ )*make ([\w-]+)$", word))}
VARIABLES = {found[1] for word in WORDS if (found := re.match(r"([A-Z_]{4,})=", word))}
SNIPPETS = [
    word
    for word in WORDS
    if re.match(r"@\w|raise |from |[\w.]+\(", word) and not re.match(r"on\(|@v\.once\(\.\.\.", word)
]


def targets_in_blocks() -> list[str]:
    """Return what `make` is told in the blocks of README.md."""
    shell = "".join(text for page, _, language, text in blocks() if (page, language) == MAKES)
    return re.findall(r"^make ([\w-]+) +# ", shell, re.MULTILINE)


def test_every_block_is_run_or_made_by_something() -> None:
    for page, mark, language, text in blocks():
        what = f"{page}: {text.splitlines()[0]}"
        if made := re.search(r"made by make ([\w-]+)$", mark):
            assert re.search(rf"^{made[1]}:", MAKEFILE, re.MULTILINE), what
        elif run := re.match(r"run by tests/containers: (\w+)$", mark):
            tests = "".join(path.read_text() for path in (ROOT / "tests/containers").glob("*.py"))
            assert re.search(rf'"{re.escape(page)}", "{run[1]}"', tests), what
        elif (page, language) == MAKES:
            assert all(re.match(r"make [\w-]+ +# ", line) for line in text.splitlines()), what
        elif language == "text":
            assert set(text.splitlines()) <= set(COMMANDS), what
        else:  # tests/e2e/test_readme.py takes all of a language; the last is below
            assert (page, language) in {
                ("README.md", "python"),
                ("docs/handlers.md", "python"),
                ("docs/handlers.md", "sh"),
                ("docs/handlers.md", "toml"),
            }, what


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_these_words_and_options(command: str) -> None:
    arguments = [word for word in command.split() if word != "|"]
    if arguments[2:3] not in (["service"], ["workers"]):
        pytest.fail(f"a command of nobody here: {command}")
    done = subprocess.run(
        [sys.executable, *arguments[1:], "--help"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")


def test_every_target_of_make_is_there() -> None:
    named = {*TARGETS, *targets_in_blocks()}
    for target in named:
        assert re.search(rf"^([\w-]+ )*{target}( [\w-]+)*:", MAKEFILE, re.MULTILINE), target
    assert {"demo", "dev", "test", "chaos"} <= named


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_a_variable_is_a_setting(name: str) -> None:
    ours = {field.upper() for field in Settings.model_fields}
    assert name in ours


@pytest.fixture
def names() -> dict[str, object]:
    """What a reader has at hand."""
    if not django.conf.settings.configured:
        django.conf.settings.configure()
    engine = sqlalchemy.create_engine("sqlite://")
    create_table(engine)
    return {
        **{name: getattr(identity_webhooks, name) for name in identity_webhooks.__all__},
        "v": verification("document_expired"),
        "create_table": create_table,
        "identity_webhooks": SimpleNamespace(
            database=SimpleNamespace(create_table=create_sessions)
        ),
        "op": SimpleNamespace(get_bind=lambda: engine),
        "RunPython": RunPython,
        "stack": SimpleNamespace(submit=Stack.submit.__get__(None, Stack)),
        "session": "vs_1",
        "engine": engine,
        "Session": sessionmaker(engine),
        "transaction": transaction,
        "contextvars": contextvars,
        "pool": SimpleNamespace(submit=lambda run, *given: run(*given)),
        "work": id,
    }


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_python_within_a_sentence_runs(snippet: str, names: dict[str, object]) -> None:
    if snippet.startswith("@"):
        argument = "" if snippet in {"@on_start", "@on_stop"} else "v"
        exec(f"{snippet}\ndef handler({argument}): ...", names)
        # Below `v.once` it runs at once, and is True from then on.
        assert names["handler"] is True or callable(names["handler"])
    elif snippet.startswith("raise "):
        kind = names[snippet.split()[1].partition("(")[0]]
        with pytest.raises(kind) as raised:
            exec(snippet, names)
        assert raised.value.reason == "why"
        assert not raised.value.misuse
    elif snippet.startswith("stack."):
        assert callable(eval(snippet.partition("(")[0], names))
    else:
        exec(snippet, names)


def test_the_entry_point_of_the_page_is_found(tmp_path: Path) -> None:
    (text,) = [text for _, _, language, text in blocks() if language == "toml"]
    points = tomllib.loads(text)["project"]["entry-points"]
    info = tmp_path / "shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    lines = [f"[{g}]\n" + "".join(f"{n} = {m}\n" for n, m in p.items()) for g, p in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for page, _, language, code in blocks():
        if page == "docs/handlers.md" and language == "python" and code.startswith("# shop.py\n"):
            (tmp_path / "shop.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "workers", "handlers"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(tmp_path),
            "STRIPE_API_KEY": "sk_test_reader",
            "STRIPE_RESTRICTED_KEY": "rk_test_reader",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "entry point shop of shop" in done.stdout, done.stderr
