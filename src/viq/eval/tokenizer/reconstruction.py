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

from viq.core.types import ViqError
from viq.eval.tokenizer.perceptual import EfficientNetDistance
from viq.image.codecs import check_codec, fit_codec
from viq.image.open import ImageError, ImageInput, open_image
from viq.metrics.codebook import code_counts, summarize_counts
from viq.metrics.frechet import frechet_distance
from viq.metrics.images import blockiness, fidelity, ms_ssim
from viq.models.tokenizer.tokenizer import VisualTokenizer

_ALWAYS = ("ssim", "ms_ssim", "blockiness")
_AVERAGED = (*_ALWAYS, "efficientnet_distance")


def evaluate(
    tokenizer: VisualTokenizer,
    images: Iterable[ImageInput],
    *,
    crop: int | None = None,
    tile: int | None = None,
    codecs: Sequence[str] = ("jpeg", "webp"),
    perceptual: EfficientNetDistance | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Encode and decode every image, and measure what comes back.

    Args:
        images: paths, PIL images, bytes or uint8 arrays.
        crop: take the largest central square and resize it to this many px (bicubic): what
            resizing the shorter side and cropping the centre gives. None: images as they are.
        tile: as in `VisualTokenizer.encode`: None takes the model's setting, 0 never tiles.
        codecs: each gets as many bytes for the same pixels as our codes take.
        perceptual: also measures how different pictures look to a pretrained network.
        progress: called with the number of images done after each, failed ones included.

    Returns:
        images: for each image key (its path, or its place in `images` from 0), height, width,
            bytes, bpp (bits a pixel), psnr (dB), ssim, ms_ssim (None below 176 px), blockiness (1:
            none), with `perceptual` efficientnet_distance, and codecs: by name, quality, bytes and
            the same numbers, or None if no file is small enough.
        failed: key and reason of each image that cannot be read; the others go on.
        totals: images (how many), bytes, bpp (all bits over all pixels), means of the numbers over
            images, with `perceptual` efficientnet_frechet (the distance between the sets of
            originals and of what came back), and codecs: by name, fits (images with a small enough
            file) and the same of those, with ours, over the same images, under "ours". Means of
            psnr leave out exact copies: of one, or of either in a comparison.
        code_use: see `viq.metrics.codebook.summarize_counts`; None without images.
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
    measure = _Measure(perceptual)
    for done, (key, image) in enumerate(_opened(images, failed), 1):
        if image is not None:
            if crop is not None:
                image = ImageOps.fit(image, (crop, crop), Image.Resampling.BICUBIC)
            codes = tokenizer.encode(image, tile=tile)[0]
            counts += code_counts(codes.ids, levels)
            row = {"key": key, "height": image.height, "width": image.width}
            row |= measure(image, tokenizer.decode(codes)[0], codes.nbytes)
            row["codecs"] = {name: measure.codec(image, name, codes.nbytes) for name in codecs}
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
            **measure.frechet(),
            "codecs": {codec: _comparison(rows, codec) for codec in codecs},
        },
        "code_use": summarize_counts(counts, levels) if rows else None,
    }


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
    images: Iterable[ImageInput], failed: list[dict[str, str]]
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


class _Measure:
    """Numbers of pictures beside their originals, and the features of both for sets of them."""

    def __init__(self, perceptual: EfficientNetDistance | None) -> None:
        self._perceptual = perceptual
        self._features: list[tuple[np.ndarray, np.ndarray]] = []  # of originals and of ours

    def __call__(self, image: Image.Image, restored: Image.Image, size: int) -> dict[str, Any]:
        """Numbers of one picture that took `size` bytes."""
        numbers, features = self._numbers(image, restored, size)
        self._features += features
        return numbers

    def codec(self, image: Image.Image, codec: str, max_bytes: int) -> dict[str, Any] | None:
        """Those of the best file of a codec; None if none is small enough."""
        fitted = fit_codec(image, codec, max_bytes)
        if fitted is None:
            return None
        data, decoded, quality = fitted
        return {"quality": quality, **self._numbers(image, decoded, len(data))[0]}

    def frechet(self) -> dict[str, float | None]:
        """Of all pictures of our own; nothing where no network measures."""
        if self._perceptual is None:
            return {}
        if len(self._features) < 2:
            return {"efficientnet_frechet": None}
        originals, ours = (np.stack(part) for part in zip(*self._features, strict=True))
        return {"efficientnet_frechet": frechet_distance(originals, ours)}

    def _numbers(
        self, image: Image.Image, restored: Image.Image, size: int
    ) -> tuple[dict[str, Any], list[tuple[np.ndarray, np.ndarray]]]:
        original, pixels = np.asarray(image), np.asarray(restored)
        numbers: dict[str, Any] = {
            "bytes": size,
            "bpp": 8 * size / (image.height * image.width),
            **fidelity(original, pixels),
            "ms_ssim": ms_ssim(original, pixels),
            "blockiness": blockiness(pixels, original),
        }
        if self._perceptual is None:
            return numbers, []
        distance, *features = self._perceptual.measure(original, pixels)
        return numbers | {"efficientnet_distance": distance}, [(features[0], features[1])]


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
    means: dict[str, Any] = {
        "bpp": 8 * sum(m["bytes"] for m in measured) / pixels if pixels else None,
        "psnr": _mean([value for value in decibels if value is not None]),
    }
    for name in _AVERAGED:
        if name in _ALWAYS or any(name in m for m in measured):
            means[name] = _mean([m[name] for m in measured if m.get(name) is not None])
    return means


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
