"""Start a plugin as a package of its own: a copy of examples/shop-identity under another name."""

from __future__ import annotations

import builtins
import keyword
import pkgutil
import re
import sys
import tokenize
from importlib import metadata, util
from pathlib import Path
from token import NAME

from service.settings import Settings
from workers import handlers

EXAMPLE = Path(__file__).resolve().parents[1] / "examples/shop-identity"
_COPIED = ("*.py", "*.toml", "*.md", "*.yml")


class CannotStart(Exception):
    """Why no package was made, in words for the person who called."""


def _why_not(module: str, short: str) -> str:  # noqa: PLR0911 (one answer each)
    """Say what else has the name of the module, or of what begins with its first word."""
    for word in dict.fromkeys((module, short)):
        if keyword.iskeyword(word) or keyword.issoftkeyword(word) or hasattr(builtins, word):
            return f"{word} is a word of Python's"
    if module in sys.stdlib_module_names:
        return f"{module} is a module of Python's"
    if short in _words_of_example():
        return f"{short} has a meaning of its own in the code that is written"
    if module in metadata.packages_distributions() or util.find_spec(module):
        return f"a module {module} is there already, and one would hide the other"
    prefix = f"{short}_".upper()
    if taken := [field for field in Settings.model_fields if field.upper().startswith(prefix)]:
        return f"its settings begin with {prefix}, as {taken[0].upper()} of the service does"
    if any(each.name == short for each in pkgutil.iter_modules(handlers.__path__)):
        return f"a handler that is built in is called {short}"
    return ""


def _words_of_example() -> set[str]:
    """Return the names in the example's code that do not come from its own name."""
    words: set[str] = set()
    for path in EXAMPLE.rglob("*.py"):
        with path.open("rb") as file:
            words |= {each.string for each in tokenize.tokenize(file.readline) if each.type == NAME}
    return {word.lower() for word in words if "shop" not in word.lower()}


def create(name: str, parent: Path) -> list[Path]:
    """Write the package into `parent / name`; the files that were written.

    Args:
        name: of the distribution, such as `acme-identity`; the module is `acme_identity`, and the
            variables of its settings begin with `ACME_`.
        parent: the folder to put it into.

    Raises:
        CannotStart: the name is none, the folder is there already, or there is no example here.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise CannotStart(f"{name!r} is no name: lower-case words with dashes, as in acme-identity")
    if (parent / name).exists():
        raise CannotStart(f"{parent / name} is there already")
    if not EXAMPLE.is_dir():
        raise CannotStart("the example is not here: run this in a checkout")
    module, short = name.replace("-", "_"), name.partition("-")[0]
    if why := _why_not(module, short):
        raise CannotStart(f"{name!r} cannot be the name: {why}. Take another, as acme-identity")
    words = {
        "shop-identity": name,
        "shop_identity": module,
        "SHOP_": f"{short.upper()}_",
        "shop_": f"{short}_",
        "Shop": short.capitalize(),
        "shop": short,
    }
    pattern = re.compile("|".join(map(re.escape, words)))
    written = []
    for path in sorted(found for kind in _COPIED for found in EXAMPLE.rglob(kind)):
        if not path.is_file():
            continue
        below = pattern.sub(lambda m: words[m[0]], path.relative_to(EXAMPLE).as_posix())
        target = parent / name / below
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        target.write_text(pattern.sub(lambda m: words[m[0]], text), encoding="utf-8")
        written.append(target)
    return written
