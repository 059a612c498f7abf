"""Where each patch of a picture lies, as numbers that a linear map can read."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from viq.core.types import Grid

_WAVES = 4  # a side is told apart down to an eighth by waves, beyond by the plain number
PLACE_FEATURES = 4 * _WAVES + 4


@functools.lru_cache(maxsize=1024)
@torch.inference_mode(False)  # what is kept may be trained on later
def place_features(grid: Grid) -> Tensor:
    """Place of each cell of a grid in raster order, (rows * cols, `PLACE_FEATURES`), fp32.

    It is kept, so not to be written to.

    For rows, then for columns: sines and cosines of the middle of a cell as a share of the side,
    with half a period, one, two and four on it, then the cell's number and the side, in sixteenths.
    """
    parts = []
    for axis, side in enumerate(grid):
        at = torch.arange(side)
        share = ((at + 0.5) / side)[:, None] * math.pi * 2.0 ** torch.arange(_WAVES)
        plain = torch.stack([at / 16, torch.full((side,), side / 16)], 1)
        line = torch.cat([share.sin(), share.cos(), plain], 1)
        shape = (side, 1) if axis == 0 else (1, side)
        parts.append(line.view(*shape, -1).expand(*grid, -1))
    return torch.cat(parts, -1).flatten(0, 1)
