"""Pictures as the tokenizers of others take and give them: squares of one size.

S = side of the square in px.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.types import MAX_PIXELS
from viq.core.untrusted import shape
from viq.image.open import ImageError, ImageInput, open_image

_MOST_PX = 8192  # of a side that a config may ask for

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Preprocessing: the shorter side to one length, the centre of it cut out, channels scaled.

    Attributes:
        shorter: px that the shorter side is resized to.
        side: S, of the square that is cut out.
        resample: of the resizing.
        offset: where the crop begins, half of what is left over: "floor" of it, or "even", which
            rounds halves to even numbers.
        mean, std: of the channels: values are (x - mean) / std of x in 0..1.
        written: how values of 0..255 become whole numbers: "truncated" or "rounded".
    """

    shorter: int
    side: int
    resample: Image.Resampling = Image.Resampling.BILINEAR
    offset: Literal["floor", "even"] = "even"
    mean: Colour = (0.5, 0.5, 0.5)
    std: Colour = (0.5, 0.5, 0.5)
    written: Literal["truncated", "rounded"] = "truncated"

    def __post_init__(self) -> None:
        shape(self, shorter=_MOST_PX, side=_MOST_PX)
        if self.side > self.shorter:
            raise ValueError(f"a crop of {self.side} px of pictures resized to {self.shorter} px")
        if not all(0 < value < 1e3 for value in self.std) or not all(
            abs(value) < 1e3 for value in self.mean
        ):
            raise ValueError(f"mean {self.mean} and std {self.std} are none of channels in 0..1")

    def prepare(self, source: ImageInput) -> Image.Image:
        """The RGB picture (S, S) that a network sees.

        Raises:
            ImageError: it cannot be read, or is so long that it would grow beyond all bounds.
        """
        image = open_image(source)
        width, height = image.size
        short, long = min(image.size), max(image.size)
        longer = int(self.shorter * long / short)
        if longer * self.shorter > MAX_PIXELS:
            raise ImageError(
                f"a picture of {width}x{height} px would have {longer}x{self.shorter} px when its "
                "shorter side is resized; crop it first"
            )
        size = (self.shorter, longer) if width <= height else (longer, self.shorter)
        image = image.resize(size, self.resample)
        left, top = (self._offset(length) for length in image.size)
        return image.crop((left, top, left + self.side, top + self.side))

    def to_values(self, image: Image.Image) -> Tensor:
        """Values (1, 3, S, S) float32 of a prepared picture."""
        pixels_3SS = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return ((pixels_3SS - _column(self.mean)) / _column(self.std))[None].contiguous()

    def to_image(self, values_3SS: Tensor) -> Image.Image:
        """The picture of values (3, S, S), cut to what 8 bits can show."""
        values_3SS = values_3SS.float().cpu()
        pixels = (values_3SS * _column(self.std) + _column(self.mean)).clamp(0, 1) * 255
        if self.written == "rounded":
            pixels = pixels.round()
        return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())

    def _offset(self, length: int) -> int:
        left_over = length - self.side
        return left_over // 2 if self.offset == "floor" else round(left_over / 2)


def _column(colour: Colour) -> Tensor:
    return torch.tensor(colour, dtype=torch.float32).view(3, 1, 1)
