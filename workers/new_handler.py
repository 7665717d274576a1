"""Start a plugin as a package of its own: a copy of examples/shop-identity under another name."""

from __future__ import annotations

import re
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples/shop-identity"
_COPIED = ("*.py", "*.toml", "*.md", "*.yml")


class CannotStart(Exception):
    """Why no package was made, in words for the person who called."""


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
