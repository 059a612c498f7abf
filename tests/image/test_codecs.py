"""JPEG, WebP and AVIF of at most so many bytes."""

import pytest
from PIL import Image

from viq.core.types import ViqError
from viq.data.synthetic.draw import draw
from viq.image.codecs import fit_codec, lowest_quality, save_codec


def test_avif_files_are_at_most_as_large_as_asked() -> None:
    photo = draw("gradient", (96, 128), 3).image
    for limit in (600, 2000, 8000):
        fitted = fit_codec(photo, "avif", limit)
        assert fitted is not None
        data, decoded, quality = fitted
        assert len(data) <= limit and decoded.size == photo.size
        assert save_codec(photo, "avif", quality) == data
    assert lowest_quality("avif") == 0
    with pytest.raises(ViqError, match="webp has no pictures of 16384x1 px"):
        save_codec(Image.new("RGB", (16384, 1)), "webp", 50)
