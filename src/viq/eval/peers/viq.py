"""ViQ itself, as a peer: pictures at their own sizes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from viq.core.codes import Codes
from viq.core.files import bundled
from viq.core.types import CODES_PER_PATCH, CodesError
from viq.eval.peers.protocol import Peer
from viq.image.open import ImageInput, open_image
from viq.models.tokenizer.loading import load as load_tokenizer
from viq.models.tokenizer.tokenizer import VisualTokenizer


class ViqPeer(Peer):
    """A tokenizer of ours.

    Arrays of codes do not tell sizes between whole patches, so a picture is cut to whole ones.
    """

    def __init__(self, tokenizer: VisualTokenizer, *, name: str, licence: str) -> None:
        self.tokenizer, self.name, self.licence = tokenizer, name, licence
        self._patch = tokenizer.config.encoder.patch_size
        bits = (tokenizer.codebook_size - 1).bit_length()
        self.bits_per_pixel = CODES_PER_PATCH * bits / self._patch**2

    def prepare(self, image: ImageInput) -> Image.Image:
        """The centre of a picture in whole patches; one with a side below a patch is enlarged.

        Raises:
            ImageError: it cannot be read.
        """
        opened, patch = open_image(image), self._patch
        width, height = (max(patch, side) for side in opened.size)
        if (width, height) != opened.size:
            opened = opened.resize((width, height), Image.Resampling.BICUBIC)
        left, top = width % patch // 2, height % patch // 2
        return opened.crop((left, top, left + width - width % patch, top + height - height % patch))

    def encode(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        """uint16 (rows, cols, 4) of each image. Raises `ImageError`."""
        return [codes.ids for codes in self._encode(images)]

    def decode(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        """Pictures of the size of `prepare`. Raises `CodesError`: no codes of this tokenizer."""
        return [self.tokenizer.decode(self._codes(ids))[0] for ids in codes]

    def features(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        """(rows * cols, C) float32 of the codes of each image. Raises `ImageError`."""
        return [
            self.tokenizer.embed(codes)[0].float().cpu().numpy() for codes in self._encode(images)
        ]

    def _encode(self, images: Sequence[ImageInput]) -> list[Codes]:
        return [self.tokenizer.encode(self.prepare(image))[0] for image in images]

    def _codes(self, ids: np.ndarray) -> Codes:
        ids = np.asarray(ids)
        whole = ids.dtype.kind in "iu" and ids.ndim == 3
        if not whole or not ids.size or ids.min() < 0 or ids.max() >= self.tokenizer.codebook_size:
            raise CodesError(
                f"{self.name}: codes of a picture are whole numbers (rows, cols, "
                f"{CODES_PER_PATCH}) below {self.tokenizer.codebook_size}, got {ids.dtype} of "
                f"shape {ids.shape}: give what encode gave"
            )
        size = ids.shape[0] * self._patch, ids.shape[1] * self._patch
        return Codes(ids.astype(np.uint16), size)


def load(path: str | os.PathLike[str]) -> ViqPeer:
    """A tokenizer by bundled name, folder, or Hugging Face hub id.

    Raises:
        CheckpointError: nothing usable under that name.
    """
    # Of what others trained with this code, only they can tell.
    licence = "Apache-2.0" if bundled(path) is not None else "unknown"
    return ViqPeer(load_tokenizer(path), name=os.fspath(path), licence=licence)
