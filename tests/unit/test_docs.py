"""Every page for people: its links and headings, its commands, and whom it is for.

What README.md and docs/handlers.md show as code is run by tests/e2e/test_readme.py and
tests/integration/test_pages.py. On the other pages a block that looks like code is checked here, or
has a mark above it:

    <!-- run by tests/...: NAME -->    that test takes it from the page, by this name
    <!-- run by tests/... -->          that test runs the same, and names the page
    <!-- made by make TARGET -->       it is output, not input
    <!-- not run: REASON -->
"""

from __future__ import annotations

import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import click
import pytest

import service.__main__
import service.server
import stripe_identity_sandbox.__main__
import workers
import workers.__main__
from dev import docs_site
from tests.conftest import ROOT

LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
).stdout.split()
TRACKED = sorted({page for page in LISTED if (ROOT / page).exists()})
PAGES = [page for page in TRACKED if not page.startswith(("tests/benchmarks/", ".github/"))]
READERS = [page for page in docs_site.pages() if page.startswith("docs/")]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
GROUPS = {
    "service": service.__main__.main,
    "workers": workers.__main__.main,
    "stripe-identity-sandbox": stripe_identity_sandbox.__main__.main,
}
ELSEWHERE = {"README.md", "docs/handlers.md", "docs/reference/commands.md"}
"""Pages whose blocks other tests run, or compare."""

BY_LANGUAGE = {
    ("docs/sandbox.md", "python"): "tests/e2e/sandbox/conftest.py",
    ("docs/sandbox.md", "js"): "tests/e2e/sandbox/conftest.py",
    ("docs/sandbox.md", "ruby"): "tests/e2e/sandbox/conftest.py",
    ("docs/sandbox.md", "php"): "tests/e2e/sandbox/conftest.py",
    ("docs/sandbox.md", "sh"): "tests/e2e/sandbox/conftest.py",
    ("docs/sandbox.md", "yaml"): "tests/unit/sandbox/test_scenario.py",
}
"""Tests that take the blocks of a language from a page."""

TAKEN = {("docs/sandbox.md", "python"): 2, ("docs/sandbox.md", "js"): 2}
"""How many they take, where it is not one."""


