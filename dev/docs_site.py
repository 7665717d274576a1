"""Build the docs as a site, in var/site/public: `make docs`.

The site has the folders of the repository, so that one link leads to the same page on both. A link
to what does not exist fails the build.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click

from dev.local import ROOT
from service.version import version

CONFIG = ROOT / "docs/zensical.toml"
SITE = ROOT / "var/site"

FENCED = re.compile(r"^(```|~~~).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^()\s]+)(\))|(\bsrc(?:set)?=\")([^\"\s]+)(\")")


def pages() -> list[str]:
    """Return the paths in the navigation of the site, in their order."""

    def listed(entries: object) -> Iterator[str]:
        if isinstance(entries, str):
            yield entries
        elif isinstance(entries, list):
            for entry in entries:
                yield from listed(entry)
        elif isinstance(entries, dict):
            for entry in entries.values():
                yield from listed(entry)

    config = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    return list(listed(config["project"]["nav"]))


def links(text: str) -> list[str]:
    """Return where a page in Markdown links to inside the repository, images included."""
    found = [match[2] or match[5] for match in LINK.finditer(FENCED.sub("", text))]
    return [each for each in found if not urlsplit(each).scheme]


def stage(source: Path) -> None:
    """Copy the pages of the navigation and what they link to, under their own paths.

    Raises:
        SystemExit: when something is linked to that does not exist. Names all of it.
    """
    faults = []
    todo, seen = pages(), set[str]()
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        here = ROOT / page
        (source / page).parent.mkdir(parents=True, exist_ok=True)
        if here.suffix != ".md":
            shutil.copy(here, source / page)
            continue
        text = here.read_text(encoding="utf-8")
        for link in links(text):
            path = unquote(urlsplit(link).path)
            if not path:
                continue
            target = (here.parent / path).resolve()
            if target.is_dir() and (target / "README.md").exists():
                text = text.replace(f"]({link})", f"]({link.rstrip('/')}/README.md)")
                target /= "README.md"
            if target.is_file() and target.is_relative_to(ROOT):
                todo.append(str(target.relative_to(ROOT)))
            else:
                faults.append(f"{page}: {link} does not exist")
        (source / page).write_text(text, encoding="utf-8")
    if faults:
        raise SystemExit("\n".join(faults))


class _Page(HTMLParser):
    """The names that can be linked to in a page of the site, and where it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note them."""
        for name, value in attrs:
            if name == "id" and value:
                self.names.add(value)
            elif value and (name == "src" or (name == "href" and tag in {"a", "link"})):
                self.links.add(value)


def dead_links(public: Path) -> list[str]:
    """Return every link inside a built site whose page, file or heading is not there."""
    read = {
        path: _Page(path.read_text(encoding="utf-8"))
        for path in sorted(public.rglob("*.html"))
        if path.name != "404.html"  # its links begin where the site is published
    }
    found = []
    for path, page in read.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            named = (
                not parts.fragment
                or target not in read
                or (unquote(parts.fragment) in read[target].names)
            )
            if not target.exists() or not named:
                found.append(f"{path.relative_to(public)}: {link} leads nowhere")
    return found


def build(folder: Path) -> list[str]:
    """Build the site in `folder`/public; return its dead links.

    Raises:
        SystemExit: when a source of the site is missing, or the builder warns of something.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "source").mkdir(parents=True)
    stage(folder / "source")
    config = folder / "zensical.toml"
    config.write_text(
        CONFIG.read_text(encoding="utf-8").replace("@version@", version()), encoding="utf-8"
    )
    done = subprocess.run(  # noqa: S603  # our own words
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", config],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return dead_links(folder / "public")


@click.command()
def main() -> None:
    """Build the site; exit with 1 and the dead links where there are any."""
    if found := build(SITE):
        raise SystemExit("\n".join(found))
    click.echo(f"{SITE.relative_to(ROOT)}/public/index.html")


if __name__ == "__main__":
    main()
