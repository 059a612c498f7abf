"""One image through a part of a tokenizer, for `torch.export` and for ONNX after it.

They record the operations of one call. Sides of the picture are symbols meanwhile: what asks
Python for a number would fix the graph to one size. Each graph holds the modules of its part alone,
so that a file does not carry the others.

C = width of a feature, H, W = height and width in px, whole patches.
"""

from __future__ import annotations

import copy
from typing import ClassVar

from torch import Tensor, nn

from viq.image.patches import PatchBatch, patchify, unpatchify
from viq.models.tokenizer.tokenizer import VisualTokenizer


class TokenizerGraph(nn.Module):
    """A part of a tokenizer, whose weights it shares."""

    parts: ClassVar[tuple[str, ...]]  # modules of the tokenizer that the graph runs

    def __init__(self, tokenizer: VisualTokenizer) -> None:
        super().__init__()
        self.patch_size = tokenizer.config.encoder.patch_size
        self.tokenizer = copy.copy(tokenizer)
        modules = {
            name: module for name, module in tokenizer.named_children() if name in self.parts
        }
        self.tokenizer.__dict__["_modules"] = modules


class EncoderGraph(TokenizerGraph):
    """Pixels (3, H, W) float in [-1, 1] to codes (rows, cols, 4) int64."""

    parts = ("encoder", "quantizer")

    def forward(self, pixel_values: Tensor) -> Tensor:
        sides = pixel_values.shape[1], pixel_values.shape[2]
        grid = sides[0] // self.patch_size, sides[1] // self.patch_size
        patches_TD = patchify(pixel_values, self.patch_size)
        batch = PatchBatch(patches_TD=patches_TD, grids_hw=(grid,))
        return self.tokenizer.ids(batch).unflatten(0, grid)


class DecoderGraph(TokenizerGraph):
    """Codes (rows, cols, 4) int64 to pixels (3, H, W), about [-1, 1]."""

    parts = ("quantizer", "decoder")

    def forward(self, codes: Tensor) -> Tensor:
        grid, patch = (codes.shape[0], codes.shape[1]), self.patch_size
        features_TC = self.tokenizer.features(codes.flatten(0, 1), [grid])
        patches_TD = self.tokenizer.reconstruct(features_TC, [grid])
        return unpatchify(patches_TD, (grid[0] * patch, grid[1] * patch), patch)


class EmbedderGraph(TokenizerGraph):
    """Codes (patches, 4) int64, of any number of images, to features (patches, C)."""

    parts = ("quantizer",)

    def forward(self, codes: Tensor) -> Tensor:
        return self.tokenizer.features(codes)
