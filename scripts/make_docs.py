"""Build the documentation as HTML that asks for nothing outside itself: `make docs`.

    python scripts/make_docs.py site

The source of the site is put together first, in `site/.source`: the pages of `docs/`, model cards,
notebooks, a page for each command and the reference of the Python interface, with links between
them mended. Sphinx then builds it; any warning is an error. In the end every page is read again:
links and their anchors must lead somewhere, and no script, style, font or picture may lie
elsewhere.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from command_pages import command_pages, first_sentences
from docs_links import broken_links, requests_elsewhere
from docs_pages import api_pages, contents, notebook_page, relinked

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    site = Path(sys.argv[1]).resolve()
    if site.exists() and not (site / ".source").is_dir():
        raise SystemExit(f"{site}: is no site of ours; remove it, or name another folder")
    shutil.rmtree(site, ignore_errors=True)
    source = site / ".source"
    source.mkdir(parents=True)
    assemble(source)
    build(source, site)
    faults = [*requests_elsewhere(site), *broken_links(site)]
    if faults:
        raise SystemExit("\n".join([*faults, f"{site}: {len(faults)} faults in the built pages"]))
    print(f"open {site / 'index.html'}")


def places() -> dict[Path, str]:
    """Where each file of the repository that is on the site has its place there."""
    docs = ROOT / "docs"
    found = {
        path: path.relative_to(docs).as_posix()
        for path in sorted(docs.rglob("*"))
        if path.is_file() and path.suffix in (".md", ".jpg", ".png", ".svg", ".json", ".webp")
    }
    found |= {ROOT / "README.md": "index.md", docs / "index.md": "contents.md"}
    for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"):
        found[ROOT / f"{name}.md"] = f"project/{name.lower()}.md"
    for card in sorted((ROOT / "src/viq/bundled").glob("*/*.md")):
        kind = "" if card.stem == "README" else f"-{card.stem.lower()}"
        found[card] = f"models/{card.parent.name}{kind}.md"
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        found[notebook] = f"examples/{notebook.stem}.md"
    return found


def assemble(source: Path) -> None:
    """Write the source of the site."""
    where = places()
    pages: dict[str, str] = {}
    for path, place in where.items():
        target = source / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            pages[place] = notebook_page(path, target.parent, where)
        elif path.suffix == ".md":
            pages[place] = relinked(path.read_text(), path, where)
        else:
            shutil.copyfile(path, target)
    index = ROOT / "docs/index.md"
    listed = contents(index, where)
    pages["index.md"] += _toctree(["Contents </contents>"]) + "".join(
        _toctree([f"{words} </{place.removesuffix('.md')}>" for words, place in entries], caption)
        for caption, entries in listed.items()
    )
    commands = command_pages()
    pages |= {f"commands/{name}.md": text for name, text in commands.items()}
    pages["cli.md"] += _command_list() + _toctree([f"/commands/{name}" for name in commands])
    references = api_pages()
    pages |= references
    pages["api.md"] += _toctree([f"/{place.removesuffix('.md')}" for place in references])
    for place, text in pages.items():
        # Reached by links alone; any other page has to be in docs/index.md, or Sphinx warns.
        orphan = place.startswith("examples/") or place.endswith("-credits.md")
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        (source / place).write_text(f"---\norphan: true\n---\n{text}" if orphan else text)


def build(source: Path, site: Path) -> None:
    from sphinx.cmd.build import build_main

    conf = ROOT / "docs"
    done = build_main(
        ["-q", "-W", "--keep-going", "-b", "html", "-c", str(conf), "-d", str(site / ".cache"),
         str(source), str(site)]
    )  # fmt: skip
    if done:
        raise SystemExit(done)
    shutil.rmtree(site / ".cache")


def _command_list() -> str:
    lines = [
        f"- [viq {name}](commands/{name}.md): {said}" for name, said in first_sentences().items()
    ]
    return "\n## All commands\n\n" + "\n".join(lines) + "\n"


def _toctree(entries: list[str], caption: str = "") -> str:
    head = f":caption: {caption}\n" if caption else ""
    return f"\n```{{toctree}}\n:hidden:\n{head}\n" + "\n".join(entries) + "\n```\n"


if __name__ == "__main__":
    main()
