"""What a tokenizer needs for a variable number of codes a patch: fewer than four, and more.

Codes of a transform code are nested, so the first one, two or three of a patch say the same more
coarsely, if they are read with levels of their own. What four leave, measured against the decoder's
own output, goes through the lapped filter and an orthonormal basis into a stream of 16-bit words
(`refinement_stream.py`), as many as a patch is given. Decoding adds it to what the decoder paints.

All numbers are fitted in closed form (`viq.train.tokenizer.refinement_fit`). They are no part of a
tokenizer's fingerprint, as ids mean the same without them; codes with counts carry a digest of
these numbers and of the decoder that they refine.

T = patches, S = 4 slots, V = values of a patch in the basis of the code, D = values of a patch,
K = directions, J = classes, Q = coefficients of a class, l = levels, W = words of a patch at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.counts import PALETTE
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE
from viq.models.tokenizer.refinement_stream import (
    BUCKETS,
    LEVELS,
    MAGNITUDES,
    STEPS,
    Stream,
    cuts_of,
)
from viq.models.tokenizer.transform_code import Indices, TransformCode, TransformConfig

_D = 3 * PATCH_SIZE**2
_DIGIT = 128  # whole numbers are kept as two digits, which half precision holds exactly
SHORT = 2  # counts of codes that have tables here: 1 and 2


@dataclass(frozen=True, kw_only=True)
class RefinementConfig:
    """Shape of a refinement."""

    directions: int = 384  # K
    words: int = 64  # W

    def __post_init__(self) -> None:
        untrusted.shape(self, directions=_D, words=PALETTE - 1 - CODES_PER_PATCH)


class Refinement(nn.Module):
    """Fewer than four codes, and more; all its numbers are buffers."""

    basis: Tensor
    sizes: Tensor
    frequencies: Tensor
    expected: Tensor
    offsets: Tensor
    modes: Tensor
    short_values: Tensor

    def __init__(self, config: RefinementConfig, code: TransformConfig) -> None:
        super().__init__()
        self.config = config
        j, k, cuts = code.classes, config.directions, len(cuts_of(config.directions))
        self.register_buffer("basis", torch.zeros(_D, k))  # orthonormal columns
        self.register_buffer("sizes", torch.zeros(j, k))  # these five as in `Stream`
        self.register_buffer("frequencies", torch.zeros(BUCKETS, LEVELS, MAGNITUDES, 2))
        self.register_buffer("expected", torch.zeros(BUCKETS, 2))
        self.register_buffer("offsets", torch.zeros(BUCKETS, MAGNITUDES))
        self.register_buffer("modes", torch.zeros(config.words, STEPS * cuts, 2))
        # Levels of coefficients in patches with one and with two codes.
        self.register_buffer("short_values", torch.zeros(SHORT, j, code.coefficients, code.levels))

    def stream(self) -> Stream:
        """The coder of coefficients, as the numbers are now."""
        return Stream(
            self.sizes.round().long().cpu().numpy(),
            from_digits(self.frequencies),
            from_digits(self.expected),
            self.offsets.float().cpu().numpy(),
            from_digits(self.modes),
        )

    def coefficients(self, patches_TD: Tensor) -> Tensor:
        """Of patches (T, D) that went through the lapped filter, (T, K)."""
        return patches_TD @ self.basis

    def patches(self, coefficients_TK: Tensor) -> Tensor:
        """Patches (T, D) of coefficients, before the lapped filter is undone."""
        return coefficients_TK @ self.basis.T

    # Fewer than four codes

    def tables(self, code: TransformCode, count: int) -> Tensor:
        """Levels (J, Q, l) of coefficients of which `count` codes are known."""
        if count == CODES_PER_PATCH:
            return code.values
        return code.short_values if count > SHORT else self.short_values[count - 1]

    def values(self, code: TransformCode, ids_TS: Tensor, count: int) -> Tensor:
        """Values (T, V) that the first `count` codes of patches say. Ids that no encoder gives are
        read as the nearest below that it gives."""
        found = indices(code, ids_TS, count)
        table_TQl = self.tables(code, count)[found.classes_T]
        picked_TQ = table_TQl.gather(2, found.levels_TQ[..., None])[..., 0]
        return code.values_of(found, picked_TQ)

    def completed(self, code: TransformCode, ids_TS: Tensor, count: int, slots: int) -> Tensor:
        """Ids (T, S) whose first `count` are kept and whose others, up to `slots`, say as nearly as
        they can what these say alone: so a reader of four codes need not know of counts."""
        found = indices(code, ids_TS, count)
        table_TQl = self.tables(code, count)[found.classes_T]
        said_TQ1 = table_TQl.gather(2, found.levels_TQ[..., None])
        full_TQl = self.tables(code, slots)[found.classes_T]
        rest_TQ = (code.counts(slots) // code.counts(count))[found.classes_T]
        nearest_TQ = nearest_levels(said_TQ1[..., 0], found.levels_TQ, full_TQl, rest_TQ)
        return code.pack(found._replace(levels_TQ=nearest_TQ), slots)


def nearest_levels(said_TQ: Tensor, levels_TQ: Tensor, full_TQl: Tensor, rest_TQ: Tensor) -> Tensor:
    """Of the levels (T, Q) that each coarser level stands for, the one whose value is nearest.

    Args:
        said_TQ: values of the coarser levels.
        levels_TQ: their numbers.
        full_TQl: values of all levels.
        rest_TQ: how many levels one of the coarser ones stands for.
    """
    levels = torch.arange(full_TQl.shape[2], device=full_TQl.device)
    apart = (full_TQl - said_TQ[..., None]).abs()
    other = levels // rest_TQ[..., None] != levels_TQ[..., None]
    return apart.masked_fill(other, torch.inf).argmin(2)


def indices(code: TransformCode, ids_TS: Tensor, count: int) -> Indices:
    """What the first `count` codes of patches say."""
    return code.unpack(ids_TS, torch.full_like(ids_TS[:, 0], count))


def to_digits(numbers: np.ndarray) -> Tensor:
    """Whole numbers from 0 to 128**2 as two digits, (..., 2)."""
    high = np.minimum(numbers // _DIGIT, _DIGIT)
    return torch.from_numpy(np.stack([high, numbers - high * _DIGIT], -1)).float()


def from_digits(digits: Tensor) -> np.ndarray:
    """Whole numbers of digits (..., 2), int64."""
    whole = digits.float().round().long()
    return (whole[..., 0] * _DIGIT + whole[..., 1]).cpu().numpy()
