"""DINOv2 as a target of features."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.errors import require
from viq.core.types import Grid, ViqError
from viq.weights.checkpoint import CheckpointError
from viq.weights.pretrained import load_local_model

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, standard deviation


class Target(Protocol):
    """A frozen tower to align with; `VisionTower` is one."""

    @property
    def width(self) -> int: ...

    @property
    def side(self) -> int: ...

    def tokens(self, images_nCHW: Tensor) -> Tensor:
        """Tokens (n, G*G, width) of images of side x side px in [-1, 1]."""
        ...


class DinoTower(nn.Module):
    """DINOv2 (or a later DINO) of transformers, frozen.

    Args:
        side: px; 224 gives the 16x16 tokens that a picture of 256 px has patches.
    """

    def __init__(self, model: Any, side: int = 224) -> None:
        super().__init__()
        patch = model.config.patch_size
        if side < patch or side % patch:
            raise ViqError(f"side {side} must be a multiple of {patch} px, the patches of DINO")
        self.model = model.requires_grad_(False).eval()
        self.width, self.side = int(model.config.hidden_size), side
        self._skip = 1 + getattr(model.config, "num_register_tokens", 0)  # the class token first

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, side: int = 224) -> DinoTower:
        """From a folder in transformers' format.

        Raises:
            CheckpointError: transformers is missing, or the folder incomplete or damaged.
        """
        with require("transformers", "train", f"{folder}: DINO", CheckpointError):
            import transformers  # noqa: F401
        try:
            model = load_local_model(folder)
        except CheckpointError as error:
            reason = str(error).removeprefix(f"{folder}: ")
            raise CheckpointError(
                f"{folder}: no DINO can be loaded from there ({reason})"
            ) from None
        return cls(model, side)

    def tokens(self, images_nCHW: Tensor) -> Tensor:
        """Patch tokens (n, G*G, C) after the final norm, of images in [-1, 1]."""
        mean, std = images_nCHW.new_tensor(_IMAGENET).view(2, 3, 1, 1).float()
        pixels = (images_nCHW.float() * 0.5 + 0.5 - mean) / std
        return self.model(pixel_values=pixels).last_hidden_state[:, self._skip :]


def _resample(tokens_PC: Tensor, grid: Grid) -> Tensor:
    """Tokens of a square grid for another grid, (rows*cols, C): bilinear, averaged if coarser."""
    side = round(len(tokens_PC) ** 0.5)
    square_1CGG = tokens_PC.T.unflatten(1, (side, side))[None]
    resized = F.interpolate(square_1CGG, grid, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].flatten(1).T
