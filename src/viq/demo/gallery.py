"""A gallery of originals, ViQ reconstructions and JPEG files of equal bytes, to look at.

    make_gallery(tokenizer, sample_photos(), Path("demo"), title="ViQ")

Two galleries come of it: `gallery.png`, drawn with the font inside Pillow, and `gallery.html`,
whose pictures are data URIs, so that it asks for nothing outside itself. Neither adds losses of its
own: they hold PNG and lossless WebP.

Unlike `viq.eval`, bytes are those of whole .viq files, header included: that is what lies on the
disk beside a JPEG file.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont

from viq.eval.codecs import fit_codec
from viq.eval.metrics import psnr, ssim
from viq.files import write_atomically
from viq.fsq import codebook_size
from viq.image import ImageError, Source, open_image
from viq.models.tokenizer import VisualTokenizer
from viq.types import Codes, ViqError

_DETAIL = 192  # px a side of the crops at 1:1
_CELL = 8  # px a side of the cells whose variance tells detail

# All px. The page holds larger pictures than the sheet because fine screens show them smaller.
_SHEET_BOX, _PAGE_BOX = (480, 320), (768, 512)
_MARGIN, _GAP = 48, 24
_WIDTH = 3 * _SHEET_BOX[0] + 2 * (_GAP + _MARGIN)
_INK, _SOFT, _LINE, _BLANK = "#1a1a1a", "#5f5f5f", "#d8d8d4", "#efefec"

# Name: file in scikit-image, origin and licence.
_SAMPLES = {
    "chelsea": ("chelsea.png", "Stefan van der Walt, CC0"),
    "coffee": ("coffee.png", "Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0"),
    "astronaut": ("astronaut.png", "NASA, public domain"),
    "rocket": ("rocket.jpg", "SpaceX, public domain"),
    "hubble_deep_field": ("hubble_deep_field.jpg", "NASA and ESA, public domain"),
    "retina": ("retina.jpg", "Mikael Häggström, CC0"),
}


def sample_photos() -> list[tuple[str, Image.Image]]:
    """Names and RGB photos that come with scikit-image, at their own sizes, smallest first.

    All are in the public domain or under CC0, says the documentation of `skimage.data`. Each
    photo carries its credit in `info["credit"]`, which `make_gallery` shows.

    - chelsea, 451x300 px: a cat, by Stefan van der Walt; CC0.
    - coffee, 600x400 px: a cup, by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0.
    - astronaut, 512x512 px: Eileen Collins, NASA Great Images database; public domain.
    - rocket, 640x427 px: launch of DSCOVR on a Falcon 9, by SpaceX; public domain.
    - hubble_deep_field, 1000x872 px: Hubble eXtreme Deep Field, NASA and ESA; public domain.
    - retina, 1411x1411 px: fundus photograph of a left eye, by Mikael Häggström; CC0.

    Raises:
        ValueError: scikit-image is not installed, or holds other photos.
    """
    found = find_spec("skimage")  # its files are enough: importing it would take a while
    folders = found.submodule_search_locations if found else None
    if not folders:
        raise ViqError(
            "the sample photos come with scikit-image, which is not installed: run "
            "pip install 'viq[demo]', or give pictures of your own"
        )
    folder = Path(folders[0]) / "data"
    photos = []
    for name, (file, credit) in _SAMPLES.items():
        try:
            photo = open_image(folder / file)
        except ImageError as error:
            raise ViqError(
                f"this release of scikit-image has other sample photos ({error}): run "
                "pip install --upgrade 'viq[demo]', or give pictures of your own"
            ) from error
        photo.info["credit"] = credit
        photos.append((name, photo))
    return photos


def make_gallery(
    tokenizer: VisualTokenizer,
    sources: Sequence[Source | tuple[str, Source]],
    out: Path,
    *,
    title: str,
    command: str = "viq demo [IMAGES...] -o FOLDER",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Encode pictures to files, decode the files, and show both beside JPEG files.

    Writes NAME.viq (codes) and NAME.png (what they decode to) for every picture, and gallery.png
    and gallery.html for all. Pictures are neither resized nor cropped, but for display.

    Args:
        sources: pictures, or pairs of a name and a picture. Without one, the name comes from the
            path; characters that file names cannot have are replaced, and equal names numbered.
            A PIL image may carry a line of credit in `info["credit"]`.
        out: folder for the files, made if need be.
        title: of the gallery.
        command: shown as the way to make this gallery again.
        progress: called with the number of pictures done after each, failed ones included.

    Returns:
        What `json.dumps(..., allow_nan=False)` accepts:

        title, command; tokenizer: name, fingerprint, levels, codebook (its size), tile (px);
        pillow: the release that wrote the JPEG files.
        images: for each, name, credit (or None), width, height, megapixels, grid (rows, columns),
            codes (how many), bytes (of the .viq file), ratio (raw RGB bytes / bytes), bpp (bits a
            pixel), detail (left, top, width, height of the crop at 1:1), viq: psnr and ssim, and
            jpeg: quality, bytes, bpp, psnr and ssim, or None if no file is small enough. A psnr of
            None means an exact copy.
        failed: name and reason of each picture that cannot be read; the others go on.
        files: names of all files written to `out`.

    Raises:
        ValueError: no picture that can be read, a tokenizer that cannot decode, or a picture that
            a file of the gallery would overwrite.
    """
    if tokenizer.decoder is None:
        raise ViqError(
            f"{tokenizer.config.name} has no pixel decoder, so it gives no pictures to show: "
            "choose another model"
        )
    levels = tokenizer.levels  # raises for a continuous bottleneck
    named = _named(sources)
    _protect(named, out)
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    files: list[str] = []
    blocks: list[Image.Image] = []
    sections: list[str] = []
    for done, (name, source) in enumerate(named, 1):
        try:
            original = open_image(source)
        except ImageError as error:
            failed.append({"name": name, "reason": str(error)})
        else:
            credit = source.info.get("credit") if isinstance(source, Image.Image) else None
            row, pictures = _compare(tokenizer, name, original, out)
            rows.append({"name": name, "credit": str(credit) if credit else None, **row})
            files += [f"{name}.viq", f"{name}.png"]
            # Full-size pictures go no further: a gallery may hold many.
            blocks.append(_block(rows[-1], pictures))
            sections.append(_section(rows[-1], pictures, len(rows)))
        if progress is not None:
            progress(done)
    if not rows:
        reason = f": {failed[0]['reason']}" if failed else "; give at least one"
        raise ViqError(f"no picture to show{reason}")
    summary = {
        "title": title,
        "command": command,
        "tokenizer": {
            "name": tokenizer.config.name,
            "fingerprint": tokenizer.fingerprint,
            "levels": list(levels),
            "codebook": codebook_size(levels),
            "tile": tokenizer.config.tile,
        },
        "pillow": PIL.__version__,
        "images": rows,
        "failed": failed,
        "files": [*files, "gallery.png", "gallery.html"],
    }
    write_atomically(out / "gallery.png", _encoded(_sheet(summary, blocks), "PNG"))
    write_atomically(out / "gallery.html", _page(summary, sections).encode())
    return summary


