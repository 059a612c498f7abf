"""Features to latents of the Qwen-Image VAE: the reconstruction head of the official model.

T = patches of all images, P = patches of one, C = width, Z = latent channels (docs/model.md,
"Decoders").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.types import Grid
from viq.image.patches import lengths_of
from viq.models.layers.blocks import Block, Mlp


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Shape of the latent head."""

    heads: int = 16
    depth: int = 3
    channels: int = 16  # of the VAE's latents, at 1/8 of the image's resolution
    groups: int = 32  # of the group norm
    mlp_ratio: float = 4

    def __post_init__(self) -> None:
        untrusted.shape(self, heads=1024, channels=1024, groups=2**16)
        untrusted.whole_number(self.depth, "depth", 0, 512)
        untrusted.ratio(self, "mlp_ratio")


class LatentHead(nn.Module):
    """MLP, LayerNorm, attention blocks, GroupNorm, SiLU, 3x3 convolution, pixel shuffle by 2."""

    def __init__(self, width: int, config: LatentConfig) -> None:
        super().__init__()
        self.mlp = Mlp(width, width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, round(width * config.mlp_ratio)) for _ in range(config.depth)
        )
        self.group_norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.conv = nn.Conv2d(width, 4 * config.channels, 3, padding=1)

    def adapt(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Adapted tokens (T, C)."""
        x_TC, lengths = self.norm(self.mlp(features_TC)), lengths_of(grids_hw)
        for block in self.blocks:
            x_TC = block(x_TC, lengths)
        return x_TC

    def forward(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> list[Tensor]:
        """Raw latents (Z, 2*rows, 2*cols) of each image, without the VAE's mean and std."""
        parts = self.adapt(features_TC, grids_hw).split(lengths_of(grids_hw))
        return [self._latents(part, grid) for part, grid in zip(parts, grids_hw, strict=True)]

    def _latents(self, x_PC: Tensor, grid: Grid) -> Tensor:
        x_1Chw = x_PC.T.unflatten(1, grid)[None]
        return F.pixel_shuffle(self.conv(F.silu(self.group_norm(x_1Chw))), 2)[0]
