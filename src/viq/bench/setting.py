"""What the sections of a benchmark of a tokenizer are given."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from viq.models.tokenizer.tokenizer import VisualTokenizer

Work = TypeVar("Work")


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[Work]):
    """The tokenizer that is measured, on what, and how often."""

    tokenizer: VisualTokenizer
    model: str  # what a fresh process loads: a name or a folder
    work: Work
    repeats: int


def jpeg(image: np.ndarray) -> bytes:
    """A picture (H, W, 3), uint8, as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
