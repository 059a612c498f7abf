"""The gallery as one HTML file that asks for nothing outside itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from PIL import Image

from viq.report.gallery_parts import captions, encoded, facts, intro, shown, unfit

_PAGE_BOX = (768, 512)  # px; larger than on the sheet, because fine screens show them smaller

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5f5f5f; --line: #d8d8d4;
  --paper: #fdfdfb; --blank: #efefec; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #a8a59f; --line: #3a3936;
  --paper: #161615; --blank: #262523; } }
html { background: var(--paper); color: var(--ink); }
body { margin: 0 auto; max-width: 84rem; padding: clamp(1.25rem, 4vw, 4rem);
  font: 1.0625rem/1.5 "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia,
  serif; font-variant-numeric: lining-nums tabular-nums; overflow-wrap: anywhere; }
h1 { font-size: 2.1rem; font-weight: normal; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.4rem; font-weight: normal; line-height: 1.3; margin: 0; }
p { margin: 0 0 .5rem; }
header p { max-width: 48rem; }
section, footer { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.5rem; }
code { font: .875em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .15em; }
.soft, figcaption, footer { color: var(--soft); font-size: .9375rem; }
.three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1.5rem;
  margin-top: 1rem; }
figure { margin: 0; display: flex; flex-wrap: wrap; align-content: flex-start;
  align-items: flex-start; gap: .75rem 1.25rem; }
figure > div { flex: 0 0 100%; min-width: 0; }
img { display: block; max-width: 100%; height: auto; }
div > img { width: auto; max-height: 24rem; }
.sharp, figure > img { image-rendering: pixelated; }
.blank { background: var(--blank); color: var(--soft); min-height: 4rem; max-height: 24rem;
  display: grid; place-items: center; text-align: center; }
figcaption { flex: 1 1 9rem; min-width: 0; }
figcaption span { display: block; }
figcaption span:first-child { color: var(--ink); font-size: 1.0625rem; }
@media (max-width: 46rem) { .three { grid-template-columns: minmax(0, 1fr); gap: 2rem; } }
"""


def make_page(summary: dict[str, Any], sections: Sequence[str]) -> str:
    title = escape(summary["title"])
    story, about = map(escape, intro(summary))
    again = 'tokenizer.decode(Codes.from_bytes(Path("NAME.viq").read_bytes()))[0].save("NAME.png")'
    failed = "".join(
        f"<p>{escape(item['name'])} is left out. {escape(item['reason'])}</p>\n"
        for item in summary["failed"]
    )
    # The policy forbids requests, should an edited page hold any.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{story}</p>
<p class="soft">{about}</p>
<p class="soft">Made by <code>{escape(summary["command"])}</code></p>
</header>
<main>
{"".join(sections)}</main>
<footer>
<p>A .viq file and the tokenizer are enough to get the picture back:
<code>{escape(again)}</code></p>
{failed}</footer>
</body>
</html>
"""


def section(row: dict[str, Any], pictures: Sequence[Image.Image | None], number: int) -> str:
    """One picture's part of the page."""
    name = escape(row["name"])
    size = (row["width"], row["height"])
    kinds = ("original", "decoded from ViQ codes", "JPEG of equal bytes")
    parts = shown(row, pictures, _PAGE_BOX)
    figures = []
    for item, kind, (heading, lines) in zip(parts, kinds, captions(row), strict=True):
        if item is None:
            ratio = f"aspect-ratio: {size[0]} / {size[1]}"
            picture = f'<div class="blank" style="{ratio}">{escape(unfit(row))}</div>\n'
        else:
            sharp = ' class="sharp"' if item[0].width > size[0] else ""
            whole = _image(item[0], f"{row['name']}, {kind}", sharp)
            detail = _image(item[1], f"Detail of {row['name']} at 1:1, {kind}")
            picture = f"<div>{whole}</div>\n{detail}\n"
        words = "".join(f"<span>{escape(text)}</span>" for text in (heading, *lines))
        figures.append(f"<figure>\n{picture}<figcaption>{words}</figcaption>\n</figure>\n")
    credit = f" · Photo: {escape(row['credit'])}" if row["credit"] else ""
    links = " · ".join(
        f'<a href="{quote(row["name"])}.{kind}">{name}.{kind}</a>' for kind in ("viq", "png")
    )
    return f"""<section aria-labelledby="picture-{number}">
<h2 id="picture-{number}">{name}</h2>
<p class="soft">{escape(facts(row))}</p>
<p class="soft">{links}{credit}</p>
<div class="three">
{"".join(figures)}</div>
</section>
"""


def _image(image: Image.Image, alt: str, more: str = "") -> str:
    data = base64.b64encode(encoded(image, "WEBP", lossless=True)).decode()
    return (
        f'<img src="data:image/webp;base64,{data}" width="{image.width}" height="{image.height}"'
        f' alt="{escape(alt)}"{more}>'
    )
