"""Find modules of a plugin's package that mark functions and that nobody imports.

Their `on` never runs, so it cannot know of them; their source tells. It is read, and not run.
"""

from __future__ import annotations

import ast
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import PurePath
from types import ModuleType

from workers import import_faults

_MARKING = frozenset({"on", "on_start", "on_stop", "on_dead"})
_FROM = frozenset({"identity_webhooks", "identity_webhooks.handlers", "workers"})


def faults(plugin: object) -> Iterator[str]:
    """Yield a sentence for each module below a package that marks functions and is not imported.

    Modules of tests (`tests`, `test_...`, `conftest`) mark what they like.
    """
    if isinstance(plugin, ModuleType) and hasattr(plugin, "__path__"):
        for spec in _not_imported(plugin.__path__, plugin.__name__):
            line = _marking_line(_source(spec))
            if line and spec.origin:
                yield (
                    f"{spec.name} marks a function, and nothing imports it: name it, too, in"
                    f" HANDLERS or by an entry point ({import_faults.at(spec.origin, line)})"
                )


def _not_imported(folders: Iterable[str], package: str) -> Iterator[ModuleSpec]:
    for info in pkgutil.iter_modules(list(folders)):
        if info.name in {"tests", "test", "conftest"} or info.name.startswith("test_"):
            continue
        spec = info.module_finder.find_spec(info.name, None)
        if spec is None:
            continue
        spec.name = f"{package}.{info.name}"
        if spec.name not in sys.modules:
            yield spec
        if spec.submodule_search_locations:
            yield from _not_imported(spec.submodule_search_locations, spec.name)


def _source(spec: ModuleSpec) -> str:
    path = PurePath(spec.origin or "")
    get_data = getattr(spec.loader, "get_data", None)  # of a file, or of one in a zip
    if path.suffix != ".py" or get_data is None:
        return ""
    try:
        return bytes(get_data(str(path))).decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _marking_line(source: str) -> int:
    """Return the line of the first decorator of ours, 0 if there is none."""
    if not any(module in source for module in _FROM):
        return 0
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return 0
    names, modules = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in _FROM and not node.level:
            names |= {each.asname or each.name for each in node.names if each.name in _MARKING}
        elif isinstance(node, ast.Import):
            modules |= {each.asname or each.name for each in node.names if each.name in _FROM}
    lines = [
        decorator.lineno
        for node in ast.walk(tree)
        for decorator in getattr(node, "decorator_list", ())
        if _is_ours(decorator, names, modules)
    ]
    return min(lines, default=0)


def _is_ours(decorator: ast.expr, names: set[str], modules: set[str]) -> bool:
    word = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
    module, _, name = word.rpartition(".")
    return word in names or (module in modules and name in _MARKING)
