"""Distances in feature space that train a decoder: of pictures, and of its own hidden values.

Every module gives one number an image, fp32. What they look through is frozen; gradients flow to
the painted pixels or to the decoder's values alone.

n = images, T = patches of all images, P = of one, D = values per patch, C = width, G = patches a
side of what a tower sees.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.types import PATCH_SIZE, Grid, ViqError
from viq.image.patches import PatchBatch, lengths_of, unpatchify
from viq.models.layers.blocks import Mlp
from viq.models.vision.dino import DinoTower, Target, _resample
from viq.models.vision.lpips import load_lpips
from viq.models.vision.tower import VisionTower, stretch
from viq.weights import checkpoint


class FeatureLoss(nn.Module):
    """Distance of the features of a frozen tower's blocks, at native resolution.

    As LPIPS: features are scaled to unit length in every token; squared differences are averaged
    over tokens and blocks.

    Args:
        layers: blocks to compare after, counted from 0; by default four, evenly spaced.
    """

    def __init__(self, tower: VisionTower, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        depth = len(tower.encoder.blocks)
        if tower.config.encoder.patch_size != PATCH_SIZE:
            raise ViqError(
                f"{tower.config.name} has patches of {tower.config.encoder.patch_size} px, but "
                f"pictures are compared in patches of {PATCH_SIZE} px: give another tower"
            )
        if layers is None:
            layers = sorted({depth * i // 4 - 1 for i in range(1, 5)} - {-1})
        if not layers or not all(0 <= layer < depth for layer in layers):
            raise ViqError(f"layers {list(layers)}: choose from the {depth} blocks 0..{depth - 1}")
        self.layers = frozenset(layers)
        self.tower = tower.requires_grad_(False).eval()

    def forward(self, painted_TD: Tensor, real_TD: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Distance (n,) of patches of pixels in [-1, 1]; gradients flow to the painted ones."""
        with torch.no_grad():
            real = self._features(real_TD, grids_hw)
        painted = self._features(painted_TD, grids_hw)
        distances_T = torch.stack(
            [(p - r).square().sum(-1) for p, r in zip(painted, real, strict=True)]
        ).mean(0)
        return _means(distances_T, grids_hw)

    def _features(self, patches_TD: Tensor, grids_hw: Sequence[Grid]) -> list[Tensor]:
        """Unit vectors (T, C) after each chosen block."""
        lengths, features = lengths_of(grids_hw), []
        encoder = self.tower.encoder
        x_TC = encoder.embed(PatchBatch(patches_TD=patches_TD, grids_hw=tuple(grids_hw)))
        for number, block in enumerate(encoder.blocks[: max(self.layers) + 1]):
            x_TC = block(x_TC, lengths)
            if number in self.layers:
                features.append(F.normalize(x_TC.float(), dim=-1))
        return features


class Lpips(nn.Module):
    """LPIPS with VGG-16, by `viq.models.vision.lpips`, which says what it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_lpips("vgg")

    def forward(self, painted_TD: Tensor, real_TD: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Distance (n,) of patches of pixels in [-1, 1]; gradients flow to the painted ones."""
        lengths = lengths_of(grids_hw)
        distances = []
        parts = zip(painted_TD.split(lengths), real_TD.split(lengths), grids_hw, strict=True)
        for painted_PD, real_PD, (rows, cols) in parts:
            size = (rows * PATCH_SIZE, cols * PATCH_SIZE)
            painted, real = (unpatchify(x, size)[None].float() for x in (painted_PD, real_PD))
            distances.append(self.net(painted, real).flatten())
        return torch.cat(distances)


class Alignment(nn.Module):
    """REPA (Yu et al., 2025): a decoder's hidden values, projected, follow a tower's tokens.

    The tower sees each image stretched to its side; its tokens are resampled to the image's grid.

    Args:
        width: C of the hidden values.
    """

    def __init__(self, target: Target, width: int) -> None:
        super().__init__()
        self.target = target
        self.project = Mlp(width, max(width, target.width), target.width)

    def forward(
        self, hidden_TC: Tensor, images: Sequence[Tensor], grids_hw: Sequence[Grid]
    ) -> Tensor:
        """1 - cosine (n,), averaged over the patches of an image.

        Args:
            images: pixels (3, H, W) in [-1, 1] of each image.
        """
        with torch.no_grad():
            tokens_nPC = self.target.tokens(stretch(images, self.target.side)).float()
            wanted_TC = torch.cat(
                [_resample(t, grid) for t, grid in zip(tokens_nPC, grids_hw, strict=True)]
            )
        cosine_T = F.cosine_similarity(self.project(hidden_TC).float(), wanted_TC, dim=-1)
        return _means(1 - cosine_T, grids_hw)


def make_alignment(source: VisionTower | str | os.PathLike[str], width: int) -> Alignment:
    """Alignment of hidden values of this width with a tower, or with what a folder holds.

    Raises:
        CheckpointError: the folder holds neither DINO, nor a tower, nor SigLIP.
    """
    if isinstance(source, VisionTower):
        return Alignment(source.requires_grad_(False).eval(), width)
    folder, kind = Path(source), ""
    if (folder / checkpoint.CONFIG_FILE).is_file():
        kind = str(checkpoint.read_config(folder).get("model_type", ""))
    tower = DinoTower if kind.startswith("dino") else VisionTower
    return Alignment(tower.from_pretrained(folder), width)


def _means(values_T: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
    """Mean over the patches of each image, (n,)."""
    return torch.stack([part.mean() for part in values_T.split(lengths_of(grids_hw))])
