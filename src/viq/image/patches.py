"""Cut images of any size into patches and pack them into one sequence, and back.

T = patches of all images, D = values per patch (3 * patch_size**2), in the order channel, row,
column: the order of a flattened convolution kernel. Patches are in raster order, image after
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from viq.core.types import PATCH_SIZE, Grid, Size, grid_of

PAD_MODES = ("constant", "replicate")


@dataclass(frozen=True, kw_only=True)
class PatchBatch:
    """Images of any sizes as one sequence of patches.

    Attributes:
        patches_TD: float, values in [-1, 1].
        grids_hw: (rows, columns) of each image; their areas add up to T.
    """

    patches_TD: Tensor
    grids_hw: tuple[Grid, ...]

    def __post_init__(self) -> None:
        expected = sum(lengths_of(self.grids_hw))
        if expected != self.patches_TD.shape[0]:  # len() would fix the size of an exported graph
            raise ValueError(f"grids_hw describes {expected} patches, got {len(self.patches_TD)}")


def lengths_of(grids_hw: Sequence[Grid]) -> list[int]:
    """Patches of each image."""
    return [rows * cols for rows, cols in grids_hw]


def normalize(image: np.ndarray | Tensor) -> Tensor:
    """uint8 (..., H, W, 3) in 0..255 to float32 (..., 3, H, W) in [-1, 1]: (x/255 - 0.5) / 0.5."""
    pixels = torch.as_tensor(np.array(image) if isinstance(image, np.ndarray) else image)
    return (pixels.float() / 255).sub_(0.5).div_(0.5).movedim(-1, -3)


def denormalize(pixels: Tensor) -> Tensor:
    """Float (..., 3, H, W) in [-1, 1] to uint8 (..., H, W, 3), clipped and rounded."""
    scaled = (pixels.float().clamp(-1, 1) * 0.5 + 0.5) * 255
    return scaled.round().to(torch.uint8).movedim(-3, -1)


def exact_pixels(patches: Tensor) -> Tensor:
    """Values of 8-bit pixels, rounded to bfloat16 or float16 on their way, as `normalize` gives
    them in float32; padding, which is 0, stays.

    Levels are 1/127.5 apart and bfloat16 errs by at most 1/512 within [-1, 1], so the nearest level
    is the right one. 0 lies halfway between two and is the value of no pixel.
    """
    values = patches.float()
    levels = ((values + 1) * 127.5).round()
    return ((levels / 255 - 0.5) / 0.5).masked_fill(values == 0, 0)


def patchify(pixels: Tensor, patch_size: int = PATCH_SIZE, pad_mode: str = PAD_MODES[0]) -> Tensor:
    """Pixels (..., 3, H, W) in [-1, 1] to patches (..., rows*cols, D).

    Right and bottom are padded to whole patches (docs/model.md).

    Args:
        pad_mode: as in `torch.nn.functional.pad`: "constant" for zeros, which is mid-grey, or
            "replicate" for the last pixels again.
    """
    *lead, channels, height, width = pixels.shape
    rows, cols = grid_of((height, width), patch_size)
    missing = (0, cols * patch_size - width, 0, rows * patch_size - height)
    pixels = F.pad(pixels, missing, mode=pad_mode) if any(missing) else pixels
    pixels = pixels.reshape(*lead, channels, rows, patch_size, cols, patch_size)
    pixels = pixels.movedim((-4, -2), (-5, -4))  # (..., rows, cols, channels, patch, patch)
    return pixels.reshape(*lead, rows * cols, channels * patch_size**2)


def unpatchify(patches: Tensor, size: Size, patch_size: int = PATCH_SIZE) -> Tensor:
    """Patches (..., rows*cols, D) to pixels (..., 3, H, W); padding beyond `size` is cut off."""
    rows, cols = grid_of(size, patch_size)
    lead = patches.shape[:-2]
    pixels = patches.reshape(*lead, rows, cols, 3, patch_size, patch_size)
    pixels = pixels.movedim((-5, -4), (-4, -2))
    pixels = pixels.reshape(*lead, 3, rows * patch_size, cols * patch_size)
    return pixels[..., : size[0], : size[1]]


def pack(images: Sequence[Tensor], patch_size: int = PATCH_SIZE) -> PatchBatch:
    """Pack pixels (3, H, W) of any sizes, values in [-1, 1], into one sequence."""
    return PatchBatch(
        patches_TD=torch.cat([patchify(image, patch_size) for image in images]),
        grids_hw=tuple(grid_of((i.shape[-2], i.shape[-1]), patch_size) for i in images),
    )