# Pictures and numbers


def _compare(
    tokenizer: VisualTokenizer, name: str, original: Image.Image, out: Path
) -> tuple[dict[str, Any], list[Image.Image | None]]:
    """Write the files of one picture; its numbers, and original, ViQ and JPEG picture."""
    file = out / f"{name}.viq"
    write_atomically(file, tokenizer.encode(original)[0].to_bytes())
    # From the disk: what is shown is what the file alone gives.
    data = file.read_bytes()
    codes = Codes.from_bytes(data)
    decoded = tokenizer.decode(codes)[0]
    write_atomically(out / f"{name}.png", _encoded(decoded, "PNG"))
    jpeg = fit_codec(original, "jpeg", len(data))
    pixels = original.width * original.height
    row: dict[str, Any] = {
        "width": original.width,
        "height": original.height,
        "megapixels": pixels / 1e6,
        "grid": list(codes.grid),
        "codes": int(codes.ids.size),
        "bytes": len(data),
        "ratio": 3 * pixels / len(data),
        "bpp": 8 * len(data) / pixels,
        "detail": list(_most_detailed(original)),
        "viq": _measured(original, decoded),
        "jpeg": None,
    }
    if jpeg is None:
        return row, [original, decoded, None]
    written, picture, quality = jpeg
    row["jpeg"] = {
        "quality": quality,
        "bytes": len(written),
        "bpp": 8 * len(written) / pixels,
        **_measured(original, picture),
    }
    return row, [original, decoded, picture]


