"""A picture, its codes, and what they keep of it: what the picture view shows."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from viq.core.codes import MAGIC, Codes
from viq.core.errors import ViqError
from viq.core.untrusted import printable
from viq.image.codecs import fit_codec
from viq.image.open import limit_pixels, open_image
from viq.metrics.images import fidelity
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.gallery_common import encoded
from viq.web.config import Limits
from viq.web.work import Work

CODECS = {"jpeg": "JPEG", "webp": "WebP"}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One picture with its codes.

    Attributes:
        name: as it came; not to be trusted.
        visitor: who brought it.
        files: of image/png, or of the codec's own kind, by name: original (absent where only codes
            came), viq, jpeg, webp.
        rows: of the table: name, bytes, bpp, psnr, ssim, note.
        facts: what is said of the picture, (name, value) pairs.
        bits: of each patch under the entropy model (rows, cols), or None.
        notes: what a visitor should know, as that it was made smaller.
    """

    id: str
    name: str
    visitor: str
    codes: Codes
    files: dict[str, bytes]
    rows: list[dict[str, Any]]
    facts: list[tuple[str, str]]
    bits: np.ndarray | None
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """Of memory, about."""
        return sum(map(len, self.files.values())) + 16 * self.codes.ids.size

    @property
    def others(self) -> list[tuple[str, str]]:
        """What can lie under the slider, by file and title."""
        titles = {"viq": "ViQ", **CODECS}
        return [(name, title) for name, title in titles.items() if name in self.files]


class Shelf:
    """Pictures in memory, up to a number of bytes; those that were asked for last stay."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, Seen] = OrderedDict()
        self._lock = Lock()

    def add(self, seen: Seen) -> None:
        with self._lock:
            self._kept[seen.id] = seen
            total = sum(other.nbytes for other in self._kept.values())
            while total > self._most and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].nbytes

    def get(self, name: str) -> Seen:
        """The picture of this id. Raises `KeyError`."""
        with self._lock:
            self._kept.move_to_end(name)
            return self._kept[name]

    def of(self, visitor: str) -> list[Seen]:
        """Those of one visitor, the newest first."""
        with self._lock:
            return [seen for seen in reversed(self._kept.values()) if seen.visitor == visitor]


def examine(
    tokenizer: VisualTokenizer, data: bytes, name: str, visitor: str, limits: Limits, work: Work
) -> Seen:
    """Encode a picture, or read a .viq file, decode it, and compare.

    Raises:
        ViqError: cannot be read, is too large, or was made by another tokenizer.
    """
    name = printable(name, 120) or "picture"
    if data.startswith(MAGIC):
        codes = Codes.from_bytes(data, max_pixels=limits.open_pixels)
        tokenizer.require(codes.fingerprint)
        return show_codes(tokenizer, codes, name, visitor, work)
    opened = open_image(data, name=name, decode_limit=limits.open_pixels)
    original, notes = limit_pixels(opened, limits.max_pixels), []
    if original.size != opened.size:
        notes.append(
            f"Made smaller, from {opened.width} × {opened.height} px: this server encodes up to "
            f"{limits.max_pixels / 1e6:g} megapixels."
        )
    work.tell(stage="encoding")
    codes = tokenizer.encode(original)[0]
    work.check()
    work.tell(stage="decoding")
    decoded, size = tokenizer.decode(codes)[0], len(codes.to_bytes())
    files = {"original": _png(original), "viq": _png(decoded)}
    rows = [_row("ViQ", size, original, decoded)]
    for codec, title in CODECS.items():
        work.check()
        work.tell(stage=f"fitting a {title} of as many bytes")
        fitted = fit_codec(original, codec, size)
        if fitted is None:
            rows.append({"name": title, "note": f"has no file of {size:,} bytes or less"})
            continue
        files[codec], picture, quality = fitted
        rows.append(_row(title, len(files[codec]), original, picture, f"quality {quality}"))
    return Seen(
        id=secrets.token_urlsafe(16), name=name, visitor=visitor, codes=codes, files=files,
        rows=rows, facts=_facts(codes, size), notes=notes, **_entropy(tokenizer, codes),
    )  # fmt: skip


def show_codes(
    tokenizer: VisualTokenizer, codes: Codes, name: str, visitor: str, work: Work
) -> Seen:
    """What codes decode to, where the original is not known."""
    work.tell(stage="decoding")
    files = {"viq": _png(tokenizer.decode(codes)[0])}
    size = len(codes.to_bytes())
    return Seen(
        id=secrets.token_urlsafe(16), name=name, visitor=visitor, codes=codes, files=files,
        rows=[], facts=_facts(codes, size), **_entropy(tokenizer, codes),
        notes=["Codes alone: there is no original to compare with."],
    )  # fmt: skip


def _entropy(tokenizer: VisualTokenizer, codes: Codes) -> dict[str, Any]:
    """Bits of each patch, where there is a model that tells them."""
    try:
        return {"bits": tokenizer.entropy.patch_bits(codes) if codes.counts is None else None}
    except (ViqError, NotImplementedError):
        return {"bits": None}


def _row(
    title: str, size: int, original: Image.Image, picture: Image.Image, note: str = ""
) -> dict[str, Any]:
    figures = fidelity(np.asarray(original), np.asarray(picture))
    bpp = 8 * size / (original.width * original.height)
    return {"name": title, "bytes": size, "bpp": bpp, "note": note, **figures}


def _facts(codes: Codes, size: int) -> list[tuple[str, str]]:
    (height, width), (rows, cols) = codes.size, codes.grid
    raw = 3 * height * width
    return [
        ("Size", f"{width:,} × {height:,} px"),
        ("Patches", f"{rows:,} × {cols:,} of 16 × 16 px"),
        ("Codes", f"{codes.total:,}"),
        (".viq file", f"{size:,} bytes, 1/{raw / size:.0f} of raw RGB"),
    ]


def _png(image: Image.Image) -> bytes:
    return encoded(image, "PNG", compress_level=3)
