"""Pages as Sphinx reads them: links mended, charts in place, notebooks as text."""

from __future__ import annotations

import base64
import json
import os
import re
from importlib import import_module
from pathlib import Path

from docs_figures import inside, page_style

ROOT = Path(__file__).resolve().parent.parent
# Modules that have a page, with all public names (`__all__`) or with those that are listed here.
MODULES: dict[str, tuple[str, ...]] = {
    "viq": (
        "load",
        "VisualTokenizer",
        "Codes",
        "CodeDataset",
        "CodeSample",
        "TokenizerConfig",
        "ViQForConditionalGeneration",
        "ViQProcessor",
        "ViQConfig",
        "ViqError",
        "CodesError",
    ),
    "viq.mllm": (),
    "viq.store.folder": ("Store",),
    "viq.image": (),
    "viq.codec": (),
    "viq.eval.peers": ("load_peer",),
    "viq.eval.peers.protocol": ("Peer",),
    "viq.train.tokenizer.caption_embeddings": ("Sentences",),
}
_FENCE = re.compile(r"(^ *(?:```|~~~).*?^ *(?:```|~~~) *$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    r"(?P<bang>!?)\[(?P<words>[^\]\[]*)\]\((?P<path>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)"
)


def relinked(text: str, path: Path, where: dict[Path, str]) -> str:
    """The Markdown text of a file, with links that lead to where things are on the site.

    What is in the repository but not on the site is named without a link. Charts (SVG) become part
    of the page, so that they take its colours.

    Args:
        where: the place on the site of each file that has one.
    """
    here = Path(where[path]).parent

    def mended(match: re.Match[str]) -> str:
        bang, words, link, anchor = (
            match[name] or "" for name in ("bang", "words", "path", "anchor")
        )
        if not link or re.match(r"[a-z]+:", link):
            return match[0]
        target = (path.parent / link).resolve()
        if not target.exists():
            raise SystemExit(f"{path}: {link}: there is no such file")
        if target not in where:
            return words
        if bang and target.suffix == ".svg":
            return f"\n```{{raw}} html\n{inside(target.read_text())}\n```\n"
        return f"{bang}[{words}]({os.path.relpath(where[target], here)}{anchor})"

    pieces = _FENCE.split(text)
    text = "".join(
        piece if number % 2 else _LINK.sub(mended, piece) for number, piece in enumerate(pieces)
    )
    style = f"\n```{{raw}} html\n<style>{page_style()}</style>\n```\n"
    return text + style if '<div class="chart">' in text else text


def contents(index: Path, where: dict[Path, str]) -> dict[str, list[tuple[str, str]]]:
    """The sections of the page of contents: words and places of the links that are list items."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section in index.read_text().split("\n## ")[1:]:
        caption, _, text = section.partition("\n")
        links = re.findall(r"^- \[([^\]]+)\]\(([^)#]+)\)", text, re.MULTILINE)
        found[caption] = [(words, where[(index.parent / link).resolve()]) for words, link in links]
    return found


def api_pages() -> dict[str, str]:
    """A page for each module of `MODULES`, by its place on the site; docstrings fill them."""
    pages = {}
    seen: set[str] = set()  # a name that several modules have is on the first page alone
    for module, names in MODULES.items():
        home = import_module(module)
        first = (home.__doc__ or "").split("\n\n")[0]
        parts = [f"# {module}\n", first, "", "```{eval-rst}", f".. currentmodule:: {module}", ""]
        for name in names or sorted(home.__all__, key=str.lower):
            if name in seen:
                continue
            seen.add(name)
            thing = getattr(home, name)
            kind = "class" if isinstance(thing, type) else "function"
            if isinstance(thing, type) and issubclass(thing, BaseException):
                kind = "exception"
            if not callable(thing):
                kind = "data"
            parts += [f".. auto{kind}:: {name}", ""]
        pages[f"reference/{module}.md"] = "\n".join([*parts, "```", ""])
    return pages


def notebook_page(path: Path, folder: Path, where: dict[Path, str]) -> str:
    """A notebook as Markdown; its pictures are written into `folder`."""
    parts = []
    pictures = 0
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(relinked(text, path, where))
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            kind = next((kind for kind in ("image/png", "image/jpeg") if kind in data), None)
            if kind:
                pictures += 1
                name = f"{path.stem}-{pictures}.{kind.removeprefix('image/')}"
                (folder / name).write_bytes(base64.b64decode("".join(data[kind])))
                parts.append(f"![What the cell shows]({name})")
            elif words := "".join(output.get("text", ()) or data.get("text/plain", ())):
                parts.append(f"```text\n{words.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
