"""Find files of a plugin that mark functions and that were not imported with it.

Their `on` never runs, so it cannot know of them; their source tells. It is read, and not run.

A file marks functions when it uses `on` (or `on_start`, `on_stop`, `on_dead`) of
`identity_webhooks`, whatever it calls it: imported by name, by `*`, in the module, or by way of
another file of the same package. What is fetched at run time (`getattr`, `importlib`) is not found.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import Any

from workers import import_faults

_MARKING = frozenset({"on", "on_start", "on_stop", "on_dead"})
_OURS = {
    "identity_webhooks": _MARKING,
    "identity_webhooks.handlers": _MARKING,
    "workers": frozenset({"on"}),
}
"""The names that mark functions, by the module that they can be imported from."""

_TEST = re.compile(r"tests?|conftest|test_.*|.*_test")


@dataclass(frozen=True, slots=True)
class Unimported:
    """A file that marks functions and was not imported.

    Attributes:
        sentence: which one, and what to write.
        certain: whether it is in a package that was named. Otherwise it lies beside the module, or
            has the name of a test, and may be left out on purpose.
    """

    sentence: str
    certain: bool


def look(plugin: object, module: str, named: Collection[str]) -> Iterator[Unimported]:
    """Yield the files of a plugin, and those beside it, that mark functions and are not imported.

    Args:
        plugin: what was found.
        module: the name of the module that was imported to find it.
        named: the modules that plugins are found in; one that failed has a fault of its own.
    """
    if isinstance(plugin, ModuleType) and hasattr(plugin, "__path__"):
        sources = list(_below(resources.files(plugin), plugin.__name__))
        certain = True
    else:
        sources = list(_beside(module))
        certain = False
    loaded = set(_loaded())
    for source, line in _marking(sources):
        if os.path.realpath(source.path) in loaded or source.module in named:
            continue
        where = import_faults.at(source.path, line)
        if source.fault:
            sentence = (
                f"{source.module} names identity_webhooks, and cannot be read as Python"
                f" ({source.fault}): mend it, or take it out of the folder ({where})"
            )
        else:
            sentence = (
                f"{source.module} marks a function, and nothing imports it: name it, too, in"
                f" HANDLERS or by an entry point ({where})"
            )
        yield Unimported(sentence, certain and not source.is_test)


@dataclass(slots=True)
class _Source:
    """A file of Python.

    Attributes:
        path: where it lies; in a zip file, too.
        module: the name by which it would be imported.
        is_package: whether it is an `__init__.py`.
        is_test: whether it is named as tests are.
        data: what is written in it.
        tree: the same, once it is parsed.
        fault: why it cannot be read; empty if it can.
        line: of the fault.
    """

    path: str
    module: str
    is_package: bool
    is_test: bool
    data: bytes = b""
    tree: ast.Module | None = None
    fault: str = ""
    line: int = 0

    def parse(self) -> None:
        """Parse it; what is no Python is a fault if it has to do with us."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.tree = ast.parse(self.data)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self.tree = ast.Module([], [])
            if b"identity_webhooks" in self.data:
                self.fault, self.line = type(error).__name__, getattr(error, "lineno", None) or 0


