"""The transform code: four codes a patch that hold its pixels, without a network.

Its parts are known from image coding; their numbers are fitted to pictures in closed form
(`viq.train.tokenizer.transform_fit`):

1. A filter across the borders of patches (`lapped.py`).
2. The mean of a patch, in two digits.
3. A class, which is a choice of basis: each class has the principal directions of patches of its
   kind. The class with the least error is taken.
4. Coefficients in that basis, each rounded to one of a few levels. The class says how many levels
   each has, the strongest most (an allotment by variance). The levels are nested: an earlier code
   holds the coarse digits of all coefficients, a later one refines them.

Code 1 counts class, mean, and one digit of five (320 x 8 x 5 x 5 = 64,000); codes 2 to 4 are the
digits of the coefficients as mixed-radix numbers, the radices being those of the class.

A config may leave the upper ids of the fourth code to meaning (`semantic.py`): of each 2x2 patches
the first then has three codes of detail, and its fourth says what the picture shows there. Ids tell
which they are, so codes can be read without their places.

T = patches of all images, D = values of a patch, S = 4 slots, J = classes, V = values of a patch in
the basis that all classes share, Q = coefficients of a class, l = levels of a coefficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, Grid
from viq.image.patches import PAD_MODES, lengths_of, patchify, unpatchify
from viq.models.tokenizer.class_search import Levels, least_error
from viq.models.tokenizer.lapped import LappedFilter

CODEBOOK = 64_000  # values of a code
_D = 3 * PATCH_SIZE**2
_GROUP = 512  # patches whose bases are at hand at a time: 18 KB each
ENERGY_FLOOR = _D / 127.5**2  # added to energies before their logarithm: a grey level a value


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Shape of a transform code."""

    classes: int = 320  # J
    basis: int = 145  # V; the last direction is the mean of a patch
    coefficients: int = 32  # Q, at most
    levels: int = 40  # l, at most
    means: tuple[int, int] = (8, 5)  # coarse and fine digits of the mean
    detail: int = CODEBOOK  # ids of the fourth code that are detail; those from it on are meaning

    def __post_init__(self) -> None:
        untrusted.whole_number(self.detail, "detail", 1, CODEBOOK)
        untrusted.shape(self, classes=4096, basis=_D, coefficients=256, levels=256)
        object.__setattr__(self, "means", tuple(self.means))
        if len(self.means) != 2 or min(self.means) < 1 or not self.first:
            raise ValueError(
                f"{self.classes} classes and means of {self.means} digits do not fit into one code "
                f"of {CODEBOOK:,}"
            )

    @property
    def first(self) -> int:
        """Values of the digits of coefficients in the first code, at most."""
        return CODEBOOK // (self.classes * self.means[0] * self.means[1])

    @property
    def shares(self) -> bool:
        """Whether the fourth code of every fourth patch is left to meaning."""
        return self.detail < CODEBOOK


def pad_mode_of(config: TransformConfig | None) -> str:
    """How images are padded to whole patches (`patchify`): grey would cost a transform code codes,
    so it has the last pixels again; the paper's encoder has grey."""
    return PAD_MODES[config is not None]


class Indices(NamedTuple):
    """What the codes of patches say."""

    classes_T: Tensor
    coarse_T: Tensor
    fine_T: Tensor
    levels_TQ: Tensor


class Analysed(NamedTuple):
    """Patches of one image, before a class is chosen."""

    values_TV: Tensor  # in the shared basis, less what the digits of the mean say
    energy_T: Tensor  # squared, of the pixels, less the same
    coarse_T: Tensor
    fine_T: Tensor


