"""The docs as a site: built strictly, and every link in what was built leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dev import docs_site
from service.version import version


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assert docs_site.build(folder) == []
    return folder / "public"


def test_every_page_of_the_navigation_is_built(folder: Path) -> None:
    for page in docs_site.pages():
        built = folder / (
            f"{page.removesuffix('README.md')}index.html"
            if page.endswith("README.md")
            else f"{page.removesuffix('.md')}.html"
        )
        assert built.exists(), page
        assert f"Version {version()}" in built.read_text(encoding="utf-8"), page


def test_reading_it_asks_no_other_host(folder: Path) -> None:
    """But for what the reader clicks on."""
    for path in folder.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:link|script|img|iframe)\b[^>]*?(?:src|href)=\"?([^\">\s]+)", text)
        assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))], path.name


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><img src="there.png"><img src="gone.png">'
        '<a href="#top">x</a><a href="#bottom">x</a><a href="b.html">x</a><a href="b.html#b">x</a>'
        '<a href="b.html#c">x</a><a href="c.html">x</a><a href="https://example.com">x</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="b">B</h1>')
    (tmp_path / "there.png").touch()
    assert docs_site.dead_links(tmp_path) == [
        "a.html: #bottom leads nowhere",
        "a.html: b.html#c leads nowhere",
        "a.html: c.html leads nowhere",
        "a.html: gone.png leads nowhere",
    ]


def test_a_link_out_of_the_repository_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.md").write_text("[x](../secret) [y](b.md) [z](#a)")
    (tmp_path / "secret").touch()
    monkeypatch.setattr(docs_site, "ROOT", root)
    monkeypatch.setattr(docs_site, "pages", lambda: ["a.md"])
    with pytest.raises(SystemExit, match=r"a\.md: \.\./secret does not exist\na\.md: b\.md"):
        docs_site.stage(tmp_path / "source")
