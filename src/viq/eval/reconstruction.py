"""How much of an image survives its codes, beside JPEG and WebP files of the same size.

    result = evaluate(tokenizer, list_images("photos"), crop=256)
    result["totals"]["psnr"], result["totals"]["codecs"]["jpeg"]

Our bytes are two a code, without the 28-byte header of a code file; a codec's are those of the
whole file. Results are plain dictionaries that `json.dumps(..., allow_nan=False)` accepts: what is
infinite (PSNR of an exact copy) or has nothing to average is None.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps

from viq.eval.codecs import check_codec, fit_codec
from viq.eval.metrics import code_counts, psnr, ssim, summarize_counts
from viq.image import ImageError, Source, open_image
from viq.models.tokenizer import VisualTokenizer
from viq.patches import tile_grid
from viq.types import ViqError

_SEAM_BAND = 4  # px on each side of a seam


def evaluate(
    tokenizer: VisualTokenizer,
    images: Iterable[Source],
    *,
    crop: int | None = None,
    tile: int | None = None,
    codecs: Sequence[str] = ("jpeg", "webp"),
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Encode and decode every image, and measure what comes back.

    Args:
        images: paths, PIL images, bytes or uint8 arrays.
        crop: take the largest central square and resize it to this many px (bicubic): what
            resizing the shorter side and cropping the centre gives. None: images as they are.
        tile: as in `VisualTokenizer.encode`: None takes the model's setting, 0 never tiles.
        codecs: each gets as many bytes for the same pixels as our codes take.
        progress: called with the number of images done after each, failed ones included.

    Returns:
        images: for each image key (its path, or its place in `images` from 0), height, width,
            bytes, bpp (bits a pixel), psnr (dB), ssim, and codecs: by name, quality, bytes, bpp,
            psnr and ssim, or None if no file is small enough.
        failed: key and reason of each image that cannot be read; the others go on.
        totals: images (how many), bytes, bpp (all bits over all pixels), psnr and ssim (means over
            images), and codecs: by name, fits (images with a small enough file) and the bpp, psnr
            and ssim of those, with the same numbers of ours, over the same images, under "ours".
            Means of psnr leave out exact copies: of one, or of either in a comparison.
        code_use: see `viq.eval.metrics.summarize_counts`; None without images.
        settings: crop, tile, codecs, and pillow: the release that wrote the files.
        tokenizer: name and fingerprint.

    Raises:
        ValueError: a tokenizer without pixel decoder or without codes, an unknown codec, a crop
            below 1 or a tile that is not a multiple of the patch size.
    """
    _check(tokenizer, tile)
    for codec in codecs:
        check_codec(codec)
    if crop is not None and crop < 1:
        raise ViqError(f"crop is {crop} px: pass at least 1, or None to take whole images")
    tile = tokenizer.config.tile if tile is None else tile
    levels = tokenizer.levels
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    counts = code_counts(np.empty(0, np.uint16), levels)
    for done, (key, image) in enumerate(_opened(images, failed), 1):
        if image is not None:
            if crop is not None:
                image = ImageOps.fit(image, (crop, crop), Image.Resampling.BICUBIC)
            codes = tokenizer.encode(image, tile=tile)[0]
            counts += code_counts(codes.ids, levels)
            row = {"key": key, "height": image.height, "width": image.width}
            row |= _measured(image, tokenizer.decode(codes)[0], codes.nbytes)
            row["codecs"] = {codec: _fitted(image, codec, codes.nbytes) for codec in codecs}
            rows.append(row)
        if progress is not None:
            progress(done)
    return {
        "tokenizer": {
            "name": tokenizer.config.name,
            "fingerprint": tokenizer.compute_fingerprint(),
        },
        "settings": {
            "crop": crop,
            "tile": tile,
            "codecs": list(codecs),
            "pillow": PIL.__version__,
        },
        "images": rows,
        "failed": failed,
        "totals": {
            "images": len(rows),
            "bytes": sum(row["bytes"] for row in rows),
            **_means(rows, rows),
            "codecs": {codec: _comparison(rows, codec) for codec in codecs},
        },
        "code_use": summarize_counts(counts, levels) if rows else None,
    }


