"""The quantizer of a transform code: patches to ids, and ids to features, without a transformer.

A feature is what the codes of a patch say, by names of its own rather than by digits: values in the
basis that all classes share, of unit size each; an embedding of the class, which is a name and no
amount; and what a reader makes of the codes of meaning around the patch, which names things better
than the codes themselves. The decoder turns values and class back to pixels; a language model reads
all.

T = patches, S = 4 slots, V = values of a patch, J = classes, C = width of a feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from viq.core.levels import PRESETS
from viq.core.types import PATCH_SIZE, Grid, ViqError
from viq.image.patches import PatchBatch, lengths_of, unpatchify
from viq.models.tokenizer.semantic import (
    MEANING_WIDTH,
    SemanticConfig,
    SemanticEncoder,
    SemanticReader,
    SemanticValues,
    of_patches,
)
from viq.models.tokenizer.transform_code import CODEBOOK, TransformCode, TransformConfig


class PixelEncoder(nn.Module):
    """The encoder of a tokenizer whose code is made of pixels, and of meaning where it has that."""

    def __init__(self, semantic: SemanticConfig | None) -> None:
        super().__init__()
        self.semantic = SemanticEncoder(semantic) if semantic is not None else None

    def forward(self, batch: PatchBatch) -> Tensor:
        """Patches (T, D) of pixels as they are."""
        return batch.patches_TD

    def meaning(self, batch: PatchBatch) -> list[Tensor] | None:
        """Ids (group rows, group columns) of 2x2 patches of each image; None without meaning."""
        if self.semantic is None:
            return None
        return [self.semantic.ids(pixels) for pixels in _images(batch)]

    def unrounded_meaning(self, batch: PatchBatch) -> list[Tensor] | None:
        """What becomes ids of meaning, (group rows, group columns, 6) of each image; None without
        meaning."""
        if self.semantic is None:
            return None
        return [self.semantic.picked(pixels) for pixels in _images(batch)]

    def trunk_features(self, batch: PatchBatch) -> Tensor:
        """Standardised numbers (T, 432) of the pretrained trunk, of each patch those of its group.

        Raises:
            ViqError: the tokenizer has no such trunk.
        """
        if self.semantic is None:
            raise ViqError("codes of this tokenizer hold no meaning, so it has no pretrained trunk")
        images = zip(_images(batch), batch.grids_hw, strict=True)
        return torch.cat(
            [of_patches(self.semantic.trunk_features(pixels), grid) for pixels, grid in images]
        )


def _images(batch: PatchBatch) -> Iterator[Tensor]:
    """Pixels (3, H, W) of each image, sides of whole patches."""
    parts = batch.patches_TD.split(lengths_of(batch.grids_hw))
    for patches_TD, (rows, cols) in zip(parts, batch.grids_hw, strict=True):
        yield unpatchify(patches_TD, (rows * PATCH_SIZE, cols * PATCH_SIZE))


class TransformQuantizer(nn.Module):
    """A transform code, fitted in closed form, and the features of its ids."""

    levels = PRESETS["64k"]  # whose product is the codebook; digits of ids mean nothing here
    codebook_size = CODEBOOK

    scale: Tensor
    class_embedding: Tensor

    def __init__(
        self, width: int, config: TransformConfig, semantic: SemanticConfig | None = None
    ) -> None:
        super().__init__()
        self.code = TransformCode(config)
        self.meaning = SemanticValues(semantic) if semantic is not None else None
        self.reader = SemanticReader(MEANING_WIDTH, semantic.reader) if semantic else None
        self.detail_width = width - (semantic.reader if semantic else 0)
        self.register_buffer("scale", torch.ones(config.basis))  # of values, over photos
        self.register_buffer(
            "class_embedding", torch.zeros(config.classes, self.detail_width - config.basis)
        )

    def ids(
        self, patches_TD: Tensor, grids_hw: Sequence[Grid], meaning: list[Tensor] | None = None
    ) -> Tensor:
        """Codes (T, S), int64, of patches of pixels in [-1, 1] and of what they mean."""
        return self.code.ids(patches_TD.float(), grids_hw, meaning)

    def features(self, ids_TS: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Features (T, C) of codes (T, S), image by image.

        Raises:
            ViqError: the grids are not those of so many patches.
        """
        parts = [self.detail_features(ids_TS)]
        if self.meaning is not None and self.reader is not None:
            said_T = self.code.meaning(ids_TS).clamp_max(self.meaning.ids - 1)
            if sum(lengths := lengths_of(grids_hw)) != len(ids_TS):
                raise ViqError(
                    f"grids of {sum(lengths)} patches, but codes of {len(ids_TS)}: features of "
                    "meaning need the grid of each image"
                )
            images = said_T.split(lengths)
            tokens = [
                self.reader.tokens(said.view(grid), self.meaning)
                for said, grid in zip(images, grids_hw, strict=True)
            ]
            parts.append(torch.cat(tokens) if tokens else parts[0][:, :0])
        return torch.cat(parts, 1)

    def unrounded_features(
        self, patches_TD: Tensor, grids_hw: Sequence[Grid], meaning: list[Tensor] | None = None
    ) -> Tensor:
        """Features (T, C), like those of codes, with values that are not rounded: of pixels all in
        the shared basis, and the class that their codes would have; of meaning what the reader
        makes of values before FSQ.

        Args:
            patches_TD: pixels in [-1, 1].
            meaning: of each image what `PixelEncoder.unrounded_meaning` gives.
        """
        patches_TD = patches_TD.float()
        images = zip(patches_TD.split(lengths_of(grids_hw)), grids_hw, strict=True)
        values_TV = torch.cat([self.code.unrounded(part_TD, grid) for part_TD, grid in images])
        classes_T = self.code.classes(self.code.ids(patches_TD, grids_hw))
        parts = [values_TV / self.scale, self.class_embedding[classes_T]]
        if self.meaning is not None and self.reader is not None:
            assert meaning is not None
            dtype = self.reader.norm.weight.dtype
            tokens = [self.reader(self.meaning.unrounded(z)[None].to(dtype))[0] for z in meaning]
            pairs = zip(tokens, grids_hw, strict=True)
            parts.append(torch.cat([of_patches(part_hwC, grid) for part_hwC, grid in pairs]))
        return torch.cat(parts, 1)

    def detail_features(self, ids_TS: Tensor) -> Tensor:
        """The part of features that says of pixels, of codes (T, S)."""
        values_TV = self.code.dequantize(ids_TS) / self.scale
        return torch.cat([values_TV, self.class_embedding[self.code.classes(ids_TS)]], 1)

    def detail(self, features_TC: Tensor) -> Tensor:
        """What features say of pixels: all but meaning."""
        return features_TC[:, : self.detail_width]

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
