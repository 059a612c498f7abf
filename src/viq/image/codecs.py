"""The best JPEG, WebP or AVIF file of a given size: what our codes have to compare with.

A file is counted with its headers and tables, which no such picture goes without; below a few
hundred bytes they leave no room, and the answer is None.
"""

from __future__ import annotations

import io

from PIL import Image, features

from viq.core.types import ViqError
from viq.image.open import open_image

CODECS = ("jpeg", "webp", "avif")

_LOWEST = {"jpeg": 1, "webp": 0, "avif": 0}  # quality; the highest is 100
# px a side, by the libraries that write them
_LONGEST = {"jpeg": 65500, "webp": 16383, "avif": 65536}


def check_codec(codec: str) -> None:
    """Raise ViqError if `codec` is not in `CODECS`, or Pillow here was built without it."""
    if codec not in CODECS:
        raise ViqError(f"unknown codec {codec!r}: use one of {', '.join(CODECS)}")
    if codec == "avif" and not features.check("avif"):
        raise ViqError(
            "avif: the Pillow of this machine was built without it; pip install --upgrade pillow "
            "(its wheels have it since 11.3)"
        )


def lowest_quality(codec: str) -> int:
    """The quality of its smallest files; the highest is 100."""
    check_codec(codec)
    return _LOWEST[codec]


def fit_codec(
    image: Image.Image, codec: str, max_bytes: int
) -> tuple[bytes, Image.Image, int] | None:
    """The file of the highest quality (up to 100) that takes at most `max_bytes` bytes.

    JPEG: 4:2:0, optimized Huffman tables, baseline or progressive, whichever is smaller (both hold
    the same pixels). WebP: lossy, method 4. AVIF: 4:2:0, speed 6. Metadata of `image` is left out.
    The search is binary: where a file happens to be smaller at a higher quality, a somewhat higher
    one may fit too.

    Args:
        image: RGB.

    Returns:
        The file, its decoded RGB picture and its quality; None if even the lowest quality takes
        more bytes, or a side is longer than the format allows.

    Raises:
        ValueError: an unknown codec, or an image of another mode.
    """
    check_codec(codec)
    bare = _bare(image)
    if max(image.size) > _LONGEST[codec]:
        return None
    # Invariant: `best` has quality `fits`, and quality `fails` does not fit or does not exist.
    fits, fails = _LOWEST[codec], 101
    best = _save(bare, codec, fits)
    if len(best) > max_bytes:
        return None
    while fails - fits > 1:
        quality = (fits + fails) // 2
        data = _save(bare, codec, quality)
        if len(data) <= max_bytes:
            fits, best = quality, data
        else:
            fails = quality
    return best, open_image(best, name=f"{codec} file"), fits


def save_codec(image: Image.Image, codec: str, quality: int) -> bytes:
    """The file of one quality, made as `fit_codec` makes it.

    Raises:
        ValueError: an unknown codec, or an image of another mode or too long for the format.
    """
    check_codec(codec)
    longest = _LONGEST[codec]
    if max(image.size) > longest:
        raise ViqError(
            f"{codec} has no pictures of {image.width}x{image.height} px: its sides end at "
            f"{longest:,}; make the picture smaller"
        )
    return _save(_bare(image), codec, quality)


def _bare(image: Image.Image) -> Image.Image:
    """A copy without what would be written along: a profile, EXIF data, a comment."""
    if image.mode != "RGB":
        raise ViqError(f"image must be RGB, got mode {image.mode}: open it with viq.image.open")
    bare = image.copy()
    bare.info = {}
    return bare


def _save(image: Image.Image, codec: str, quality: int) -> bytes:
    if codec == "webp":
        return _written(image, "WEBP", quality=quality, method=4)
    if codec == "avif":
        return _written(image, "AVIF", quality=quality, speed=6, subsampling="4:2:0")
    jpeg = {"quality": quality, "subsampling": "4:2:0", "optimize": True}
    return min(
        (_written(image, "JPEG", progressive=choice, **jpeg) for choice in (False, True)), key=len
    )


def _written(image: Image.Image, form: str, **options: object) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, form, **options)
        return stream.getvalue()