def seams(tokenizer: VisualTokenizer, image: Source, tile: int) -> dict[str, Any]:
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


def tiling_gap(tokenizer: VisualTokenizer, images: Iterable[Source], tile: int) -> dict[str, Any]:
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
    tokenizer: VisualTokenizer, images: Sequence[Source], tile: int
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


def _check(tokenizer: VisualTokenizer, tile: int | None) -> None:
    """Refuse what would fail on every image, before the first one is read."""
    if tokenizer.decoder is None:
        raise ViqError(
            f"{tokenizer.config.name} has no pixel decoder, so it gives no images to measure: "
            "train one or choose another model"
        )
    _ = tokenizer.levels  # raises for a continuous bottleneck
    patch = tokenizer.config.encoder.patch_size
    if tile is not None and (tile < 0 or tile % patch):
        raise ViqError(f"tile must be 0 or a multiple of {patch} px, got {tile}")


def _opened(
    images: Iterable[Source], failed: list[dict[str, str]]
) -> Iterator[tuple[str, Image.Image | None]]:
    """Keys and RGB images; what cannot be read is None, and goes to `failed`."""
    for index, source in enumerate(images):
        key = os.fspath(source) if isinstance(source, str | os.PathLike) else str(index)
        try:
            image = open_image(source)
        except ImageError as error:
            failed.append({"key": key, "reason": str(error)})
            image = None
        yield key, image


def _measured(image: Image.Image, restored: Image.Image, size: int) -> dict[str, Any]:
    """Numbers of one picture that took `size` bytes."""
    pixels, others = np.asarray(image), np.asarray(restored)
    decibels = psnr(pixels, others)
    return {
        "bytes": size,
        "bpp": 8 * size / (image.height * image.width),
        "psnr": decibels if math.isfinite(decibels) else None,
        "ssim": ssim(pixels, others),
    }


def _fitted(image: Image.Image, codec: str, max_bytes: int) -> dict[str, Any] | None:
    fitted = fit_codec(image, codec, max_bytes)
    if fitted is None:
        return None
    data, decoded, quality = fitted
    return {"quality": quality, **_measured(image, decoded, len(data))}


def _comparison(rows: Sequence[dict[str, Any]], codec: str) -> dict[str, Any]:
    """A codec beside us, over the images it has a small enough file for."""
    ours = [row for row in rows if row["codecs"][codec] is not None]
    theirs = [row["codecs"][codec] for row in ours]
    # An exact copy on one side only would leave the two means over different images.
    both = [None not in (a["psnr"], b["psnr"]) for a, b in zip(ours, theirs, strict=True)]
    return {
        "fits": len(ours),
        **_means(theirs, ours, both),
        "ours": _means(ours, ours, both),
    }


def _means(
    measured: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    with_psnr: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Totals of `measured`; `rows` hold the sizes of the same images."""
    pixels = sum(row["height"] * row["width"] for row in rows)
    keep = with_psnr or [True] * len(rows)
    decibels = [m["psnr"] for m, kept in zip(measured, keep, strict=True) if kept]
    return {
        "bpp": 8 * sum(m["bytes"] for m in measured) / pixels if pixels else None,
        "psnr": _mean([value for value in decibels if value is not None]),
        "ssim": _mean([m["ssim"] for m in measured]),
    }


def _beside(edges: Iterable[int], length: int) -> np.ndarray:
    """bool (length): which px lie within the band around one of the edges."""
    mask = np.zeros(length, bool)
    for edge in edges:
        mask[max(0, edge - _SEAM_BAND) : edge + _SEAM_BAND] = True
    return mask


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
