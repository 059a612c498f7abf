"""Fixed two-dimensional rotary positions in "golden gate" directions, normalised by aspect.

Every head and frequency has its own direction in the plane; directions advance by the golden
angle, so they never line up. Positions span the same range whatever the number of patches, so
a picture keeps its angles when its resolution changes (docs/model.md, "Rotary positions").

P = patches of one image, T = of all, S = slots (heads), c = values of a head, F = c/2 frequencies.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from viq.core.types import Grid

_MIN_FREQUENCY, _MAX_FREQUENCY = 0.2, 20.0
_ZERO_SHARE = 0.25  # of the frequencies are zero: channels that carry content only
_DIRECTION_STEP = math.pi * (math.sqrt(5) - 1) / 2


def frequencies(slots: int, head_dim: int) -> Tensor:
    """Frequency vectors (S, F, 2), x then y, fp32: magnitude times direction."""
    count = head_dim // 2
    zeros = round(count * _ZERO_SHARE)
    ramp = torch.linspace(0, 1, count - zeros)
    magnitudes = _MIN_FREQUENCY * (_MAX_FREQUENCY / _MIN_FREQUENCY) ** ramp
    magnitudes = torch.cat([torch.zeros(zeros), magnitudes])
    # The official code forms index times step in fp32; double differs by up to 1e-3 at c = 256.
    angles = (torch.arange(slots * count) * _DIRECTION_STEP).view(slots, count)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return magnitudes[:, None] * directions


def positions_xy(grid: Grid) -> Tensor:
    """Coordinates (P, 2), x then y, raster order; the range keeps the aspect and the area 4."""
    rows, cols = grid
    x_limit, y_limit = math.sqrt(cols / rows), math.sqrt(rows / cols)
    x = torch.linspace(-x_limit, x_limit, cols)
    y = torch.linspace(-y_limit, y_limit, rows)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)


def open_positions_xy(grid: Grid) -> Tensor:
    """The same, up to rounding, by operations on tensors alone: a graph of them holds for any grid,
    while `math.sqrt` would fix it to one."""
    rows, cols = (torch.scalar_tensor(side, dtype=torch.float64) for side in grid)
    x, y = (
        (torch.arange(side, dtype=torch.float64) * (2 / (count - 1).clamp_min(1)) - 1)
        * (count / other).sqrt()
        for side, count, other in ((grid[1], cols, rows), (grid[0], rows, cols))
    )
    shape = (grid[0], grid[1])
    xy = torch.stack([x[None].expand(shape), y[:, None].expand(shape)], dim=-1)
    return xy.flatten(0, 1).float()


def angles(grid: Grid, slots: int, head_dim: int) -> Tensor:
    """Rotation angles (P, S, F), fp32, on the CPU, so that every device starts from the same."""
    if torch.compiler.is_exporting():  # sides are symbols, which no cache can hold
        return _at(open_positions_xy(grid), slots, head_dim)
    return _angles(grid, slots, head_dim)


@functools.lru_cache(maxsize=64)
def _angles(grid: Grid, slots: int, head_dim: int) -> Tensor:
    return _at(positions_xy(grid), slots, head_dim)


def _at(xy_P2: Tensor, slots: int, head_dim: int) -> Tensor:
    freqs_SF2 = frequencies(slots, head_dim)
    x, y = xy_P2[:, 0, None, None], xy_P2[:, 1, None, None]
    return freqs_SF2[..., 0] * x + freqs_SF2[..., 1] * y


def rotate(x_TSc: Tensor, angles_TSF: Tensor) -> Tensor:
    """Rotate the first half of the channels against the second half. Keeps the dtype of x."""
    cos, sin = angles_TSF.cos(), angles_TSF.sin()
    first, second = x_TSc.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.to(x_TSc.dtype)