def _below(folder: Traversable, package: str, *, is_test: bool = False) -> Iterator[_Source]:
    """Yield the files in a folder and below, whether or not the folders have an `__init__`."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        stem = entry.name.removesuffix(".py")
        tests = is_test or bool(_TEST.fullmatch(stem))
        if entry.name.endswith(".py") and entry.is_file():
            yield _read(entry, package, stem, is_test=tests)
        elif entry.name.isidentifier() and entry.is_dir() and not Path(str(entry)).is_symlink():
            yield from _below(entry, f"{package}.{stem}", is_test=tests)


def _beside(module: str) -> Iterator[_Source]:
    """Yield the files in the folder of a module."""
    file = getattr(sys.modules.get(module), "__file__", None)
    package = module if file and Path(file).stem == "__init__" else module.rpartition(".")[0]
    for path in sorted(Path(file).parent.glob("*.py")) if file else []:
        if path.is_file():
            yield _read(path, package, path.stem, is_test=bool(_TEST.fullmatch(path.stem)))


def _read(entry: Traversable, package: str, stem: str, *, is_test: bool) -> _Source:
    is_package = stem == "__init__"
    module = package if is_package else f"{package}.{stem}".lstrip(".")
    source = _Source(str(entry), module, is_package, is_test)
    try:
        source.data = entry.read_bytes()
    except OSError as error:
        source.fault = type(error).__name__
    return source


def _loaded() -> Iterator[str]:
    for module in list(sys.modules.values()):
        # Not `getattr`: some modules import more when they are asked.
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str):
            yield os.path.realpath(file)


def _marking(sources: list[_Source]) -> Iterator[tuple[_Source, int]]:
    """Yield the files that mark functions or cannot be read, with the line."""
    offers = dict(_OURS)
    count = -1
    while count != (count := sum(map(len, offers.values()))):
        concerned = _importing(offers)
        for source in sources:
            # To parse them all would take a second for each thousand.
            if source.tree is None and concerned.search(source.data):
                source.parse()
            if names := _Names.of(source, offers).functions:
                offers[source.module] = frozenset(names)
    for source in sources:
        line = source.line or _Names.of(source, offers).first_use(source)
        if line or source.fault:
            yield source, line


def _importing(offers: dict[str, frozenset[str]]) -> re.Pattern[bytes]:
    """Return what finds the files that name us, or import what marks functions or a module that
    offers it, in brackets over several lines, too.
    """
    words = frozenset().union(*offers.values()) | {each.rpartition(".")[2] for each in offers}
    any_word = rb"(?:\*|\b(?:%b)\b)" % b"|".join(re.escape(word.encode()) for word in sorted(words))
    within = rb"[ \t]*(?:\([^)]*?|(?:[^\n(\\]|\\\r?\n)*?)"
    return re.compile(rb"identity_webhooks|\bimport\b" + within + any_word)


@dataclass(slots=True)
class _Names:
    """The names that a file has for the marking functions, and for the modules that hold them."""

    words: frozenset[str]
    functions: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, source: _Source, offers: dict[str, frozenset[str]]) -> _Names:
        """Read the imports of a file."""
        names = cls(frozenset().union(*offers.values()))
        holders = {module[:end] for module in offers for end in _ends(module)}
        for node in ast.walk(source.tree) if source.tree else ():
            if isinstance(node, ast.Import):
                for each in node.names:
                    bound = each.asname or each.name.partition(".")[0]
                    if (each.name if each.asname else bound) in holders:
                        names.modules.add(bound)
            elif isinstance(node, ast.ImportFrom):
                origin = _origin(source, node)
                offered = offers.get(origin, frozenset())
                for each in node.names:
                    if each.name == "*":
                        names.functions |= offered
                    elif each.name in offered:
                        names.functions.add(each.asname or each.name)
                    elif f"{origin}.{each.name}" in holders:
                        names.modules.add(each.asname or each.name)
            elif isinstance(node, ast.Assign) and names.use(node.value):
                names.functions |= {each.id for each in node.targets if isinstance(each, ast.Name)}
        return names

    def use(self, node: ast.AST) -> bool:
        """Whether this is one of the functions, not called yet."""
        if isinstance(node, ast.Attribute) and node.attr in self.words:
            holder = node.value
            while isinstance(holder, ast.Attribute):
                holder = holder.value
            return isinstance(holder, ast.Name) and holder.id in self.modules
        is_read = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        return is_read and node.id in self.functions  # type: ignore[attr-defined]

    def first_use(self, source: _Source) -> int:
        """Return the line on which one of the functions is used first, 0 if none is."""
        nodes: Iterator[Any] = ast.walk(source.tree) if source.tree else iter(())
        lines = [node.lineno for node in nodes if self.use(node)]
        return min(lines, default=0)


def _ends(module: str) -> Iterator[int]:
    """Yield where the names of the packages end that a module is in, and its own."""
    yield from (match.start() for match in re.finditer(r"\.|$", module))


def _origin(source: _Source, node: ast.ImportFrom) -> str:
    """Return the whole name of the module from which something is imported."""
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    parts = parts[: len(parts) - node.level + source.is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])
