"""The gallery as one PNG, drawn with the font inside Pillow, so that it is the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image, ImageDraw

from viq.report.gallery_common import captions, facts, intro, shown, unfit
from viq.report.text import font, plain, wrapped

_SHEET_BOX = (480, 320)  # px; a whole picture is scaled to fit
_MARGIN, _GAP = 48, 24
_WIDTH = 3 * _SHEET_BOX[0] + 2 * (_GAP + _MARGIN)
_INK, _SOFT, _LINE, _BLANK = "#1a1a1a", "#5f5f5f", "#d8d8d4", "#efefec"


def make_sheet(summary: dict[str, Any], blocks: Sequence[Image.Image]) -> Image.Image:
    story, about = intro(summary)
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


def block(row: dict[str, Any], pictures: Sequence[Image.Image | None]) -> Image.Image:
    """One picture's part of the sheet."""
    full = _WIDTH - 2 * _MARGIN
    about = [(facts(row), 17, _SOFT)]
    if row["credit"]:
        about.append((row["credit"], 17, _SOFT))
    parts = shown(row, pictures, _SHEET_BOX)
    width, height = next(item[0].size for item in parts if item)
    columns = []
    for item, (heading, lines) in zip(parts, captions(row), strict=True):
        offset = item[1].width + 20 if item else 0
        space = _SHEET_BOX[0] - offset
        caption = _text([(heading, 21, _INK), *((line, 17, _SOFT) for line in lines)], space)
        if item:
            columns.append(_stack([item[0], _beside([item[1], caption], [offset, space])], 12))
        else:
            blank = _blank(unfit(row), (max(240, width), max(64, height)))
            columns.append(_stack([blank, caption], 12))
    three = _beside(columns, [_SHEET_BOX[0] + _GAP] * 2 + [_SHEET_BOX[0]])
    head = _stack([_text([(row["name"], 26, _INK)], full), _text(about, full)], 2)
    return _stack([head, three], 14)


def _blank(text: str, size: tuple[int, int]) -> Image.Image:
    """What stands in the place of a JPEG that cannot be."""
    image = Image.new("RGB", size, _BLANK)
    centre = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(image).text(centre, plain(text), _SOFT, font(17), anchor="mm")
    return image


def _text(items: Iterable[tuple[str, int, str]], width: int) -> Image.Image:
    """Paragraphs (text, size in px, colour), wrapped to a width."""
    lines = [
        (line, size, colour)
        for text, size, colour in items
        for line in wrapped(plain(text), size, width)
    ]
    leading = [round(1.4 * size) for _, size, _ in lines]
    image = Image.new("RGB", (width, sum(leading)), "white")
    draw, y = ImageDraw.Draw(image), 0
    for (line, size, colour), step in zip(lines, leading, strict=True):
        draw.text((0, y + size), line, colour, font(size), anchor="ls")
        y += step
    return image


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
