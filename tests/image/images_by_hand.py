"""Images of a few pixels, and what the opener makes of them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from viq.image.open import ImageError, open_image


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def rgb(source, **options) -> list:
    """Pixels as rows of columns of [r, g, b]."""
    image = open_image(source, **options)
    assert image.mode == "RGB" and image.info == {}
    return np.asarray(image).tolist()


def grey(source) -> list:
    """Rows of values, after checking that all three channels agree."""
    pixels = np.asarray(open_image(source))
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0].tolist()


def refusal(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and ": " in message
    return message


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth=8, colour=2) -> bytes:
    """A PNG by hand, with a header that may lie."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        data += struct.pack(">I", len(body)) + kind + body + crc
    return data


UPRIGHT = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
