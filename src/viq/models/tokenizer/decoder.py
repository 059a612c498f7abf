"""Features to pixels: our own light decoder, convolutional over the grid of patches.

Depthwise convolutions see a fixed neighbourhood, so one decoder holds at every image size, takes
time and memory linear in pixels, and smooths the borders between tiles that were encoded apart.

n = images, C = width, T = patches of all images, D = values per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.types import Grid
from viq.models.layers.blocks import Mlp


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of the pixel decoder."""

    width: int
    depth: int
    kernel_size: int = 5  # patches, odd
    mlp_ratio: float = 4
    refine_depth: int = 0  # residual pairs of convolutions on pixels, of a transform code alone

    def __post_init__(self) -> None:
        untrusted.shape(self, width=2**16, kernel_size=63)
        untrusted.whole_number(self.depth, "depth", 0, 512)
        untrusted.whole_number(self.refine_depth, "refine_depth", 0, 64)
        untrusted.ratio(self, "mlp_ratio")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} must be odd")


class ConvBlock(nn.Module):
    """x += MLP(LN(depthwise convolution of x)), on images (n, rows, cols, C)."""

    def __init__(self, width: int, kernel_size: int, mlp_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(self.norm(mixed))


class PixelDecoder(nn.Module):
    """Features (T, C) to patches (T, D) of pixels, about [-1, 1]."""

    def __init__(self, features: int, config: DecoderConfig, patch_size: int) -> None:
        super().__init__()
        self.config = config
        self.project_in = nn.Linear(features, config.width)
        self.blocks = nn.ModuleList(
            ConvBlock(config.width, config.kernel_size, round(config.width * config.mlp_ratio))
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.project_out = nn.Linear(config.width, 3 * patch_size**2)

    @property
    def receptive_field(self) -> int:
        """How many patches away, at most, a patch still changes an output patch."""
        return self.config.depth * (self.config.kernel_size // 2)

    def forward(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        return self.paint(self.hidden(features_TC, grids_hw), features_TC, grids_hw)

    def paint(self, hidden_TC: Tensor, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """The last step: hidden values (T, width) to pixels (T, D). It needs no features; the
        interface is that of the decoder of a transform code."""
        return self.project_out(self.norm(hidden_TC))

    def hidden(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """All but the last step: (T, width), where training may align features."""
        x_TC, outputs, start = self.project_in(features_TC), [], 0
        for (rows, cols), run in groupby(grids_hw):
            count = len(list(run))
            stop = start + count * rows * cols
            x = x_TC[start:stop].reshape(count, rows, cols, -1)
            for block in self.blocks:
                x = block(x)
            outputs.append(x.flatten(0, 2))
            start = stop
        return torch.cat(outputs)
