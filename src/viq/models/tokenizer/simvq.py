"""SimVQ: a codebook of fixed random rows behind a linear map that learns (docs/ablations.md).

What FSQ is compared with at equal bits. A vector becomes the nearest row of the mapped codebook;
gradients pass by the rotation trick; the map learns from the commitment loss alone.

T = patches of all images, S = 4 slots, C = width, d = channels of a row, e = rows of the codebook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.levels import codebook_size
from viq.core.types import Grid
from viq.models.tokenizer.quantizer import QuantizerConfig, SlotBlock

_COMMITMENT = 0.25  # weight of the encoder's side of the loss


class SimVQBottleneck(nn.Module):
    """Position-aware blocks, projection to d dims, and the nearest of e rows, in fp32.

    As many rows as the FSQ levels of the config have codes, of as many channels as the proximal
    bottleneck has.

    Attributes:
        commitment_T: loss of each patch in the last `bound`, mean over slots and channels.
    """

    rows_ed: Tensor
    commitment_T: Tensor

    def __init__(self, width: int, config: QuantizerConfig) -> None:
        super().__init__()
        d, count = config.proximal_width, codebook_size(config.levels)
        self.blocks = nn.ModuleList(SlotBlock(width, config) for _ in range(config.slot_depth))
        self.project_in = nn.Linear(width, d)
        self.project_out = nn.Linear(d, width)
        self.map = nn.Linear(d, d, bias=False)
        self.register_buffer("rows_ed", torch.randn(count, d) * d**-0.5)

    def forward(self, slots_TSC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Values (T, S, d) before the nearest row is taken."""
        for block in self.blocks:
            slots_TSC = block(slots_TSC, grids_hw)
        return self.project_in(slots_TSC)

    def indices(self, z_TSd: Tensor) -> Tensor:
        """Numbers (T, S), int64, of the nearest rows by Euclidean distance."""
        return self._nearest(z_TSd.float(), self.map(self.rows_ed))

    def bound(self, z_TSd: Tensor) -> Tensor:
        """Nearest rows (T, S, d), fp32; gradients are turned and scaled as the vectors are."""
        z_TSd = z_TSd.float()
        table_ed = self.map(self.rows_ed)
        found_TSd = table_ed[self._nearest(z_TSd, table_ed)]
        theirs = F.mse_loss(found_TSd, z_TSd.detach(), reduction="none")
        ours = F.mse_loss(z_TSd, found_TSd.detach(), reduction="none")
        self.commitment_T = (theirs + _COMMITMENT * ours).flatten(1).mean(1)
        return rotated(z_TSd, found_TSd.detach())

    @torch.no_grad()
    def _nearest(self, z_TSd: Tensor, table_ed: Tensor) -> Tensor:
        # Of |z - t|^2, |z|^2 is the same for all rows.
        flat = z_TSd.flatten(0, -2)
        scores = torch.addmm(table_ed.square().sum(1), flat, table_ed.T, alpha=-2)
        return scores.argmin(1).view(z_TSd.shape[:-1])


def rotated(z: Tensor, target: Tensor) -> Tensor:
    """`target` (..., d), as z (..., d) rotated and scaled onto it by a map that has no gradient."""
    with torch.no_grad():
        size = z.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        wanted = target.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        begin, end = z / size, target / wanted
        middle = F.normalize(begin + end, dim=-1, eps=1e-6)
        scale = wanted / size
    turned = z - 2 * (z * middle).sum(-1, keepdim=True) * middle
    turned = turned + 2 * (z * begin).sum(-1, keepdim=True) * end
    return turned * scale
