"""Ids that a patch does not have, made from those that it has.

A transform code is nested: its first codes say each coefficient as a level of a few, the codes
after them as a level of more. So what the first say stands for several levels of the whole, and one
of them is nearest to it. Which one is a table of integers here, made from the numbers of a
tokenizer (`viq.train.counted_tables`): who reads codes without it gets the ids that it gives.

T = patches, S = 4 slots, J = classes, Q = coefficients of a class.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from viq.core.types import CODES_PER_PATCH, ViqError


class Head(NamedTuple):
    """How the first code of a patch is put together.

    Attributes:
        means: values of a mean.
        first: values of the rest of the code, at most.
    """

    means: int
    first: int


class Completion:
    """Fills in the ids beyond the counts of patches.

    Args:
        radices: (J, S, Q), from 1 on: how many digits each code adds to the level of a coefficient.
        nearest: for each of `CASES`, class, coefficient and level that so many codes say, in this
            order, the place of the nearest level among those that it stands for.

    Raises:
        ViqError: numbers that do not fit.
    """

    CASES = ((4, 1), (4, 2), (4, 3), (3, 1), (3, 2))  # slots of a patch, and codes of it

    def __init__(self, radices: np.ndarray, nearest: np.ndarray, head: Head) -> None:
        self._radices, self._head = radices.astype(np.int64), head
        if radices.ndim != 3 or radices.shape[1] != CODES_PER_PATCH or radices.min() < 1:
            raise ViqError("an entropy model without digits of codes: copy it again")
        self._nearest, self._starts, end = nearest.astype(np.int64), {}, 0
        for slots, count in self.CASES:
            known = self._radices[:, :count].prod(1)
            ends = end + known.cumsum().reshape(known.shape)
            self._starts[slots, count] = ends - known
            end = int(ends[-1, -1])
        if nearest.shape != (end,):
            raise ViqError(
                f"an entropy model of {nearest.shape} levels, expected {end}: copy it again"
            )

    def complete(self, ids_TS: np.ndarray, counts_T: np.ndarray, slots_T: np.ndarray) -> np.ndarray:
        """Ids (T, S), uint16. Those that no encoder gives are read as the nearest below.

        Args:
            counts_T, slots_T: as in `viq.core.codes.Codes`.
        """
        ids_TS, counts_T = ids_TS.copy(), np.maximum(counts_T, 1)
        for slots, count in self.CASES:
            rows = np.flatnonzero((slots_T == slots) & (counts_T == count))
            if len(rows):
                ids_TS[rows, count:slots] = self._rest(ids_TS[rows], slots, count)
        return ids_TS

    def _rest(self, ids_TS: np.ndarray, slots: int, count: int) -> np.ndarray:
        """Ids (T, slots - count) behind the first."""
        ids_TS = ids_TS.astype(np.int64)
        head_T, first_T = np.divmod(ids_TS[:, 0], self._head.first)
        classes_T = np.minimum(head_T // self._head.means, len(self._radices) - 1)
        radices_STQ = self._radices[classes_T].swapaxes(0, 1)
        levels_TQ = np.zeros(radices_STQ.shape[1:], np.int64)
        for slot in range(count):
            digits_TQ = _digits(ids_TS[:, slot] if slot else first_T, radices_STQ[slot])
            levels_TQ = levels_TQ * radices_STQ[slot] + digits_TQ
        left_TQ = self._nearest[self._starts[slots, count][classes_T] + levels_TQ]
        rest_TQ, codes = radices_STQ[count:slots].prod(0), []
        for radices_TQ in radices_STQ[count:slots]:
            rest_TQ = rest_TQ // radices_TQ
            digits_TQ, left_TQ = np.divmod(left_TQ, rest_TQ)
            codes.append(_code(digits_TQ, radices_TQ))
        return np.stack(codes, 1)


def _digits(codes_T: np.ndarray, radices_TQ: np.ndarray) -> np.ndarray:
    """Digits (T, Q) of mixed-radix numbers, the first one the most significant."""
    codes_T = np.minimum(codes_T, radices_TQ.prod(1) - 1)
    digits_TQ = np.empty_like(radices_TQ)
    for place in range(radices_TQ.shape[1] - 1, -1, -1):
        codes_T, digits_TQ[:, place] = np.divmod(codes_T, radices_TQ[:, place])
    return digits_TQ


def _code(digits_TQ: np.ndarray, radices_TQ: np.ndarray) -> np.ndarray:
    """Mixed-radix numbers (T,) of digits; digits that are too large give any number."""
    code_T = np.zeros(len(digits_TQ), np.int64)
    for digit_T, radix_T in zip(digits_TQ.T, radices_TQ.T, strict=True):
        code_T = code_T * radix_T + np.minimum(digit_T, radix_T - 1)
    return code_T
