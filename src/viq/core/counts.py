"""Small whole numbers of the patches of an image to few bytes, and back.

The number of a patch is like those of its neighbours. An adaptive range coder (the byte-wise one of
LZMA) counts, for each size of the numbers to the left and above together, how often each number has
come so far. Nothing is fitted, so a file needs no model to be read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

import numpy as np

from viq.core.errors import CodesError

_TOP, _WHOLE = 1 << 24, (1 << 32) - 1
_CONTEXTS = (3, 4, 5, 7, 9, 12, 16, 22, 30, 42, 60, 90)  # sums of neighbours, from each on
_GAIN, _MOST = 32, 1 << 13  # what a number adds to its weight; weights are halved beyond


def pack_counts(counts: np.ndarray) -> bytes:
    """Bytes of counts (rows, cols), uint8: the largest, then a range code."""
    largest = int(counts.max(initial=0))
    coder, table = _Encoder(), counts.tolist()

    def next_of(row: int, col: int, weights: list[int], total: int) -> int:
        number = table[row][col]
        coder.put(sum(weights[:number]), weights[number], total)
        return number

    _each(counts.shape[0], counts.shape[1], largest, next_of)
    return bytes([largest]) + coder.finish()


def unpack_counts(data: bytes, rows: int, cols: int) -> np.ndarray:
    """Counts (rows, cols), uint8, of what `pack_counts` gave; of any other bytes, some.

    Raises:
        CodesError: no bytes.
    """
    if not data:
        raise CodesError("counts of codes are missing: the data is damaged")
    coder = _Decoder(data[1:])

    def next_of(row: int, col: int, weights: list[int], total: int) -> int:
        ends = list(accumulate(weights))
        number = bisect_right(ends, coder.look(total))
        coder.take(ends[number] - weights[number], weights[number])
        return number

    return np.array(_each(rows, cols, data[0], next_of), np.uint8).reshape(rows, cols)


def _each(
    rows: int, cols: int, largest: int, next_of: Callable[[int, int, list[int], int], int]
) -> list[list[int]]:
    """Go through a grid in raster order; `next_of` gives the number of a place from the weights
    that numbers have there, and their sum."""
    tables = [_prior(context, largest) for context in range(len(_CONTEXTS) + 1)]
    totals = [sum(weights) for weights in tables]
    above, found = [0] * cols, []
    for row in range(rows):
        line, left = [], above[0] if cols else 0
        for col in range(cols):
            context = bisect_right(_CONTEXTS, left + above[col])
            weights = tables[context]
            left = next_of(row, col, weights, totals[context])
            line.append(left)
            weights[left] += _GAIN
            totals[context] += _GAIN
            if totals[context] > _MOST:
                weights[:] = [(weight + 1) // 2 for weight in weights]
                totals[context] = sum(weights)
        found.append(line)
        above = line
    return found


def _prior(context: int, largest: int) -> list[int]:
    """Weights before any number has come: more for what is like the neighbours."""
    usual = (_CONTEXTS[context - 1] + 1) // 2 if context else 1
    return [1 + 16 // (1 + abs(number - usual)) for number in range(largest + 1)]


class _Encoder:
    def __init__(self) -> None:
        self._low, self._range = 0, _WHOLE
        self._kept, self._waiting, self._out = 0, 0, bytearray()

    def put(self, start: int, size: int, total: int) -> None:
        """The next symbol has `size` of `total`, from `start` on."""
        self._range //= total
        self._low += start * self._range
        self._range *= size
        while self._range < _TOP:
            self._range <<= 8
            self._shift()

    def finish(self) -> bytes:
        """All bytes, less zeros at the end and the first, which is always 0."""
        for _ in range(5):
            self._shift()
        return bytes(self._out[1:]).rstrip(b"\0")

    def _shift(self) -> None:
        """Give the uppermost byte, once no carry can reach it."""
        if self._low < 0xFF000000 or self._low > _WHOLE:
            carry = self._low >> 32
            self._out.append((self._kept + carry) & 0xFF)
            self._out += bytes([(0xFF + carry) & 0xFF]) * self._waiting
            self._waiting, self._kept = 0, (self._low >> 24) & 0xFF
        else:
            self._waiting += 1
        self._low = (self._low & 0x00FFFFFF) << 8


class _Decoder:
    """Bytes that are missing at the end are read as 0."""

    def __init__(self, data: bytes) -> None:
        self._bytes, self._range = iter(data), _WHOLE
        self._code = 0
        for _ in range(4):
            self._code = (self._code << 8) | next(self._bytes, 0)

    def look(self, total: int) -> int:
        """Where in `total` the next symbol lies."""
        self._range //= total
        return min(self._code // self._range, total - 1)

    def take(self, start: int, size: int) -> None:
        """Go on behind the symbol that was found there."""
        self._code = max(0, self._code - start * self._range)
        self._range *= size
        while self._range < _TOP:
            self._code = ((self._code << 8) | next(self._bytes, 0)) & _WHOLE
            self._range <<= 8
