"""Visual features to the input vectors of a language model (docs/model.md, "Projector").

A window of `merge_size` x `merge_size` neighbouring patches becomes one token. Every row of tokens
ends with a learned vector, and an image begins and ends with one more, so that a language model,
which reads one long line, can tell rows apart. These are vectors, not words of its vocabulary.

The official code needs grids whose sides are multiples of the window and fails on others. Here a
window at the right or lower border simply has fewer members; on whole windows the numbers agree.

T = patches of all images, C = width of features, R = windows of all images, m = merge_size**2
members, E = width of the language model, L = tokens of one image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.types import Grid
from viq.models.layers.blocks import Mlp
from viq.models.layers.places import PLACE_FEATURES, place_features


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """Shape of the projector."""

    features: int  # C
    width: int  # E
    merge_size: int = 2  # side of a window, patches: 1, 2 or 4
    whiten: bool = False  # features go through a `Whitener` first
    positions: bool = False  # tokens are told where in the picture they lie

    def __post_init__(self) -> None:
        untrusted.shape(self, features=2**16, width=2**17)
        if self.merge_size not in (1, 2, 4):
            raise ValueError(f"merge_size is {self.merge_size}: use 1, 2 or 4 patches")


class Whitener(nn.Module):
    """Features to uncorrelated channels of mean 0 and deviation 1: a fixed map that data set.

    A tokenizer's features may lie almost on a line: of those of `viq-tiny` one direction in 192 has
    three quarters of the variance, and what tells colours apart a thousandth of it. A first layer
    learns along such a line alone for a long time. Until `fit`, the map changes nothing.
    """

    center_C: Tensor
    map_CC: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("center_C", torch.zeros(features))
        self.register_buffer("map_CC", torch.eye(features))

    @torch.no_grad()
    def fit(self, features_TC: Tensor) -> None:
        """Set the map by the features of some images; directions of less than a thousandth of the
        largest variance are only scaled as one of that."""
        x_TC = features_TC.double()
        center_C = x_TC.mean(0)
        centred_TC = x_TC - center_C
        variances, axes_CC = torch.linalg.eigh(centred_TC.T @ centred_TC / max(1, len(x_TC) - 1))
        scales = variances.clamp_min(max(float(variances.max()) * 1e-3, 1e-12)).rsqrt()
        self.center_C.copy_(center_C)
        self.map_CC.copy_(axes_CC * scales @ axes_CC.T)

    def forward(self, features_TC: Tensor) -> Tensor:
        """(T, C), fp32: half precision would drown the small directions in the large ones."""
        with torch.autocast(features_TC.device.type, enabled=False):
            return (features_TC.float() - self.center_C.float()) @ self.map_CC.float()


@functools.lru_cache(maxsize=1024)
def _windows(grid: Grid, merge_size: int) -> Tensor:
    """Patch numbers (windows, m) of one image in raster order; -1 where a member is missing."""
    rows, cols = (-(-side // merge_size) for side in grid)
    numbers = torch.arange(grid[0] * grid[1]).view(1, 1, *grid).float()
    padded = F.pad(
        numbers, (0, cols * merge_size - grid[1], 0, rows * merge_size - grid[0]), value=-1.0
    )  # exact in fp32 up to 16.7 million patches
    return F.unfold(padded, merge_size, stride=merge_size)[0].T.long()


@functools.lru_cache(maxsize=1024)
def _order(rows: int, cols: int) -> Tensor:
    """Windows of one image as its tokens (L,) name them; -1: end of a row, -2: begin, -3: end."""
    lines = torch.cat(
        [torch.arange(rows * cols).view(rows, cols), torch.full((rows, 1), -1)], dim=1
    )
    return torch.cat([torch.tensor([-2]), lines.flatten(), torch.tensor([-3])])


class MergeProjector(nn.Module):
    """Weighted sums over windows, the weights made from each member and its window's mean."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        d = config.width
        self.config = config
        self.whitener = Whitener(config.features) if config.whiten else nn.Identity()
        self.project_in = nn.Linear(config.features, d)
        self.weigh = Mlp(2 * d, d, d)
        self.project_out = nn.Linear(d, d)
        self.place = nn.Linear(PLACE_FEATURES, d, bias=False) if config.positions else None
        if self.place is not None:  # little at first: what is there is learned before where it is
            nn.init.normal_(self.place.weight, std=0.02)
        self.newline = nn.Parameter(torch.empty(d).normal_(std=0.02))
        self.begin = nn.Parameter(torch.empty(d).normal_(std=0.02))
        self.end = nn.Parameter(torch.empty(d).normal_(std=0.02))

    def merged(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """One vector a window, (R, E), images one after another, windows in raster order."""
        parts, start = [], 0
        for grid in grids_hw:
            windows = _windows(grid, self.config.merge_size)
            parts.append(torch.where(windows < 0, windows, windows + start))
            start += grid[0] * grid[1]
        index_Rm = torch.cat(parts).to(features_TC.device)
        x_TE = self.project_in(self.whitener(features_TC).to(features_TC.dtype))
        if self.config.merge_size > 1:
            missing_Rm1 = (index_Rm < 0).unsqueeze(-1)
            x_RmE = x_TE[index_Rm.clamp_min(0)].masked_fill(missing_Rm1, 0)
            mean_R1E = x_RmE.sum(1, keepdim=True) / (~missing_Rm1).sum(1, keepdim=True)
            logits_RmE = self.weigh(torch.cat([x_RmE, mean_R1E.expand_as(x_RmE)], dim=-1))
            x_TE = (x_RmE * logits_RmE.masked_fill(missing_Rm1, -torch.inf).softmax(1)).sum(1)
        return self.project_out(F.gelu(x_TE))

    def forward(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> list[Tensor]:
        """Tokens (L, E) of each image, marks included; L is `viq.core.types.language_tokens`."""
        merged_RE = self.merged(features_TC, grids_hw)
        sides = [tuple(-(-side // self.config.merge_size) for side in grid) for grid in grids_hw]
        if self.place is not None and sides:
            places_RP = torch.cat([place_features((rows, cols)) for rows, cols in sides])
            merged_RE = merged_RE + self.place(places_RP.to(merged_RE))
        table_RE = torch.cat([merged_RE, self.newline[None], self.begin[None], self.end[None]])
        orders, start = list[Tensor](), 0
        for rows, cols in sides:
            order_L = _order(rows, cols)
            orders.append(torch.where(order_L < 0, len(merged_RE) - 1 - order_L, order_L + start))
            start += rows * cols
        if not orders:
            return []
        tokens_LE = table_RE[torch.cat(orders).to(table_RE.device)]
        return list(tokens_LE.split([len(order_L) for order_L in orders]))
