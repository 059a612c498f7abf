"""Links of the documentation: those of Markdown files, and those of the pages built from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

# Attributes by which a page loads something, and not only links to it.
_LOADED = {
    ("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "src"), ("source", "srcset"),
    ("iframe", "src"), ("embed", "src"), ("object", "data"), ("video", "src"), ("video", "poster"),
    ("audio", "src"), ("track", "src"), ("input", "src"), ("use", "href"), ("image", "href"),
}  # fmt: skip
_INERT = {"canonical", "search", "index", "next", "prev", "author", "license", "help", "bookmark"}
_ELSEWHERE = re.compile(r"(?i)^\s*(?:[a-z][a-z0-9+.-]*:)?//")
_STYLE = re.compile(r"""(?i)(?:url\(\s*|@import\s+)["']?\s*(?:https?:)?//[^"')\s]*""")


# Markdown


def markdown_faults(files: list[Path]) -> list[str]:
    """A line for each link of Markdown files that leads to no file, or to no heading of it."""
    faults = []
    for path in files:
        for link in _links(path.read_text()):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else path.parent / unquote(parts.path)
            if not target.exists():
                faults.append(f"{path}: {link}: there is no such file")
            elif parts.fragment and parts.fragment not in headings(target.read_text()):
                faults.append(f"{path}: {link}: there is no such heading")
    return faults


def headings(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown text."""
    tokens = MarkdownIt().enable("table").parse(text)
    found: set[str] = set()
    for before, token in zip(tokens, tokens[1:], strict=False):
        if before.type == "heading_open":
            plain = "".join(
                part.content
                for part in token.children or ()
                if part.type in ("text", "code_inline")
            )
            name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
            copies = (f"{name}-{number}" for number in range(1, 1000))
            found.add(name if name not in found else next(c for c in copies if c not in found))
    return found


def _links(text: str) -> Iterator[str]:
    for token in MarkdownIt().enable("table").parse(text):
        for part in token.children or ():
            if part.type in ("link_open", "image"):
                yield str(part.attrGet("href" if part.type == "link_open" else "src"))


# Pages


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.styles = re.findall(r"(?is)<style[^>]*>(.*?)</style>", text)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and not set(given.get("rel", "").split()) <= _INERT:
            self.loaded.append(given.get("href", ""))
        wanted = [given[name] for name in given if (tag, name) in _LOADED]
        self.loaded += [part.split()[0] for each in wanted for part in each.split(", ") if part]
        self.styles.append(given.get("style", ""))

    handle_startendtag = handle_starttag


def requests_elsewhere(site: Path) -> list[str]:
    """A line for each script, style, font or picture that pages would fetch from elsewhere."""
    faults = []
    for path in sorted(site.rglob("*.html")):
        page = _Page(path.read_text())
        wanted = [link for link in page.loaded if _ELSEWHERE.match(link)]
        wanted += _STYLE.findall("\n".join(page.styles))
        faults += [f"{path}: would fetch {link}" for link in wanted]
    for path in sorted(site.rglob("*.css")):
        faults += [f"{path}: would fetch {link}" for link in _STYLE.findall(path.read_text())]
    return faults


def broken_links(site: Path) -> list[str]:
    """A line for each link inside the site that leads to no page, or to no place in it."""
    pages = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    faults = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                faults.append(f"{path}: {link}: there is no such page")
            elif parts.fragment and target in pages:
                if unquote(parts.fragment) not in pages[target].ids | {"", "top"}:
                    faults.append(f"{path}: {link}: there is no such place")
    return faults
