"""The best JPEG or WebP file of a given size: what our codes have to compare with.

A file is counted with its headers and tables, which no JPEG or WebP picture goes without; below a
few hundred bytes they leave no room, and the answer is None.
"""

from __future__ import annotations

import io

from PIL import Image

from viq.core.types import ViqError
from viq.image.open import open_image

CODECS = ("jpeg", "webp")

_LOWEST = {"jpeg": 1, "webp": 0}  # quality; the highest is 100
_LONGEST = {"jpeg": 65500, "webp": 16383}  # px a side, by the libraries that write them


def check_codec(codec: str) -> None:
    """Raise ValueError if `codec` is not in `CODECS`."""
    if codec not in CODECS:
        raise ViqError(f"unknown codec {codec!r}: use one of {', '.join(CODECS)}")


def fit_codec(
    image: Image.Image, codec: str, max_bytes: int
) -> tuple[bytes, Image.Image, int] | None:
    """The file of the highest quality (up to 100) that takes at most `max_bytes` bytes.

    JPEG: 4:2:0, optimized Huffman tables, baseline or progressive, whichever is smaller (both hold
    the same pixels). WebP: lossy, method 4. Metadata of `image` is left out. The search is binary:
    where a file happens to be smaller at a higher quality, a somewhat higher one may fit too.

    Args:
        image: RGB.

    Returns:
        The file, its decoded RGB picture and its quality; None if even the lowest quality takes
        more bytes, or a side is longer than the format allows.

    Raises:
        ValueError: an unknown codec, or an image of another mode.
    """
    check_codec(codec)
    if image.mode != "RGB":
        raise ViqError(f"image must be RGB, got mode {image.mode}: open it with viq.image.open")
    if max(image.size) > _LONGEST[codec]:
        return None
    bare = image.copy()
    bare.info = {}  # else a profile, EXIF data or a comment would be written along
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


def _save(image: Image.Image, codec: str, quality: int) -> bytes:
    if codec == "webp":
        return _written(image, "WEBP", quality=quality, method=4)
    jpeg = {"quality": quality, "subsampling": "4:2:0", "optimize": True}
    return min(
        (_written(image, "JPEG", progressive=choice, **jpeg) for choice in (False, True)), key=len
    )


def _written(image: Image.Image, form: str, **options: object) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, form, **options)
        return stream.getvalue()