CODE, TEXT = (
    ("service", "workers", "identity_webhooks", "deploy"),
    {".py", ".yml", ".yaml", ".html"},
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# --- links ---------------------------------------------------------------------------------------


def headings(text: str) -> set[str]:
    """Return the names that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+?) *$", docs_site.FENCED.sub("", text), re.MULTILINE):
        words = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = sum(1 for each in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", each))
        found.add(f"{name}-{number}" if number else name)
    return found


def headings_of(file: Path) -> set[str]:
    return headings(file.read_text(encoding="utf-8")) if file.suffix == ".md" else set()


def dead(page: str, text: str) -> Iterator[str]:
    """Yield the links of a page that lead nowhere."""
    for link in docs_site.links(text):
        parts = urlsplit(link)
        target = (ROOT / page).parent / unquote(parts.path) if parts.path else ROOT / page
        is_there = target.exists() and target.resolve().is_relative_to(ROOT)
        if not is_there or parts.fragment not in {"", *headings_of(target)}:
            yield link


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    assert not list(dead(page, read(page)))


@pytest.mark.parametrize(
    ("link", "is_dead"),
    [
        ("docs/deploy.md", False),
        ("docs/deploy.md#which-redis", False),
        ("#see-it-work", False),
        ("https://example.com/nowhere", False),
        ("docs/deploy.md#which-reddis", True),
        ("docs/deployment.md", True),
        ("../../etc/hosts", True),
        ("#see-it-fail", True),
    ],
)
def test_a_dead_link_is_seen(link: str, is_dead: bool) -> None:
    assert bool(list(dead("README.md", f"See [this]({link})."))) is is_dead
    assert bool(list(dead("README.md", f"![a picture]({link})"))) is is_dead


def test_headings_are_named_as_github_names_them() -> None:
    text = "# What `v` holds\n## Redis: settings, and what each loses\n## Same\n## Same\n"
    code = "```\n# no heading\n```\n"
    assert headings(text + code) == {
        "what-v-holds",
        "redis-settings-and-what-each-loses",
        "same",
        "same-1",
    }


# --- the site ------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation_once() -> None:
    listed = docs_site.pages()
    assert len(listed) == len(set(listed))
    assert {page for page in TRACKED if page.startswith("docs/")} == set(READERS)
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"} <= set(listed)


@pytest.mark.parametrize("page", [*READERS, "CONTRIBUTING.md", "SECURITY.md"])
def test_a_page_begins_with_whom_it_is_for(page: str) -> None:
    head, blank, first = read(page).split("\n", 3)[:3]
    assert head.startswith("# ")
    assert blank == ""
    assert re.match(r"\*?For (those who|everyone who) ", first), first


# --- decisions -----------------------------------------------------------------------------------

DECISION = re.compile(r"\*\*(?P<title>.+?)\*\* \(\d{4}-\d{2}-\d{2}[;)]")


def faults_of_decisions(text: str) -> Iterator[str]:
    """Yield the decisions of a page that lack their date, or what would change them."""
    for each in re.split(r"^(?=\*\*)", text, flags=re.MULTILINE)[1:]:
        title, _, told = re.sub(r"\s+", " ", each).partition(" Would change it: ")
        if not DECISION.match(title) or not told:
            yield title[:60]


def test_every_decision_has_its_date_and_what_would_change_it() -> None:
    _, decisions = read("docs/design.md").split("\n## Decisions\n")
    assert decisions.count("\n**") > 50
    assert not list(faults_of_decisions(decisions))


@pytest.mark.parametrize(
    ("text", "is_fault"),
    [
        ("**Small** (2026-11-23). Why.\nWould change it: more.", False),
        ("**Small** (2026-11-23; `a.py`). Why.\n\nMore. Would\nchange it: more.", False),
        ("**Small**. Why. Would change it: more.", True),
        ("**Small** (2026-11-23). Why.", True),
    ],
)
def test_a_decision_that_lacks_one_is_seen(text: str, is_fault: bool) -> None:
    assert bool(list(faults_of_decisions(text))) is is_fault


# --- modules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [service.server, workers])
def test_a_package_lists_its_modules(package: ModuleType) -> None:
    folder = Path(package.__file__ or "").parent
    modules = {each.name for each in folder.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\w+\.py", package.__doc__ or "")) == modules


# --- code ----------------------------------------------------------------------------------------

COMMAND = re.compile(
    r"(\$ |make |python |pip |pipx |uvx |docker |kubectl |curl |heroku |git |npm |node |\.venv/"
    r"|\.ci/|stripe-identity-sandbox )"
)
BLOCK = re.compile(
    r"(?: *<!-- ([^\n]*?) -->\n+)?(?:^ *```(\w*)\n(.*?)^ *```$|((?:^(?: {4}[^\n]*)?\n)+))",
    re.MULTILINE | re.DOTALL,
)


def code(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield mark, language and text of each block of a page that looks like code."""
    for mark, language, fenced, indented in BLOCK.findall(read(page)):
        text = textwrap.dedent(fenced or indented).strip("\n").replace("\\\n", "")
        is_command = any(COMMAND.match(line.strip()) for line in text.splitlines())
        if language not in {"", "text", "json"} or is_command:
            yield mark, language, text


def fault_of_command(line: str) -> str | None:
    """Return why a command line of ours would be refused; None if it would not be."""
    words = [word for word in shlex.split(line, comments=True) if word != "&"]
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if words[:1] == ["make"]:
        targets = [word for word in words[1:] if "=" not in word]
        return next((f"no target {each}" for each in targets if not is_target(each)), None)
    match words:
        case ["python" | ".venv/bin/python", "-m", "pytest", *rest]:
            return next((f"no {n}" for n in rest if "/" in n and not (ROOT / n).exists()), None)
        case ["python", "-m", module, *_] if module.startswith("tests."):
            file = f"{module.replace('.', '/')}.py"
            return None if (ROOT / file).exists() else f"no {file}"
        case ["python", "-m", "service" | "workers" as module, *rest]:
            return fault_of_words(GROUPS[module], rest)
        case ["stripe-identity-sandbox" as name, *rest]:
            return fault_of_words(GROUPS[name], rest)
    return f"nothing of ours: {line}"


def is_target(name: str) -> bool:
    return bool(re.search(rf"^([\w-]+ )*{re.escape(name)}( [\w-]+)*:", MAKEFILE, re.MULTILINE))


def fault_of_words(command: click.Command, words: list[str]) -> str | None:
    words = words[: words.index("|")] if "|" in words else words
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.commands.get(words[0])
        return fault_of_words(inner, words[1:]) if inner else f"no command {words[0]}"
    try:
        command.make_parser(click.Context(command)).parse_args(list(words))
    except click.UsageError as error:
        return error.format_message()
    return None


def is_accounted_for(page: str, mark: str, language: str, text: str) -> bool:
    """Whether something runs or makes a block, or says why nothing does."""
    if made := re.fullmatch(r"(?:\w+: )?made by make ([\w-]+)", mark):
        return is_target(made[1])
    if run := re.fullmatch(r"run by (tests/[\w/.]+)(?:: (\w+))?", mark):
        place = ROOT / run[1]
        files = [place] if place.is_file() else list(place.rglob("*.py"))
        tests = "".join(path.read_text(encoding="utf-8") for path in files)
        taken = f'"{page}", "{run[2]}"' if run[2] else Path(page).parent.name
        return taken in tests
    if re.fullmatch(r"not run: \w.{9,}", mark):
        return True
    if test := BY_LANGUAGE.get((page, language)):
        return Path(page).name in (ROOT / test).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return bool(lines) and not any(map(fault_of_command, lines))


@pytest.mark.parametrize("page", sorted(set(PAGES) - ELSEWHERE))
def test_every_block_of_code_is_run_or_says_why_not(page: str) -> None:
    found = [
        f"{language or 'block'}: {text.splitlines()[0]}"
        for mark, language, text in code(page)
        if not is_accounted_for(page, mark, language, text)
    ]
    assert not found


@pytest.mark.parametrize(("page", "language"), BY_LANGUAGE)
def test_no_block_of_a_language_that_is_taken_is_left_out(page: str, language: str) -> None:
    count = [found for _, found, _ in code(page)].count(language)
    assert count == TAKEN.get((page, language), 1)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_within_a_sentence_is_there(page: str) -> None:
    text = docs_site.FENCED.sub("", read(page))
    told = [
        " ".join(word.split())
        for word in re.findall(r"`((?:python -m (?:service|workers)|make)\b[^`]*)`", text)
    ]
    # `events replay` for short, where a group of commands is meant.
    groups = {
        name: f"python -m {module} "
        for module in ("service", "workers")
        for name, command in GROUPS[module].commands.items()
        if isinstance(command, click.Group)
    }
    told += [
        groups[first] + first + " ".join(["", *rest.split()])
        for first, rest in re.findall(rf"`({'|'.join(groups)}) ([^`]+)`", text)
    ]
    assert not {word: fault for word in told if (fault := fault_of_command(word))}


def test_every_command_that_the_service_names_is_there() -> None:
    sources = [path for name in CODE for path in (ROOT / name).rglob("*") if path.suffix in TEXT]
    told = {
        (str(path.relative_to(ROOT)), " ".join(words.split()))
        for path in sources
        for words in re.findall(
            r"python -m (?:service|workers)\b[^\n\"'`;:,.()<\\]*", path.read_text(encoding="utf-8")
        )
    }
    assert len(told) > 30
    faults = {each: fault for each in told if (fault := fault_of_command(each[1]))}
    # A value may be filled in, or stand in quotes.
    assert not {each: fault for each, fault in faults.items() if "requires an" not in fault}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("make demo", None),
        ("MINUTES=3 make soak RATE=40   # long", None),
        ("make everything", "no target everything"),
        ("python -m service events list --state dead", None),
        ("python -m service events list --json | jq '.[].reason'", None),
        ("python -m service events lst", "no command lst"),
        ("python -m service events list --stat dead", "No such option '--stat'"),
        ("python -m workers", None),
        ("python -m pytest tests/unit", None),
        ("python -m pytest tests/unity", "no tests/unity"),
        ("rm -rf /", "nothing of ours"),
    ],
)
def test_a_command_that_would_be_refused_is_seen(line: str, fault: str | None) -> None:
    said = fault_of_command(line)
    assert (said or "").startswith(fault or "")
    assert (said is None) == (fault is None)
