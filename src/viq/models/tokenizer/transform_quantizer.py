"""The quantizer of a transform code: patches to ids, and ids to features, without a transformer.

A feature is what the codes of a patch say, by names of its own rather than by digits: values in the
basis that all classes share, of unit size each, and an embedding of the class, which is a name and
no amount. The decoder turns the values back to pixels; a language model reads both.

T = patches, S = 4 slots, V = values of a patch, J = classes, C = width of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from viq.core.levels import PRESETS
from viq.core.types import Grid
from viq.image.patches import PatchBatch
from viq.models.tokenizer.transform_code import CODEBOOK, TransformCode, TransformConfig


class Pixels(nn.Module):
    """The encoder of a tokenizer whose code is made of pixels: patches (T, D) as they are."""

    def forward(self, batch: PatchBatch) -> Tensor:
        return batch.patches_TD


class TransformQuantizer(nn.Module):
    """A transform code and the features of its ids. Fitted in closed form, never trained."""

    levels = PRESETS["64k"]  # whose product is the codebook; digits of ids mean nothing here
    codebook_size = CODEBOOK

    def __init__(self, width: int, config: TransformConfig) -> None:
        super().__init__()
        if width <= config.basis:
            raise ValueError(
                f"features of width {width} have no room for {config.basis} values and a class"
            )
        self.code = TransformCode(config)
        self.scale: Tensor
        self.class_embedding: Tensor
        self.register_buffer("scale", torch.ones(config.basis))  # of values, over photos
        self.register_buffer("class_embedding", torch.zeros(config.classes, width - config.basis))

    def ids(self, patches_TD: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Codes (T, S), int64, of patches of pixels in [-1, 1]."""
        return self.code.ids(patches_TD.float(), grids_hw)

    def features(self, ids_TS: Tensor) -> Tensor:
        """Features (T, C) of codes (T, S)."""
        values_TV = self.code.dequantize(ids_TS) / self.scale
        return torch.cat([values_TV, self.class_embedding[self.code.classes(ids_TS)]], 1)

    def values(self, features_TC: Tensor) -> Tensor:
        """Values (T, V), as the code has them, of features."""
        return features_TC[:, : len(self.scale)] * self.scale

    @torch.no_grad()
    def fit_features(self, ids_TS: Tensor) -> None:
        """Scale values to unit size over these codes of many pictures, and lay out classes: by the
        principal directions of the logarithms of their values' sizes."""
        values_TV = self.code.dequantize(ids_TS)
        self.scale.copy_(values_TV.square().mean(0).sqrt().clamp_min(1e-6))
        directions_JVQ, values_JQl = self.code.directions, self.code.values
        sizes_JV = (directions_JVQ.square() @ values_JQl.square().mean(2)[..., None])[..., 0]
        profile_JV = (sizes_JV.sqrt() / self.scale + 1e-2).log()
        profile_JV -= profile_JV.mean(0)
        left, strengths, _ = torch.linalg.svd(profile_JV, full_matrices=False)
        count = min(self.class_embedding.shape[1], len(strengths))
        self.class_embedding.zero_()
        self.class_embedding[:, :count] = left[:, :count] * len(left) ** 0.5
