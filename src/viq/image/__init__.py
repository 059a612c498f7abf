"""Pictures: open any safely, cut into patches, and JPEG, WebP and AVIF to compare with."""

from viq.image.open import (
    DECODE_LIMIT,
    IMAGE_SUFFIXES,
    ImageError,
    ImageInput,
    limit_pixels,
    list_images,
    open_image,
)

__all__ = [
    "DECODE_LIMIT",
    "IMAGE_SUFFIXES",
    "ImageError",
    "ImageInput",
    "limit_pixels",
    "list_images",
    "open_image",
]
