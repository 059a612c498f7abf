"""Pixels of any mode that Pillow knows, as 8 bits of red, green and blue."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image, packing: object) -> Image.Image:
    """Convert a loaded image of any mode to a new RGB image."""
    key = image.info.get("transparency")  # a colour, or one alpha for each palette entry
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_bytes(image, key)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Pillow brings PNG pixels to 8 bits, but leaves their transparent colour in the file's depth.
    if isinstance(key, int) and packing in ("L;2", "L;4"):
        key *= 85 if packing == "L;2" else 17
    elif isinstance(key, tuple) and packing == "RGB;16B":
        key = tuple(value >> 8 for value in key)
    if key != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = key
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def _to_bytes(image: Image.Image, key: object) -> np.ndarray:
    """Scale modes I;16*, I and F to (H, W) uint8 by the rules of `viq.image.open.open_image`."""
    values = np.asarray(image).reshape(-1)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        depths, least, most = (65535,), 0.0, 65535.0
    else:
        depths = (1, 255) if image.mode == "F" else (255, 65535)
        finite = values[np.isfinite(values)]
        least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    for depth in depths:
        if least >= 0 and most <= depth:
            least, most = 0.0, float(depth)
            break
    scale = 255 / (most - least) if most > least else 0.0
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, values.size, 2**20):  # in pieces, as float64 takes 8 bytes a pixel
        piece = slice(start, start + 2**20)
        levels = (values[piece].astype(np.float64).clip(least, most) - least) * scale
        grey[piece] = np.rint(np.nan_to_num(levels))
    if isinstance(key, int):
        grey[values == key] = 255  # transparent, so white
    return grey.reshape(image.height, image.width)
