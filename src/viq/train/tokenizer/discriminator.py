"""A judge of pictures, patch by patch, for adversarial training of decoders.

T = patches of all images, D = values per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from viq.core.types import Grid
from viq.models.tokenizer.decoder import DecoderConfig, PixelDecoder


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shape of the judge."""

    width: int = 64
    depth: int = 3
    kernel_size: int = 3  # patches, odd


class Discriminator(nn.Module):
    """One logit a patch: does it belong to a real picture? Sees `depth` patches around it."""

    def __init__(self, config: DiscriminatorConfig, values: int) -> None:
        super().__init__()
        shape = DecoderConfig(
            width=config.width, depth=config.depth, kernel_size=config.kernel_size, mlp_ratio=2
        )
        # The same blocks as the decoder, the other way round: pixels in, one number out.
        self.trunk = PixelDecoder(values, shape, patch_size=1)
        self.trunk.project_out = nn.Linear(config.width, 1)

    def forward(self, patches_TD: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Logits (T,) of patches of pixels in [-1, 1]."""
        return self.trunk(patches_TD, grids_hw).squeeze(-1)
