"""Native-resolution vision transformer over a packed sequence of images (docs/model.md, "Encoder").

T = patches of all images, C = width, D = values per patch, G = side of the position grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_
from torch.utils.checkpoint import checkpoint

from viq.core import untrusted
from viq.core.types import PATCH_SIZE, Grid
from viq.image.patches import PatchBatch, lengths_of
from viq.models.layers.blocks import Block
from viq.models.tokenizer.semantic import SemanticConfig


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of the encoder."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch_size: int = PATCH_SIZE  # px
    position_grid: int = 128  # side of the stored position embedding, resized for each image
    semantic: SemanticConfig | None = None  # of a transform code, which has no transformer

    def __post_init__(self) -> None:
        untrusted.shape(self, width=2**16, heads=1024, mlp_width=2**20, patch_size=256,
                        position_grid=1024)  # fmt: skip
        untrusted.whole_number(self.depth, "depth", 0, 512)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split into {self.heads} heads")


class Encoder(nn.Module):
    """Patches in, one token a patch out. No class token, no final norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # in training: less memory, a third more time
        c, side = config.width, config.position_grid
        # A 16x16 convolution with stride 16, written as the matrix product it is.
        self.patch_embed = nn.Linear(3 * config.patch_size**2, c)
        self.position = nn.Parameter(trunc_normal_(torch.empty(side, side, c), std=0.02))
        self.blocks = nn.ModuleList(
            Block(c, config.heads, config.mlp_width) for _ in range(config.depth)
        )

    def embed(self, batch: PatchBatch) -> Tensor:
        """Patch plus position embedding, (T, C)."""
        tokens_TC = self.patch_embed(batch.patches_TD.to(self.patch_embed.weight.dtype))
        if len(batch.grids_hw) == 1:  # also a grid of symbols, which no dictionary can hold
            return tokens_TC + self._positions(batch.grids_hw[0])
        by_grid = {grid: self._positions(grid) for grid in set(batch.grids_hw)}
        parts = tokens_TC.split(lengths_of(batch.grids_hw))
        return torch.cat([t + by_grid[g] for t, g in zip(parts, batch.grids_hw, strict=True)])

    def forward(self, batch: PatchBatch) -> Tensor:
        """Tokens (T, C) after the last block."""
        lengths = lengths_of(batch.grids_hw)
        tokens_TC = self.embed(batch)
        for block in self.blocks:
            if self.checkpointing and self.training:
                tokens_TC = checkpoint(block, tokens_TC, lengths, use_reentrant=False)
            else:
                tokens_TC = block(tokens_TC, lengths)
        return tokens_TC

    def _positions(self, grid: Grid) -> Tensor:
        """The stored grid resized to one image, (rows*cols, C): bilinear, no antialias."""
        stored_1CGG = self.position.permute(2, 0, 1)[None]
        resized = F.interpolate(stored_1CGG, size=grid, mode="bilinear", align_corners=False)
        return resized[0].flatten(1).T