def _measured(original: Image.Image, other: Image.Image) -> dict[str, Any]:
    a, b = np.asarray(original), np.asarray(other)
    decibels = psnr(a, b)
    return {"psnr": decibels if math.isfinite(decibels) else None, "ssim": ssim(a, b)}


def _most_detailed(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, width and height of the crop with the most detail.

    Detail is the mean standard deviation of small cells: the variance of a whole crop would
    prefer one bold edge to any texture.
    """
    grey_HW = np.asarray(image.convert("L"))
    full_height, full_width = grey_HW.shape
    height, width = min(_DETAIL, full_height), min(_DETAIL, full_width)
    cell_h, cell_w = min(_CELL, height), min(_CELL, width)
    rows, cols = full_height // cell_h, full_width // cell_w
    cells = np.stack(  # row by row, as std makes float64 copies
        [
            grey_HW[r * cell_h : (r + 1) * cell_h, : cols * cell_w]
            .reshape(cell_h, cols, cell_w)
            .std(axis=(0, 2))
            for r in range(rows)
        ]
    )
    sums = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    n, m = height // cell_h, width // cell_w
    inside = sums[n:, m:] - sums[:-n, m:] - sums[n:, :-m] + sums[:-n, :-m]
    top, left = (int(i) for i in np.unravel_index(inside.argmax(), inside.shape))
    x, y = min(left * cell_w, full_width - width), min(top * cell_h, full_height - height)
    return x, y, width, height


def _fitted(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    """Shrunk to a box (width, height); enlarged only by whole factors, which invents no pixels."""
    scale = min(box[0] / image.width, box[1] / image.height)
    if scale >= 1:
        factor = int(scale)
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _shown(
    row: dict[str, Any], pictures: Sequence[Image.Image | None], box: tuple[int, int]
) -> list[tuple[Image.Image, Image.Image] | None]:
    """Scaled picture and detail at 1:1 of each; the detail's place is marked in the original."""
    left, top, width, height = row["detail"]
    shown: list[tuple[Image.Image, Image.Image] | None] = []
    for picture in pictures:
        if picture is None:
            shown.append(None)
            continue
        detail = picture.crop((left, top, left + width, top + height))
        small = _fitted(picture, box)
        if not shown and (width, height) != picture.size:
            x, y = small.width / picture.width, small.height / picture.height
            right, bottom = (left + width) * x - 1, (top + height) * y - 1
            draw = ImageDraw.Draw(small)
            # White between black: one of them shows on any ground.
            for inset, colour in ((0, "black"), (1, "white"), (2, "black")):
                x1, y1 = right - inset, bottom - inset
                x0, y0 = min(left * x + inset, x1), min(top * y + inset, y1)
                draw.rectangle((x0, y0, x1, y1), outline=colour)
        shown.append((small, detail))
    return shown


# Words, the same on sheet and page


def _intro(summary: dict[str, Any]) -> tuple[str, str]:
    """What the gallery shows, and by which tokenizer."""
    tokenizer = summary["tokenizer"]
    levels = " × ".join(map(str, tokenizer["levels"]))
    story = (
        "Every picture is encoded at its own size, written to a .viq file, read back and decoded. "
        "Beside it stands the best JPEG of at most as many bytes. Whole pictures are scaled to "
        "fit; below them are details at 1:1, from where the frame in the original is. PSNR and "
        "SSIM are of the full-size pictures."
    )
    about = (
        f"Tokenizer {tokenizer['name']} · fingerprint {tokenizer['fingerprint']} · levels {levels} "
        f"({tokenizer['codebook']:,} codes, four a patch of 16 × 16 px) · JPEG by Pillow "
        f"{summary['pillow']}"
    )
    return story, about


def _facts(row: dict[str, Any]) -> str:
    mega, ratio = row["megapixels"], row["ratio"]
    return " · ".join(
        [
            f"{row['width']:,} × {row['height']:,} px",
            f"{mega:.2f} megapixels" if mega >= 0.01 else "under 0.01 megapixels",
            f"grid {row['grid'][0]:,} × {row['grid'][1]:,} (rows × columns)",
            f"{row['codes']:,} codes",
            f"{row['bytes']:,} bytes, "
            + (f"1/{ratio:.0f} of raw RGB" if ratio >= 1 else f"{1 / ratio:.1f} times raw RGB"),
            f"{row['bpp']:.2f} bits per pixel",
        ]
    )


def _captions(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Heading and lines below each of the three."""
    jpeg = row["jpeg"]
    raw = f"{3 * row['width'] * row['height']:,} bytes of raw RGB"
    return [
        ("Original", [raw, "24 bits per pixel"]),
        ("ViQ", _numbers({**row, **row["viq"]})),
        (f"JPEG, quality {jpeg['quality']}", _numbers(jpeg)) if jpeg else ("JPEG", []),
    ]


def _numbers(part: dict[str, Any]) -> list[str]:
    decibels = part["psnr"]
    return [
        f"{part['bytes']:,} bytes",
        f"{part['bpp']:.2f} bits per pixel",
        "exact copy" if decibels is None else f"PSNR {decibels:.2f} dB",
        f"SSIM {part['ssim']:.3f}",
    ]


def _unfit(row: dict[str, Any]) -> str:
    return f"does not fit in {row['bytes']:,} bytes"


# The sheet


def _sheet(summary: dict[str, Any], blocks: Sequence[Image.Image]) -> Image.Image:
    story, about = _intro(summary)
    width = _WIDTH - 2 * _MARGIN
    texts = [(summary["title"], 36, _INK), (story, 19, _INK), (about, 17, _SOFT)]
    head = _stack([_text([item], width) for item in texts], 10)
    again = _text([(f"Made by: {summary['command']}", 17, _SOFT)], width)
    rule = Image.new("RGB", (width, 1), _LINE)
    parts = [_stack([head, again], 4)]
    for block in blocks:
        parts += [rule, block]
    whole = _stack(parts, 26)
    sheet = Image.new("RGB", (_WIDTH, whole.height + 2 * _MARGIN), "white")
    sheet.paste(whole, (_MARGIN, _MARGIN))
    return sheet


def _block(row: dict[str, Any], pictures: Sequence[Image.Image | None]) -> Image.Image:
    """One picture's part of the sheet."""
    full = _WIDTH - 2 * _MARGIN
    facts = [(_facts(row), 17, _SOFT)]
    if row["credit"]:
        facts.append((f"Photo: {row['credit']}", 17, _SOFT))
    shown = _shown(row, pictures, _SHEET_BOX)
    width, height = next(item[0].size for item in shown if item)
    columns = []
    for item, (heading, lines) in zip(shown, _captions(row), strict=True):
        offset = item[1].width + 20 if item else 0
        space = _SHEET_BOX[0] - offset
        caption = _text([(heading, 21, _INK), *((line, 17, _SOFT) for line in lines)], space)
        if item:
            columns.append(_stack([item[0], _beside([item[1], caption], [offset, space])], 12))
        else:
            blank = _blank(_unfit(row), (max(240, width), max(64, height)))
            columns.append(_stack([blank, caption], 12))
    three = _beside(columns, [_SHEET_BOX[0] + _GAP] * 2 + [_SHEET_BOX[0]])
    head = _stack([_text([(row["name"], 26, _INK)], full), _text(facts, full)], 2)
    return _stack([head, three], 14)


def _blank(text: str, size: tuple[int, int]) -> Image.Image:
    """What stands in the place of a JPEG that cannot be."""
    image = Image.new("RGB", size, _BLANK)
    centre = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(image).text(centre, _plain(text), _SOFT, _font(17), anchor="mm")
    return image


def _text(items: Iterable[tuple[str, int, str]], width: int) -> Image.Image:
    """Paragraphs (text, size in px, colour), wrapped to a width."""
    lines = [
        (line, size, colour)
        for text, size, colour in items
        for line in _wrapped(_plain(text), size, width)
    ]
    leading = [round(1.4 * size) for _, size, _ in lines]
    image = Image.new("RGB", (width, sum(leading)), "white")
    draw, y = ImageDraw.Draw(image), 0
    for (line, size, colour), step in zip(lines, leading, strict=True):
        draw.text((0, y + size), line, colour, _font(size), anchor="ls")
        y += step
    return image


def _wrapped(text: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(size).getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word longer than the line is cut where it has to be
            if lines[-1] and _font(size).getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Aileron, which comes inside Pillow: the sheet looks the same on every machine."""
    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """Only what Aileron has glyphs for: accents are dropped, other scripts become "?"."""
    letters = unicodedata.normalize("NFKD", text.replace("×", "x"))
    return "".join(
        c if c.isascii() or c == "·" else "?" for c in letters if not unicodedata.combining(c)
    )


def _stack(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    """One below the other, flush left."""
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    image = Image.new("RGB", (max(part.width for part in parts), height), "white")
    y = 0
    for part in parts:
        image.paste(part, (0, y))
        y += part.height + gap
    return image


def _beside(parts: Sequence[Image.Image], widths: Sequence[int]) -> Image.Image:
    """In columns of these widths, flush left and top."""
    image = Image.new("RGB", (sum(widths), max(part.height for part in parts)), "white")
    x = 0
    for part, width in zip(parts, widths, strict=True):
        image.paste(part, (x, 0))
        x += width
    return image


# The page

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


def _page(summary: dict[str, Any], sections: Sequence[str]) -> str:
    title = escape(summary["title"])
    story, about = map(escape, _intro(summary))
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


def _section(row: dict[str, Any], pictures: Sequence[Image.Image | None], number: int) -> str:
    """One picture's part of the page."""
    name = escape(row["name"])
    size = (row["width"], row["height"])
    kinds = ("original", "decoded from ViQ codes", "JPEG of equal bytes")
    shown = _shown(row, pictures, _PAGE_BOX)
    figures = []
    for item, kind, (heading, lines) in zip(shown, kinds, _captions(row), strict=True):
        if item is None:
            ratio = f"aspect-ratio: {size[0]} / {size[1]}"
            picture = f'<div class="blank" style="{ratio}">{escape(_unfit(row))}</div>\n'
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
<p class="soft">{escape(_facts(row))}</p>
<p class="soft">{links}{credit}</p>
<div class="three">
{"".join(figures)}</div>
</section>
"""


def _image(image: Image.Image, alt: str, more: str = "") -> str:
    data = base64.b64encode(_encoded(image, "WEBP", lossless=True)).decode()
    return (
        f'<img src="data:image/webp;base64,{data}" width="{image.width}" height="{image.height}"'
        f' alt="{escape(alt)}"{more}>'
    )


# Files


def _named(sources: Sequence[Source | tuple[str, Source]]) -> list[tuple[str, Source]]:
    """Each source with a name that is good for files, and its own."""
    taken = {"gallery"}  # ours
    named = []
    for place, item in enumerate(sources, 1):
        if isinstance(item, tuple):
            label, source = item
        else:
            source = item
            label = f"image-{place}"
            if isinstance(source, str | os.PathLike):
                label = Path(source).stem
        base = name = _safe(label)
        number = 1
        while name.casefold() in taken:  # many disks take A and a for the same
            number += 1
            name = f"{base}-{number}"
        taken.add(name.casefold())
        named.append((name, source))
    return named


def _safe(label: str) -> str:
    whole = label.encode("utf-8", "replace").decode()  # a broken file name has half characters
    kept = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", whole)
    # 255 bytes are the limit of most disks, and writing aside adds some.
    return kept.encode()[:180].decode(errors="ignore").strip(" .") or "image"


def _protect(named: Sequence[tuple[str, Source]], out: Path) -> None:
    """Refuse to overwrite a picture that was given."""
    given = {
        _identity(source)
        for _, source in named
        if isinstance(source, str | os.PathLike) and os.path.exists(source)
    }
    ours = [f"{name}.{kind}" for name, _ in named for kind in ("viq", "png")]
    for name in [*ours, "gallery.png", "gallery.html"]:
        target = out / name
        if target.exists() and _identity(target) in given:
            raise ViqError(
                f"{target} is one of the given pictures and would be overwritten: choose another "
                "output folder"
            )


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, form, **options)
        return stream.getvalue()
