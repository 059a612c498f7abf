"""JPEG, WebP and AVIF as rows of the comparison.

Nothing here needs PyTorch, so that the memory of a codec is not that of a library it has no use
for.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from viq.core.errors import ViqError
from viq.eval.compare.row import Encoded, Prepared, split_rate
from viq.image.codecs import check_codec, fit_codec, lowest_quality, save_codec
from viq.image.open import open_image

QUALITIES = (5, 15, 30, 45, 60, 75, 90)  # of a sweep


class CodecRow:
    """Files of one codec.

    Args:
        codec: one of `viq.image.codecs.CODECS`; "@BPP" behind it: of at most so many bits a pixel.
        quality: of all files; None takes for each picture the highest whose file is small enough.
        prepare: gives the picture that others are measured on; default the picture as it is.

    Raises:
        ViqError: an unknown codec, or one that Pillow here lacks.
    """

    kind, licence, note = "codec", None, ""

    def __init__(
        self,
        codec: str,
        quality: int | None = None,
        prepare: Callable[[Image.Image], Prepared] | None = None,
    ) -> None:
        self.series, self._bpp = split_rate(codec)
        check_codec(self.series)
        self.name = codec if quality is None else f"{codec} q{quality}"
        self._quality = quality
        self._prepare = prepare

    def prepare(self, image: Image.Image) -> Prepared:
        return self._prepare(image) if self._prepare else Prepared(image, image)

    def setting(self, sample: Prepared, max_bytes: float | None) -> int:
        """As `Method.setting`; the lowest quality where even its file is too large.

        Raises:
            ViqError: neither a quality nor a size to keep is known.
        """
        if self._quality is not None:
            return self._quality
        if self._bpp is not None:
            max_bytes = self._bpp * sample.picture.width * sample.picture.height / 8
        if max_bytes is None:
            raise ViqError(
                f"{self.name}: no tokenizer has encoded this picture, so there are no bytes to keep"
            )
        fitted = fit_codec(sample.picture, self.series, int(max_bytes))
        if fitted is None and self._bpp is not None:
            raise ViqError(f"{self.name}: even the lowest quality takes more")
        return lowest_quality(self.series) if fitted is None else fitted[2]

    def encode(self, sample: Prepared, setting: int | None) -> Encoded:
        """As `Method.encode`."""
        quality = lowest_quality(self.series) if setting is None else setting
        data = save_codec(sample.picture, self.series, quality)
        return Encoded(data, 8 * len(data))

    def entropy_bits(self, encoded: Encoded) -> None:
        """None: a file of a codec is entropy coded as it is."""

    def decode(self, encoded: Encoded) -> Image.Image:
        return open_image(encoded.data, name=f"{self.series} file")
