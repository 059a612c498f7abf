"""Meaning in one code of each 2x2 group of patches, from the trunk of a small pretrained network.

Features of the trunk at strides of 16 and 32 px, 432 numbers a group, become 24 directions. Each
group tells six of them, which ones by its phase: whether its row and its column are odd. Features
hardly change from a group to the next, so four neighbours tell four times as much as if all told
the same six, in the same bits. An id says its phase, so readers need neither trunk nor position:
`SemanticValues` puts the six values at their places among 24.

The trunk learned from pictures of about 224 px. Larger ones are halved until they have no more than
`SEEN` pixels, and neighbouring groups then tell of the same place: all 24 values of it, if it was
halved once. That also bounds its cost, which for the largest tiles is a hundredth of a second.

n = images, H, W = height and width in px, h, w = rows and columns of groups, I = numbers of the
trunk a group, 432, p = phases, 4, d = dimensions of a code, 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.levels import check_levels, codebook_size
from viq.core.types import PATCH_SIZE, Grid, ViqError
from viq.models.layers.ambient import by_default
from viq.models.layers.efficientnet import STRIDE_16, STRIDE_32, WIDTHS, Trunk
from viq.models.tokenizer.fsq import FSQ

PHASES = 4  # of groups: twice whether the row is odd, and whether the column is
GROUP = 2  # patches a side
INPUTS = WIDTHS[STRIDE_16] + WIDTHS[STRIDE_32]
_DIMENSIONS = 6  # a code
SEEN = 2**17  # pixels that the trunk is shown of a picture, at most
MEANING_WIDTH = PHASES * _DIMENSIONS  # values that ids mean
_IDS = 32_000  # half of the 64,000 that a code of a patch can be: the other half is detail


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """Shape of a semantic encoder; its trunk is EfficientNet-Lite0's."""

    levels: tuple[int, ...] = (5, 5, 5, 4, 4, 4)  # of FSQ, six; 8,000 codes a phase at most
    hidden: int = 192  # width of the correction to the linear map
    reader: int = 160  # width of what a reader makes of the values of neighbouring groups

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_levels(self.levels))
        if len(self.levels) != _DIMENSIONS:
            raise ValueError(f"{len(self.levels)} levels: a code of meaning has {_DIMENSIONS}")
        if codebook_size(self.levels) * PHASES > _IDS:
            raise ValueError(
                f"levels {list(self.levels)} make {codebook_size(self.levels)} codes: "
                f"{_IDS // PHASES} at most are left for a phase"
            )
        untrusted.shape(self, hidden=2**16, reader=2**14)


class SemanticValues:
    """What ids mean, without any network: 24 values each, of which the phase sets all but six to 0.

    Attributes:
        width: values an id, 24.
        ids: how many there are, 32,000.
    """

    def __init__(self, config: SemanticConfig) -> None:
        self.fsq = FSQ(config.levels)
        self.width = MEANING_WIDTH
        self.ids = PHASES * self.fsq.codebook_size

    def __call__(self, ids: Tensor) -> Tensor:
        """Values (..., 24) float32 in [-1, 1] of ids (...).

        Raises:
            ViqError: an id is out of range.
        """
        ids = ids.long()
        known = torch.compiler.is_exporting()  # a graph has no numbers to look at
        if not known and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.ids:
            raise ViqError(
                f"ids of meaning are from 0 to {self.ids - 1}, not {int(ids.min())} to "
                f"{int(ids.max())}: these codes are damaged, or of another tokenizer"
            )
        phases, indices = ids // self.fsq.codebook_size, ids % self.fsq.codebook_size
        return self.scatter(self.fsq.decode(indices), phases)

    def encode(self, z_hwd: Tensor) -> Tensor:
        """Ids (h, w) int64 of what `SemanticEncoder.pick` gives, before FSQ."""
        phases = phases_of(*z_hwd.shape[-3:-1], device=z_hwd.device)
        return self.fsq.codebook_size * phases + self.fsq.indices(z_hwd)

    def unrounded(self, z_hwd: Tensor) -> Tensor:
        """Values (h, w, 24) of what `SemanticEncoder.pick` gives: those of its ids, not rounded."""
        return self.scatter(
            self.fsq.unrounded(z_hwd), phases_of(*z_hwd.shape[:2], device=z_hwd.device)
        )

    @staticmethod
    def scatter(values: Tensor, phases: Tensor) -> Tensor:
        """Values (..., 6) of groups of some phases (...) at their places (..., 24), else 0."""
        own = F.one_hot(phases, PHASES).to(values.dtype)
        return (own[..., :, None] * values[..., None, :]).flatten(-2)