class TransformCode(nn.Module):
    """Pixels to codes and back; all its numbers are buffers."""

    centre: Tensor
    basis: Tensor
    coarse: Tensor
    fine: Tensor
    directions: Tensor
    values: Tensor
    short_values: Tensor
    radices: Tensor
    window: Tensor

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.config = config
        j, v, q, levels = config.classes, config.basis, config.coefficients, config.levels
        coarse, fine = config.means
        self.lapped = LappedFilter()
        self.register_buffer("centre", torch.zeros(()))  # taken from all values first
        self.register_buffer("basis", torch.zeros(_D, v))  # orthonormal columns
        self.register_buffer("coarse", torch.zeros(coarse))
        self.register_buffer("fine", torch.zeros(coarse, fine))
        self.register_buffer("directions", torch.zeros(j, v, q))  # of classes, in the basis
        self.register_buffer("values", torch.zeros(j, q, levels))  # of levels, ascending
        # The same for patches without a fourth code, whose levels are fewer.
        self.register_buffer("short_values", torch.zeros(j, q, levels))
        # How many digits each code adds to a level: products over codes are the numbers of levels.
        self.register_buffer("radices", torch.ones(j, CODES_PER_PATCH, q))
        self.register_buffer("window", torch.zeros(j, 2))  # log energies of patches of a class

    # Pixels and codes

    @torch.no_grad()
    def ids(
        self,
        patches_TD: Tensor,
        grids_hw: Sequence[Grid],
        meaning: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Codes (T, S), int64 below 64,000, of patches of pixels in [-1, 1], image by image.

        Args:
            meaning: of each image, for a config that shares the fourth code: ids (group rows, group
                columns) from 0, of 2x2 patches; None: 0 everywhere.
        """
        parts = patches_TD.split(lengths_of(grids_hw))
        found = [self._ids(part, grid) for part, grid in zip(parts, grids_hw, strict=True)]
        if self.config.shares:
            for number, (ids_PS, grid) in enumerate(zip(found, grids_hw, strict=True)):
                said = meaning[number].flatten() if meaning is not None else 0
                ids_PS[shared_places(grid).to(ids_PS.device), -1] = self.config.detail + said
        return torch.cat(found) if found else patches_TD.new_zeros(0, CODES_PER_PATCH).long()

    def meaning(self, ids_TS: Tensor) -> Tensor:
        """What fourth codes say (T,): -1 for detail, else ids from 0."""
        return (ids_TS[:, -1] - self.config.detail).clamp_min(-1)

    def dequantize(self, ids_TS: Tensor) -> Tensor:
        """Values (T, V) of patches in the shared basis. Ids that no encoder gives are read as the
        nearest below that it gives."""
        indices = self.unpack(ids_TS)
        classes_T, levels_TQ = indices.classes_T, indices.levels_TQ
        picked_TQ = self.values[classes_T].gather(2, levels_TQ[..., None])[..., 0]
        short_T = self.meaning(ids_TS) >= 0
        if torch.compiler.is_exporting():  # a graph has no branches: both tables are read
            short_TQ = self.short_values[classes_T].gather(2, levels_TQ[..., None])[..., 0]
            picked_TQ = torch.where(short_T[:, None], short_TQ, picked_TQ)
        elif bool(short_T.any()):
            tables_TQl = self.short_values[classes_T[short_T]]
            picked_TQ[short_T] = tables_TQl.gather(2, levels_TQ[short_T, :, None])[..., 0]
        return self.values_of(indices, picked_TQ)

    def values_of(self, indices: Indices, picked_TQ: Tensor) -> Tensor:
        """Values (T, V) of classes, digits of the mean, and coefficients in place of levels."""
        whole = torch.compiler.is_exporting()  # a graph has any number of patches, in one piece
        groups = len(picked_TQ) if whole else _GROUP
        parts = [
            torch.bmm(self.directions[classes_T], part_TQ[..., None])[..., 0]
            for classes_T, part_TQ in zip(
                indices.classes_T.split(groups), picked_TQ.split(groups), strict=True
            )
        ]
        values_TV = parts[0] if len(parts) == 1 else torch.cat(parts)
        mean_T = self.coarse[indices.coarse_T]
        mean_T = mean_T + self.fine[indices.coarse_T, indices.fine_T]
        return torch.cat([values_TV[:, :-1], values_TV[:, -1:] + mean_T[:, None]], 1)

    def classes(self, ids_TS: Tensor) -> Tensor:
        """Classes (T,) of patches."""
        coarse, fine = self.config.means
        head_T = ids_TS[:, 0] // self.config.first
        return (head_T // (coarse * fine)).clamp_max(self.config.classes - 1)

    def pixels(self, values_TV: Tensor, grid: Grid, added_TD: Tensor | None = None) -> Tensor:
        """Pixels (3, H, W), about [-1, 1], of the values of one image.

        Args:
            added_TD: to the patches, before the filter across their borders is undone.
        """
        patches_TD = values_TV @ self.basis.T + self.centre
        patches_TD = patches_TD if added_TD is None else patches_TD + added_TD
        size = (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)
        return self.lapped.inverse(unpatchify(patches_TD, size))

    # Codes and their digits

    def pack(self, indices: Indices, slots: int = CODES_PER_PATCH) -> Tensor:
        """Codes (T, S) of what they say; `slots` 3 for levels of three codes, the fourth is 0."""
        coarse, fine = self.config.means
        classes_T, levels_TQ = indices.classes_T, indices.levels_TQ
        head_T = (classes_T * coarse + indices.coarse_T) * fine + indices.fine_T
        codes = []
        rest_JQ = self.counts(slots)
        for slot, radices_JQ in enumerate(self.radices.long().unbind(1)[:slots]):
            rest_JQ = rest_JQ // radices_JQ
            rest_TQ = rest_JQ[classes_T]
            digits_TQ = levels_TQ // rest_TQ
            levels_TQ = levels_TQ - digits_TQ * rest_TQ
            above_JQ = radices_JQ.flip(1).cumprod(1).flip(1) // radices_JQ  # of digits behind it
            code_T = (digits_TQ * above_JQ[classes_T]).sum(1)
            codes.append(code_T if slot else head_T * self.config.first + code_T)
        codes += [torch.zeros_like(head_T)] * (CODES_PER_PATCH - slots)
        return torch.stack(codes, 1)

    def unpack(self, ids_TS: Tensor, slots_T: Tensor | None = None) -> Indices:
        """What codes (T, S) say; levels of three codes where the fourth is meaning.

        Args:
            slots_T: how many codes of each patch to read; None: all of detail.
        """
        coarse, fine = self.config.means
        head_T, first_T = ids_TS[:, 0] // self.config.first, ids_TS[:, 0] % self.config.first
        classes_T = self.classes(ids_TS)
        if slots_T is None:
            slots_T = CODES_PER_PATCH - (self.meaning(ids_TS) >= 0).long()
        levels_TQ = torch.zeros(
            ids_TS.shape[0], self.config.coefficients, dtype=torch.long, device=ids_TS.device
        )
        for slot, radices_TQ in enumerate(self._radices(classes_T)):
            code_T = ids_TS[:, slot] if slot else first_T
            code_T = torch.minimum(code_T, radices_TQ.prod(1) - 1)
            digits = []
            for radix_T in reversed(radices_TQ.T):
                digits.append(code_T % radix_T)
                code_T = code_T // radix_T
            refined_TQ = levels_TQ * radices_TQ + torch.stack(digits[::-1], 1)
            levels_TQ = torch.where((slot < slots_T)[:, None], refined_TQ, levels_TQ)
        return Indices(classes_T, head_T // fine % coarse, head_T % fine, levels_TQ)

    # How a patch is coded

    def _ids(self, patches_TD: Tensor, grid: Grid) -> Tensor:
        """Codes of one image."""
        seen = self.analyse(patches_TD, grid)
        whole = Levels(self.values, self.counts(CODES_PER_PATCH))
        if not self.config.shares:
            return self.pack(self._chosen(seen, [whole], torch.zeros_like(seen.coarse_T)))
        short = Levels(self.short_values, self.counts(CODES_PER_PATCH - 1))
        short_T = torch.zeros_like(seen.coarse_T)
        short_T[shared_places(grid).to(short_T.device)] = 1
        found = self._chosen(seen, [whole, short], short_T)
        ids_TS = torch.empty_like(found.levels_TQ[:, :1]).expand(-1, CODES_PER_PATCH).clone()
        for number in range(2):
            rows = (short_T == number).nonzero()[:, 0]
            part = Indices(*(each[rows] for each in found))
            ids_TS[rows] = self.pack(part, CODES_PER_PATCH - number)
        return ids_TS

    def analyse(self, patches_TD: Tensor, grid: Grid) -> Analysed:
        """What one image, patches of pixels in [-1, 1], gives to choose classes for."""
        values_TV, energy_T = self._projected(patches_TD, grid)
        coarse_T, fine_T = self.mean_digits(values_TV[:, -1].contiguous())
        mean_T = self.coarse[coarse_T] + self.fine[coarse_T, fine_T]
        energy_T = energy_T - values_TV[:, -1].square()
        values_TV = torch.cat([values_TV[:, :-1], values_TV[:, -1:] - mean_T[:, None]], 1)
        return Analysed(values_TV, energy_T + values_TV[:, -1].square(), coarse_T, fine_T)

    def chosen(self, seen: Analysed, tables_JQl: Tensor, slots: int) -> Tensor:
        """Codes (T, S) of patches, with the class of least error for so many codes.

        Args:
            tables_JQl: levels of coefficients for `slots` codes.
        """
        levels = Levels(tables_JQl, self.counts(slots))
        return self.pack(self._chosen(seen, [levels], torch.zeros_like(seen.coarse_T)), slots)

    def _chosen(self, seen: Analysed, kinds: Sequence[Levels], kind_T: Tensor) -> Indices:
        """What patches are coded as, by levels of which some have these, some those."""
        log_T = (seen.energy_T + ENERGY_FLOOR).log()
        classes_T, levels_TQ = least_error(
            seen.values_TV, log_T, self.directions, self.window, kinds, kind_T
        )
        return Indices(classes_T, seen.coarse_T, seen.fine_T, levels_TQ)

    def unrounded(self, patches_TD: Tensor, grid: Grid) -> Tensor:
        """Values (T, V) of one image in the shared basis, in the units of `dequantize`: what its
        codes round, and what they leave out."""
        return self._projected(patches_TD, grid)[0]

    def _projected(self, patches_TD: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Values (T, V) of one image in the basis, and the energy (T,) of its patches."""
        size = (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)
        pixels = self.lapped(unpatchify(patches_TD.to(self.basis.dtype), size))
        values, energies = [], []
        for part_TD in patchify(pixels).split(_GROUP):  # which stay in a processor's cache
            offset_TD = part_TD - self.centre
            values.append(offset_TD @ self.basis)
            energies.append(offset_TD.square_().sum(1))
        return torch.cat(values), torch.cat(energies)

    def mean_digits(self, mean_T: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine digit (T,) of means."""
        coarse, fine = self.coarse, self.fine
        coarse_T = torch.bucketize(mean_T, (coarse[1:] + coarse[:-1]) / 2)
        between = (fine[:, 1:] + fine[:, :-1]) / 2
        fine_T = ((mean_T - coarse[coarse_T])[:, None] > between[coarse_T]).sum(1)
        return coarse_T, fine_T

    def _radices(self, classes_T: Tensor) -> Sequence[Tensor]:
        """Radices (T, Q), int64, of each code."""
        return self.radices.long()[classes_T].unbind(1)

    def counts(self, slots: int) -> Tensor:
        """Levels (J, Q), int64, that each coefficient has in so many codes."""
        return self.radices[:, :slots].long().prod(1)


def shared_places(grid: Grid) -> Tensor:
    """Numbers of the patches of a grid that lie in even rows and even columns, in raster order."""
    rows, cols = torch.arange(0, grid[0], 2), torch.arange(0, grid[1], 2)
    return (rows[:, None] * grid[1] + cols).flatten()
