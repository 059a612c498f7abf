"""Images encoded whole against encoded in tiles, and errors along the seams."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from viq.core.types import ViqError, tile_grid
from viq.eval.tokenizer.reconstruction import _check, _mean, _opened
from viq.image.open import ImageInput, open_image
from viq.metrics.images import psnr
from viq.models.tokenizer.tokenizer import VisualTokenizer

_SEAM_BAND = 4  # px on each side of a seam


def seams(tokenizer: VisualTokenizer, image: ImageInput, tile: int) -> dict[str, Any]:
    """Whether the seams between tiles show: the error beside them against that elsewhere.

    Every border between patches carries more error than the inside of patches, so the error beside
    the patch borders that are no seams is given too: ratio_border near 1 means that a
    seam is no worse than any other border.

    Args:
        tile: px, a multiple of the patch size, shorter than the image's longer side.

    Returns:
        tile, band (px on each side that count as beside), seams (how many lines); mse_seam,
        mse_border and mse_elsewhere (mean squared error on the 0..255 scale, beside seams, beside
        other patch borders, and anywhere but beside seams); ratio (mse_seam / mse_elsewhere) and
        ratio_border (mse_seam / mse_border), None where there is nothing to divide by.

    Raises:
        ImageError: the image cannot be read.
        ValueError: the image is not cut at this tile, or the tokenizer cannot decode.
    """
    _check(tokenizer, tile)
    opened = open_image(image)
    if not 0 < tile < max(opened.size):
        raise ViqError(
            f"an image of {opened.height}x{opened.width} px is not cut at tile {tile}: pass a "
            "larger image or a smaller tile"
        )
    codes = tokenizer.encode(opened, tile=tile)[0]
    pixels = np.asarray(opened)
    difference = pixels.astype(np.int32) - np.asarray(tokenizer.decode(codes)[0])
    error_HW = np.square(difference).mean(axis=2)

    patch = tokenizer.config.encoder.patch_size
    cells = tile_grid(codes.grid, tile // patch)
    tops = {rows.start * patch for rows, _ in cells} - {0}
    lefts = {cols.start * patch for _, cols in cells} - {0}
    beside = _beside(tops, codes.size[0])[:, None] | _beside(lefts, codes.size[1])
    every = [_beside(range(patch, length, patch), length) for length in codes.size]
    border = (every[0][:, None] | every[1]) & ~beside
    seam, other, rest = (
        float(error_HW[mask].mean()) if mask.any() else None for mask in (beside, border, ~beside)
    )
    return {
        "tile": tile,
        "band": _SEAM_BAND,
        "seams": len(tops) + len(lefts),
        "mse_seam": seam,
        "mse_border": other,
        "mse_elsewhere": rest,
        "ratio": seam / rest if seam is not None and rest else None,
        "ratio_border": seam / other if seam is not None and other else None,
    }


def tiling_gap(
    tokenizer: VisualTokenizer, images: Iterable[ImageInput], tile: int
) -> dict[str, Any]:
    """What encoding in tiles costs: mean PSNR of images encoded whole less that in tiles.

    Only images with a side above `tile` px count: the others are the same either way. Memory and
    time of an image encoded whole grow with the square of its area.

    Returns:
        tile; images (how many count) and smaller (how many do not); psnr_whole, psnr_tiled and
        their difference gap (dB), None without images; failed as in `evaluate`.

    Raises:
        ValueError: a tile that is not a positive multiple of the patch size, or a tokenizer that
            cannot decode.
    """
    _check(tokenizer, tile)
    if not tile:
        raise ViqError("tile is 0, which never cuts an image: pass the side of a tile in px")
    failed: list[dict[str, str]] = []
    pairs: list[tuple[float, float]] = []
    counted = smaller = 0
    for _, image in _opened(images, failed):
        if image is None:
            continue
        if max(image.size) <= tile:
            smaller += 1
            continue
        pixels, counted = np.asarray(image), counted + 1
        whole, tiled = (
            psnr(pixels, np.asarray(tokenizer.decode(tokenizer.encode(image, tile=side))[0]))
            for side in (0, tile)
        )
        pairs.append((whole, tiled))
    finite = [pair for pair in pairs if math.inf not in pair]
    whole, tiled = _mean([pair[0] for pair in finite]), _mean([pair[1] for pair in finite])
    return {
        "tile": tile,
        "images": counted,
        "smaller": smaller,
        "psnr_whole": whole,
        "psnr_tiled": tiled,
        "gap": None if whole is None or tiled is None else whole - tiled,
        "failed": failed,
    }


def compare_tiles(
    tokenizer: VisualTokenizer, images: Sequence[ImageInput], tile: int
) -> dict[str, Any]:
    """`tiling_gap`, and the means of `seams` over the images that are cut at this tile.

    Returns:
        What `tiling_gap` returns, and seams: mse_seam, mse_border, mse_elsewhere (means over
        images), ratio and ratio_border of these means.
    """
    result = tiling_gap(tokenizer, images, tile)
    failed: list[dict[str, str]] = []
    found = [  # one image in memory at a time
        seams(tokenizer, image, tile)
        for _, image in _opened(images, failed)
        if image is not None and max(image.size) > tile
    ]
    means = {
        name: _mean([item[name] for item in found if item[name] is not None])
        for name in ("mse_seam", "mse_border", "mse_elsewhere")
    }
    seam = means["mse_seam"]
    for name, other in (("ratio", "mse_elsewhere"), ("ratio_border", "mse_border")):
        divisor = means[other]
        means[name] = seam / divisor if seam is not None and divisor else None
    return {**result, "seams": means}


def _beside(edges: Iterable[int], length: int) -> np.ndarray:
    """bool (length): which px lie within the band around one of the edges."""
    mask = np.zeros(length, bool)
    for edge in edges:
        mask[max(0, edge - _SEAM_BAND) : edge + _SEAM_BAND] = True
    return mask
