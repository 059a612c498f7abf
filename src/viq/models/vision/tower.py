"""A vision tower at one resolution: the frozen teacher of self-distillation.

The same modules as the encoder and pooling head of the tokenizer, so that SigLIP2 fits both, and
a recipe without SigLIP2 can train its own.

n = images, P = patches of one, C = width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.files import write_atomically
from viq.image.patches import PatchBatch, patchify
from viq.models.layers.blocks import AttentionPool, Mlp
from viq.models.tokenizer.encoder import Encoder, EncoderConfig
from viq.models.vision.siglip import Gelu, read_siglip
from viq.weights import checkpoint
from viq.weights.verify import DIGEST, digest_of, digests_of, verify_all


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Shape of the tower; `config.json` of its folder."""

    encoder: EncoderConfig
    side: int  # px; images are stretched to side x side
    gelu: Gelu = "exact"
    name: str = "tower"

    def __post_init__(self) -> None:
        untrusted.shape(self, side=2**14)
        if self.side % self.encoder.patch_size:
            raise ValueError(f"side {self.side} must be a multiple of {self.encoder.patch_size} px")
        if self.gelu not in ("exact", "tanh"):
            raise ValueError(f"gelu {self.gelu!r} is neither exact nor tanh")


class VisionTower(nn.Module):
    """Square images in, one semantic token an image out."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.encoder
        self.encoder = Encoder(shape)
        self.pool_norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.pool_head = AttentionPool(shape.width, shape.heads, shape.mlp_width)
        if config.gelu == "tanh":
            for module in self.modules():
                if isinstance(module, Mlp):
                    module.act = nn.GELU(approximate="tanh")

    @property
    def width(self) -> int:
        """C, channels of a token."""
        return self.config.encoder.width

    @property
    def side(self) -> int:
        """Height and width of the images it takes, px."""
        return self.config.side

    def forward(self, images_nCHW: Tensor) -> Tensor:
        """Pooled tokens (n, C) of images of side x side px in [-1, 1]."""
        tokens_nPC = self.tokens(images_nCHW)
        lengths = [tokens_nPC.shape[1]] * len(tokens_nPC)
        return self.pool_head(tokens_nPC.flatten(0, 1), lengths)

    def tokens(self, images_nCHW: Tensor) -> Tensor:
        """Tokens (n, P, C) after the final norm, in raster order."""
        count, patch = len(images_nCHW), self.config.encoder.patch_size
        if tuple(images_nCHW.shape[1:]) != (3, self.side, self.side):
            raise ValueError(
                f"images of shape {tuple(images_nCHW.shape[1:])}, but {self.config.name} takes "
                f"(3, {self.side}, {self.side}): stretch them first"
            )
        grid = (self.side // patch, self.side // patch)
        batch = PatchBatch(
            patches_TD=patchify(images_nCHW, patch).flatten(0, 1), grids_hw=(grid,) * count
        )
        return self.pool_norm(self.encoder(batch)).unflatten(0, (count, -1))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        side: int | None = None,
        heads: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> VisionTower:
        """A tower from a folder of its own, or from SigLIP or SigLIP2; frozen, in eval mode.

        Args:
            source: folder, or a weight file of SigLIP (`models/vision/siglip.py`).
            side: px; by default that of the folder, or all of SigLIP's position grid.
            heads: for a SigLIP file of a width that was never published.
            dtype: of the parameters; float32 by default, whatever the file holds.

        Raises:
            CheckpointError: neither of the two, incomplete, or damaged.
        """
        folder = Path(source)
        values = {}
        if (folder / checkpoint.CONFIG_FILE).is_file():
            values = checkpoint.read_config(folder)
        if "side" in values:
            where, path = str(folder / checkpoint.CONFIG_FILE), folder / checkpoint.WEIGHTS_FILE
            values.pop("format", None)
            stamp = digests_of(values, where)[1]
            values.pop(DIGEST, None)
            if side is not None:
                values["side"] = side
            config = checkpoint.from_dict(TowerConfig, values, where)
            with checkpoint.building(where):
                tower = cls(config)
            checkpoint.load_model(tower, path, device=device, dtype=dtype or torch.float32)
            verify_all(path, stamp)
        else:
            siglip = read_siglip(folder, heads=heads)
            config = TowerConfig(
                encoder=siglip.encoder,
                side=side or siglip.encoder.position_grid * siglip.encoder.patch_size,
                gelu=siglip.gelu,
                name=folder.stem if folder.is_file() else folder.resolve().name,
            )
            with checkpoint.building(str(folder)):
                tower = cls(config)
            weights = {k: v.to(device, dtype or torch.float32) for k, v in siglip.weights.items()}
            checkpoint.load_strictly(tower, weights, str(folder))
        return tower.requires_grad_(False).eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors` and `config.json`, each aside and renamed."""
        folder = Path(folder)
        checkpoint.write_weights(folder / checkpoint.WEIGHTS_FILE, self.state_dict())
        stamp = digest_of(self.state_dict())
        values = {"format": 1, **checkpoint.to_dict(self.config), DIGEST: stamp}
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(folder / checkpoint.CONFIG_FILE, text.encode())


def stretch(pixels: Tensor | Sequence[Tensor], side: int) -> Tensor:
    """Pixels (3, H, W) of one image or of a list of them to (n, 3, side, side), aspect not kept.

    Bilinear without antialias: what the official code feeds its teacher.
    """
    images = [pixels] if isinstance(pixels, Tensor) else pixels
    return torch.cat(
        [
            F.interpolate(image[None], (side, side), mode="bilinear", align_corners=False)
            for image in images
        ]
    )
