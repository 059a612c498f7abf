"""How many codes each patch of an image has, and these numbers to few bytes and back.

A count up to 127 is of the four ids of a patch and of the words behind them. One of `PALETTE` and
more is of a patch that has its first id alone and then, instead of what refines it, a palette with
an index a pixel: `PALETTE` and how many words that takes.

The count of a patch is like those of its neighbours. An adaptive range coder (the byte-wise one of
LZMA) counts, for each size of the numbers to the left and above together, how often each number has
come so far. Where there are palettes, it is told first of each patch whether it has one, and
their numbers are counted apart. Nothing is fitted, so a file needs no model to be read.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Protocol

import numpy as np

from viq.core.errors import CodesError

PALETTE = 128

_TOP, _WHOLE = 1 << 24, (1 << 32) - 1
_CONTEXTS = (3, 4, 5, 7, 9, 12, 16, 22, 30, 42, 60, 90)  # sums of neighbours, from each on
_GAIN, _MOST = 32, 1 << 13  # what a number adds to its weight; weights are halved beyond


def ids_counted(counts: np.ndarray) -> np.ndarray:
    """How many of a patch's ids count, int64; those of no palette may be more than there are."""
    return np.where(counts >= PALETTE, 1, counts.astype(np.int64))


def codes_counted(counts: np.ndarray) -> np.ndarray:
    """How many codes patches have, words included, int64."""
    return np.where(counts >= PALETTE, 1 - PALETTE, 0) + counts.astype(np.int64)


def pack_counts(counts: np.ndarray) -> bytes:
    """Bytes of counts (rows, cols), uint8: the largest number, `PALETTE` more if there are
    palettes, then a range code."""
    numbers, palettes = counts % PALETTE, counts >= PALETTE
    head = int(numbers.max(initial=0)) + PALETTE * int(palettes.any())
    coder, table = _Encoder(), counts.tolist()

    def symbol(row: int, col: int, weights: list[int], total: int, *, palette: bool) -> int:
        number = table[row][col] // PALETTE if palette else table[row][col] % PALETTE
        coder.put(sum(weights[:number]), weights[number], total)
        return number

    _each(counts.shape[0], counts.shape[1], head, symbol)
    return bytes([head]) + coder.finish()


def unpack_counts(data: bytes, rows: int, cols: int) -> np.ndarray:
    """Counts (rows, cols), uint8, of what `pack_counts` gave; of any other bytes, some.

    Raises:
        CodesError: no bytes.
    """
    if not data:
        raise CodesError("counts of codes are missing: the data is damaged")
    coder = _Decoder(data[1:])

    def symbol(row: int, col: int, weights: list[int], total: int, *, palette: bool) -> int:
        ends = list(accumulate(weights))
        number = bisect_right(ends, coder.look(total))
        coder.take(ends[number] - weights[number], weights[number])
        return number

    return np.array(_each(rows, cols, data[0], symbol), np.uint8).reshape(rows, cols)


class _Symbol(Protocol):
    def __call__(self, row: int, col: int, weights: list[int], total: int, *, palette: bool) -> int:
        """Code what a place has, given the weights of all that it might have, and their sum.

        Args:
            palette: whether it has one; else its number.
        """
        ...


def _each(rows: int, cols: int, head: int, symbol: _Symbol) -> list[list[int]]:
    """Go through a grid in raster order; gives counts."""
    some, largest = divmod(head, PALETTE)
    contexts = range(len(_CONTEXTS) + 1)
    tables = [_Weights(_prior(c, largest)) for _ in range(1 + some) for c in contexts]
    flags = [_Weights([1, 1]) for _ in range(3)]
    above, found = [0] * cols, []
    for row in range(rows):
        line, left = [], above[0] if cols else 0
        for col in range(cols):
            flag, up = 0, above[col]
            if some:
                weights = flags[left // PALETTE + up // PALETTE]
                flag = symbol(row, col, weights.each, weights.total, palette=True)
                weights.add(flag)
            near = bisect_right(_CONTEXTS, left % PALETTE + up % PALETTE)
            weights = tables[flag * len(contexts) + near]
            number = symbol(row, col, weights.each, weights.total, palette=False)
            weights.add(number)
            left = PALETTE * flag + number
            line.append(left)
        found.append(line)
        above = line
    return found


class _Weights:
    """How often each symbol of a context has come; what was long ago counts less."""

    def __init__(self, each: list[int]) -> None:
        self.each, self.total = each, sum(each)

    def add(self, number: int) -> None:
        self.each[number] += _GAIN
        self.total += _GAIN
        if self.total > _MOST:
            self.each[:] = [(weight + 1) // 2 for weight in self.each]
            self.total = sum(self.each)


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
