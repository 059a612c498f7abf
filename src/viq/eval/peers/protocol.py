"""What an image tokenizer, ours or that of others, has to give to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from viq.image.open import ImageInput


class Peer(Protocol):
    """A frozen image tokenizer, float32.

    Attributes:
        name: as the user named it.
        licence: of its weights, as published; "unknown" where not stated.
        bits_per_pixel: plain, of what it makes of one of its pictures.
    """

    name: str
    licence: str
    bits_per_pixel: float

    def prepare(self, image: ImageInput) -> Image.Image:
        """The RGB picture that it sees (resized, cropped): what its reconstruction is compared
        with. Raises `ImageError`: it cannot be read."""
        ...

    def encode(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        """Integer codes of each image. Raises `ImageError`."""
        ...

    def decode(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        """Pictures of the size of `prepare`. Raises `CodesError`: codes that it does not make."""
        ...

    def features(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        """(places, channels) float32 of each image: what a language model would read of its codes
        (continuous ones for siglip2). Raises `ImageError`."""
        ...
