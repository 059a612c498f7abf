"""Features of a transform code to pixels: the inverse of the code, and a network that learns what
the inverse leaves.

The network begins at zero, so an untrained decoder is the inverse itself. Its first part sees
features of neighbouring patches and adds to their pixels before the filter across their borders is
undone, so it cannot bring the borders back; its second part sees pixels, four by four in one place.

T = patches of all images, C = width of a feature, D = values of a patch, H, W = height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.types import PATCH_SIZE, Grid
from viq.image.patches import lengths_of, patchify
from viq.models.layers.unregistered import Unregistered
from viq.models.tokenizer.decoder import ConvBlock, DecoderConfig
from viq.models.tokenizer.transform_quantizer import TransformQuantizer

_FOLD = 4  # px a side that the second part sees in one place


class TransformDecoder(nn.Module):
    """Features (T, C) to patches (T, D) of pixels, about [-1, 1]."""

    def __init__(self, config: DecoderConfig, quantizer: TransformQuantizer) -> None:
        super().__init__()
        self.config = config
        self._quantizer = Unregistered(quantizer)
        self.project_in = nn.Linear(quantizer.detail_width, config.width)
        self.blocks = nn.ModuleList(
            ConvBlock(config.width, config.kernel_size, round(config.width * config.mlp_ratio))
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.project_out = nn.Linear(config.width, 3 * PATCH_SIZE**2)
        self.refine = nn.ModuleList(_Refine() for _ in range(config.refine_depth))
        for module in self.modules():  # branches that begin at zero
            if isinstance(module, ConvBlock):
                nn.init.zeros_(module.mlp.fc2.weight)
                nn.init.zeros_(module.mlp.fc2.bias)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    @property
    def receptive_field(self) -> int:
        """How many patches away, at most, a patch still changes an output patch."""
        pixels = 2 * _FOLD * self.config.refine_depth + PATCH_SIZE // 2  # and the filter at borders
        return self.config.depth * (self.config.kernel_size // 2) + -(-pixels // PATCH_SIZE)

    def _code(self) -> TransformQuantizer:
        assert self._quantizer.module is not None
        return self._quantizer.module

    def forward(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        return self.paint(self.hidden(features_TC, grids_hw), features_TC, grids_hw)

    def hidden(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """What the first part makes of features, (T, width), where training may align features."""
        x_TC, outputs = self.project_in(self._code().detail(features_TC)), []
        for x, grid in zip(x_TC.split(lengths_of(grids_hw)), grids_hw, strict=True):
            x = x.unflatten(0, grid)[None]
            for block in self.blocks:
                x = block(x)
            outputs.append(x.flatten(0, 2))
        return torch.cat(outputs)

    def paint(self, hidden_TC: Tensor, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Patches (T, D) of the first part's output and the features themselves."""
        quantizer = self._code()
        lengths = lengths_of(grids_hw)
        values = quantizer.values(features_TC).split(lengths)
        added = self.project_out(self.norm(hidden_TC)).split(lengths)
        patches = []
        for values_TV, added_TD, grid in zip(values, added, grids_hw, strict=True):
            pixels = quantizer.code.pixels(values_TV, grid, added_TD)
            for block in self.refine:
                pixels = block(pixels)
            patches.append(patchify(pixels))
        return torch.cat(patches)


class _Refine(nn.Module):
    """pixels += convolutions of 4x4 pixels in one place, (3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3 * _FOLD**2
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.conv2(F.silu(self.conv1(F.pixel_unshuffle(pixels[None], _FOLD))))
        return pixels + F.pixel_shuffle(hidden, _FOLD)[0]