def of_patches(groups_hwC: Tensor, grid: Grid) -> Tensor:
    """What each patch of a grid has of its group, (r * c, C), row by row."""
    wide_rcC = groups_hwC.repeat_interleave(GROUP, 0).repeat_interleave(GROUP, 1)
    return wide_rcC[: grid[0], : grid[1]].flatten(0, 1)


def phases_of(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Phase (h, w) of each group of a grid, int64."""
    rows_h = torch.arange(rows, device=device) % GROUP
    return GROUP * rows_h[:, None] + torch.arange(columns, device=device) % GROUP


class SemanticEncoder(nn.Module):
    """An image to one id of meaning for each 2x2 group of its patches.

    Groups at the lower and right edges of an odd number of patches hang over: the picture is
    continued there by its last pixels.

    Attributes:
        values: what its ids mean.
        mean, deviation: of each number of the trunk; what training measured.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.values = SemanticValues(config)
        self.trunk = Trunk()
        self.register_buffer("mean", torch.zeros(INPUTS))
        self.register_buffer("deviation", torch.ones(INPUTS))
        self.linear = nn.Linear(INPUTS, self.values.width)
        self.hidden = nn.Linear(INPUTS, config.hidden)
        self.correction = nn.Linear(config.hidden, self.values.width)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, pixels_3HW: Tensor) -> Tensor:
        """Six values (h x w, 6) of each group before FSQ, row by row, float32.

        Images go through one by one, so that nothing else in a batch can change a code.

        Args:
            pixels_3HW: RGB in [-1, 1], sides of whole patches.
        """
        return self.picked(pixels_3HW).flatten(0, 1)

    @torch.no_grad()
    def ids(self, pixels_3HW: Tensor) -> Tensor:
        """Ids (h, w) int64 in [0, 32000): 8000 x phase + index in the FSQ codebook."""
        return self.values.encode(self.picked(pixels_3HW))

    def features(self, images_nCHW: Tensor) -> Tensor:
        """Numbers (n, h, w, I) of the trunk for each group, in its own units.

        Raises:
            ViqError: sides are not of whole patches.
        """
        height, width = images_nCHW.shape[2:]
        if not height or not width or height % PATCH_SIZE or width % PATCH_SIZE:
            raise ViqError(f"{height} x {width} px: sides must be multiples of {PATCH_SIZE} px")
        factor = 1
        while height * width > SEEN * factor**2:
            factor *= 2
        group, side = GROUP * PATCH_SIZE, GROUP * PATCH_SIZE * factor
        images = F.pad(images_nCHW, (0, -width % side, 0, -height % side), mode="replicate")
        if factor > 1:
            images = F.avg_pool2d(images, factor)
        fine, coarse = self.trunk(images, (STRIDE_16, STRIDE_32))
        joined_nhwI = torch.cat([F.avg_pool2d(fine, GROUP), coarse], 1).permute(0, 2, 3, 1)
        wide_nhwI = joined_nhwI.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        return wide_nhwI[:, : -(-height // group), : -(-width // group)]

    def standardised(self, features: Tensor) -> Tensor:
        """Features (..., I) of mean 0 and deviation 1 over the photos of training."""
        return (features - self.mean) / self.deviation

    def pick(self, x_nhwI: Tensor) -> Tensor:
        """Six values (n, h, w, d) before FSQ, those of each group's phase, of standardised
        features."""
        z = self.linear(x_nhwI) + self.correction(F.silu(self.hidden(x_nhwI)))
        rows, columns = z.shape[-3:-1]
        own_hwp = F.one_hot(phases_of(rows, columns, z.device), PHASES).to(z.dtype)
        return (z.unflatten(-1, (PHASES, _DIMENSIONS)) * own_hwp[..., None]).sum(-2)

    def picked(self, pixels_3HW: Tensor) -> Tensor:
        """Six values (h, w, d) of each group of an image before FSQ, as `forward` gives them."""
        with by_default(pixels_3HW.device):
            return self.pick(self.trunk_features(pixels_3HW)[None])[0]

    def trunk_features(self, pixels_3HW: Tensor) -> Tensor:
        """Standardised numbers (h, w, I) of the trunk for each group of an image."""
        with by_default(pixels_3HW.device):
            return self.standardised(self.features(pixels_3HW[None].to(self.mean.dtype)))[0]


class SemanticReader(nn.Module):
    """Values of a grid of groups to a token each, from the 9 x 9 groups around it.

    A picture's things are told by groups together, so such tokens name them better than the values.
    They are what features have of meaning. It is trained with the encoder
    (`train/tokenizer/semantic_fit.py`).
    """

    def __init__(self, values: int, width: int = 160) -> None:
        super().__init__()
        self.inp = nn.Linear(values, width)
        nn.init.normal_(self.inp.weight, std=1.5 * values**-0.5)
        self.blocks = nn.Sequential(_Mix(width), _Mix(width))
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor) -> Tensor:
        """Tokens (n, h, w, width) of what `SemanticValues` gives for grids of one size."""
        return self.norm(self.blocks(self.inp(values)))

    def tokens(self, ids_rc: Tensor, values: SemanticValues) -> Tensor:
        """Tokens (r * c, width) of the patches of one image, each that of its group.

        Args:
            ids_rc: of a grid of patches; -1 for those whose codes tell no meaning. Groups are
                wherever some do: tiles of an odd number of patches are read right, too.
        """
        if torch.compiler.is_exporting():  # a graph is of whole pictures: every second patch
            tokens_hwC = self(values(ids_rc[::GROUP, ::GROUP])[None].to(self.norm.weight.dtype))[0]
            return of_patches(tokens_hwC, (ids_rc.shape[0], ids_rc.shape[1]))
        return self.tokens_of_equal(ids_rc[None], values)[0]

    def tokens_of_equal(self, ids_nrc: Tensor, values: SemanticValues) -> Tensor:
        """`tokens` of n images of one size, whose groups are at the same places: (n, r * c,
        width)."""
        told_nrc = ids_nrc >= 0
        rows_r, cols_c = told_nrc.any(2).any(0), told_nrc.any(1).any(0)
        if not bool(rows_r.any()):
            return self.norm.weight.new_zeros(*told_nrc.flatten(1).shape, len(self.norm.weight))
        ids_nhw = ids_nrc[:, rows_r][:, :, cols_c]
        values_nhwv = values(ids_nhw.clamp_min(0)).masked_fill((ids_nhw < 0)[..., None], 0)
        tokens_nhwC = self(values_nhwv.to(self.norm.weight.dtype))
        row_r, col_c = ((some.cumsum(0) - 1).clamp_min(0) for some in (rows_r, cols_c))
        return tokens_nhwC[:, row_r][:, :, col_c].flatten(1, 2)


class _Mix(nn.Module):
    """A residual block: each channel over the neighbours, then the channels of each group."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        with torch.no_grad():  # the identity, nearly
            self.conv.weight.mul_(0.3)[:, :, 2, 2] += 1
        for start in (self.conv.bias, *self.mlp[3].parameters()):
            if start is not None:
                nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
