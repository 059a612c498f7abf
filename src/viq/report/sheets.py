"""Sheets of pictures: originals above reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from viq.core.files import written_aside
from viq.image.open import open_image

_CELL, _GAP, _SHEET = 256, 8, 1600  # px: longest side of a picture, space between, sheet width


def picture_grid(
    originals: Sequence[Image.Image | np.ndarray],
    reconstructions: Sequence[Image.Image | np.ndarray],
    path: Path,
) -> None:
    """One PNG of pairs of any sizes, original above reconstruction, written whole or not at all.

    Args:
        originals, reconstructions: PIL images or uint8 arrays (H, W, 3). Large ones are shown
            smaller, small ones at their size.
    """
    pairs = [
        tuple(_thumbnail(picture) for picture in pair)
        for pair in zip(originals, reconstructions, strict=True)
    ]
    if not pairs:
        raise ValueError("no pictures for a grid: give at least one pair")
    rows: list[list[tuple[Image.Image, ...]]] = [[]]
    for pair in pairs:
        if rows[-1] and _width([*rows[-1], pair]) > _SHEET:
            rows.append([])
        rows[-1].append(pair)
    heights = [[max(pair[part].height for pair in row) for part in (0, 1)] for row in rows]
    height = sum(upper + lower + 3 * _GAP for upper, lower in heights)
    sheet = Image.new("RGB", (max(map(_width, rows)), height), "white")
    top = _GAP
    for row, (upper, lower) in zip(rows, heights, strict=True):
        left = _GAP
        for original, reconstruction in row:
            sheet.paste(original, (left, top + upper - original.height))
            sheet.paste(reconstruction, (left, top + upper + _GAP))
            left += max(original.width, reconstruction.width) + _GAP
        top += upper + lower + 3 * _GAP
    with written_aside(path) as aside:
        sheet.save(aside, "PNG")


def _thumbnail(picture: Image.Image | np.ndarray) -> Image.Image:
    small = open_image(picture)
    small.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
    return small


def _width(row: Sequence[tuple[Image.Image, ...]]) -> int:
    return _GAP + sum(max(picture.width for picture in pair) + _GAP for pair in row)
