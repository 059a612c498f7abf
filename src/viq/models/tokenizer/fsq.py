"""Finite scalar quantization: each dimension of a vector is rounded to one of a few levels.

The implicit codebook is the product of the levels; there is nothing to learn, no loss and no
state. Levels are Python integers, never buffers, so that models built on the meta device keep
them. Formulas follow the official implementation (docs/model.md, "FSQ").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from viq.core.levels import check_levels, codebook_size

_EPS = 1e-3  # widens the tanh a little, so that the outermost levels are reached at finite z


class FSQ:
    """Bound, round and index vectors of len(levels) dimensions. Computes in fp32 (or fp64)."""

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = check_levels(levels)
        self.codebook_size = codebook_size(self.levels)
        self.basis = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        self.half = [(level - 1) * (1 + _EPS) / 2 for level in self.levels]
        self.offset = [0.5 if level % 2 == 0 else 0.0 for level in self.levels]
        self.shift = [math.atanh(o / h) for o, h in zip(self.offset, self.half, strict=True)]
        self.half_width = [level // 2 for level in self.levels]

    def bound(self, z: Tensor) -> Tensor:
        """Squash z (..., d) so that rounding gives exactly L different integers a dimension."""
        z = z if z.dtype == torch.float64 else z.float()
        half = z.new_tensor(self.half)
        return (z + z.new_tensor(self.shift)).tanh() * half - z.new_tensor(self.offset)

    def unrounded(self, z: Tensor) -> Tensor:
        """What `quantize` rounds, in its units: (..., d) in about [-1, 1]."""
        bounded = self.bound(z)
        return bounded / bounded.new_tensor(self.half_width)

    def quantize(self, z: Tensor) -> Tensor:
        """Codes (..., d) in about [-1, 1]; the gradient passes straight through the rounding."""
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / rounded.new_tensor(self.half_width)

    def level_indices(self, z: Tensor) -> Tensor:
        """Level 0..L-1 of every dimension of z (..., d), int64."""
        rounded = self.bound(z).round().long()
        return rounded + torch.tensor(self.half_width, device=z.device)

    def indices(self, z: Tensor) -> Tensor:
        """Codebook index (...) of z (..., d), int64; the first dimension is least significant."""
        return (self.level_indices(z) * torch.tensor(self.basis, device=z.device)).sum(-1)

    def levels_of(self, indices: Tensor) -> Tensor:
        """Level 0..L-1 of every dimension (..., d) of codebook indices (...), int64."""
        basis = torch.tensor(self.basis, device=indices.device)
        levels = torch.tensor(self.levels, device=indices.device)
        return indices.long().unsqueeze(-1) // basis % levels

    def decode(self, indices: Tensor) -> Tensor:
        """Codes (..., d) fp32 of codebook indices (...): what `quantize` gave."""
        half_width = torch.tensor(self.half_width, device=indices.device)
        return (self.levels_of(indices) - half_width).float() / half_width.float()

    def margin(self, z: Tensor) -> Tensor:
        """Distance (..., d) of the bounded value to the nearest rounding boundary, 0..0.5."""
        bounded = self.bound(z)
        return 0.5 - (bounded - bounded.round()).abs()
