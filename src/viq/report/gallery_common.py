"""What sheet and page share: the words about a picture, and pictures scaled for display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

_DETAIL = 192  # px a side of the crops at 1:1
_CELL = 8  # px a side of the cells whose variance tells detail


def intro(summary: dict[str, Any]) -> tuple[str, str]:
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


def facts(row: dict[str, Any]) -> str:
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


def captions(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
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


def unfit(row: dict[str, Any]) -> str:
    return f"does not fit in {row['bytes']:,} bytes"


def most_detailed(image: Image.Image) -> tuple[int, int, int, int]:
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


def fitted(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    """Shrunk to a box (width, height); enlarged only by whole factors, which invents no pixels."""
    scale = min(box[0] / image.width, box[1] / image.height)
    if scale >= 1:
        factor = int(scale)
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def shown(
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
        small = fitted(picture, box)
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


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, form, **options)
        return stream.getvalue()
