"""What a row of the comparison has to do: encode a picture and decode it again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from viq.core.errors import ViqError


@dataclass(frozen=True)
class Prepared:
    """A picture, and what a method sees of it.

    Attributes:
        image: RGB, as the comparison has it.
        picture: RGB, resized and cropped as the method does: what its reconstruction is compared
            with.
    """

    image: Image.Image
    picture: Image.Image


@dataclass(frozen=True)
class Encoded:
    """A picture as a method holds it.

    Attributes:
        data: what its `decode` takes.
        bits: that it takes, plain: of codes without entropy coding, of a file as it is.
    """

    data: Any
    bits: float


def split_rate(name: str) -> tuple[str, float | None]:
    """A name and the bits a pixel that stand behind an "@" in it, if any do.

    Raises:
        ViqError: bits a pixel that are not above 0.
    """
    before, at, behind = name.rpartition("@")
    try:
        bpp = float(behind)
    except ValueError:
        return name, None
    if not at:
        return name, None
    if not 0 < bpp < math.inf:
        raise ViqError(f"{name}: give bits a pixel above 0 behind the @")
    return before, bpp


class Method(Protocol):
    """A codec or a tokenizer that is compared.

    Attributes:
        name: of its row.
        kind: "codec" or "tokenizer".
        series: what its points share in a plot: the codec, or the name.
        licence: of its weights; None for a codec, and for a tokenizer of ours.
        note: what else a reader has to know of the row; "" for nothing.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def series(self) -> str: ...
    @property
    def licence(self) -> str | None: ...
    @property
    def note(self) -> str: ...

    def prepare(self, image: Image.Image) -> Prepared:
        """What it sees of an RGB image."""
        ...

    def setting(self, sample: Prepared, max_bytes: float | None) -> int | None:
        """The quality to encode at; None for a tokenizer, which has none."""
        ...

    def encode(self, sample: Prepared, setting: int | None) -> Encoded:
        """Raises `ViqError`: it cannot be encoded."""
        ...

    def entropy_bits(self, encoded: Encoded) -> float | None:
        """Bits after lossless entropy coding; None where a method has none of its own."""
        ...

    def decode(self, encoded: Encoded) -> Image.Image:
        """RGB, of the size of the prepared picture."""
        ...
