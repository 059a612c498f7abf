"""A range coder for many short streams at once, in numpy: each gives whole 16-bit words.

Symbols have frequencies that sum to 2**14. Coder and decoder compute with integers alone, so every
machine gets the same words. A stream of symbols that carry I bits takes at most floor(I / 16) + 1
words; words that are missing at its end are read as 0. Any words can be decoded, to something.

The method is that of Martin (1979), with a carry that is added to words already given.

N = streams.
"""

from __future__ import annotations

import numpy as np

TOTAL_BITS = 14
TOTAL = 1 << TOTAL_BITS  # frequencies of the symbols at one place sum to it
WORD_BITS = 16
_STATE_BITS, _WORD = 48, (1 << WORD_BITS) - 1
_MASK = np.uint64((1 << _STATE_BITS) - 1)
_LEAST = np.uint64(1 << (_STATE_BITS - WORD_BITS))  # of a range; below it a word is given
_SHIFT, _OUT = np.uint64(WORD_BITS), np.uint64(_STATE_BITS - WORD_BITS)
_PART = np.uint64(TOTAL_BITS)


class RangeEncoder:
    """Symbols of N streams to words.

    Args:
        streams: N.
        words: that a stream may take, at most; one more is an `IndexError`.
    """

    def __init__(self, streams: int, words: int) -> None:
        self._low = np.zeros(streams, np.uint64)
        self._range = np.full(streams, 1 << _STATE_BITS, np.uint64)
        self._words = np.zeros((streams, words), np.int64)
        self._count = np.zeros(streams, np.int64)

    def put(self, rows: slice | np.ndarray, start: np.ndarray, size: np.ndarray) -> None:
        """The next symbol of some streams: `size` of `TOTAL`, from `start` on, each above 0."""
        part = self._range[rows] >> _PART
        low = self._low[rows] + part * start.astype(np.uint64)
        width = part * size.astype(np.uint64)
        count = self._count[rows]
        carry = np.flatnonzero(low >> np.uint64(_STATE_BITS))
        numbers = np.arange(len(self._low))[rows]
        self._words[numbers[carry], count[carry] - 1] += 1
        low &= _MASK
        short = np.flatnonzero(width < _LEAST)
        self._words[numbers[short], count[short]] = (low[short] >> _OUT).astype(np.int64)
        low[short] = (low[short] << _SHIFT) & _MASK
        width[short] <<= _SHIFT
        count[short] += 1
        self._low[rows], self._range[rows], self._count[rows] = low, width, count

    def code(self, rows: slice | np.ndarray, starts: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """The next symbols (n,) of some streams, from tables; gives them.

        Args:
            starts: where each symbol begins in `TOTAL`, and where the last ends (n, symbols + 1).
        """
        each = np.arange(len(symbols))
        start = starts[each, symbols]
        self.put(rows, start, starts[each, symbols + 1] - start)
        return symbols

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Words (N, words), uint16, and how many of them each stream has (N,)."""
        last = (self._low + _LEAST - np.uint64(1)) >> _OUT  # the next multiple, within the range
        needed = np.flatnonzero(last)
        self._words[needed, self._count[needed]] += last[needed].astype(np.int64)
        self._count[needed] += 1
        for place in range(self._words.shape[1] - 1, 0, -1):  # carries go to the word before
            self._words[:, place - 1] += self._words[:, place] >> WORD_BITS
        return (self._words & _WORD).astype(np.uint16), self._count


class RangeDecoder:
    """Words (N, words), uint16, back to symbols. Beyond them words are 0."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = np.pad(words, ((0, 0), (0, 4))).astype(np.uint64)
        self._code = np.zeros(len(words), np.uint64)
        for place in range(_STATE_BITS // WORD_BITS):
            self._code = (self._code << _SHIFT) | self._words[:, place]
        self._range = np.full(len(words), 1 << _STATE_BITS, np.uint64)
        self._next = np.full(len(words), _STATE_BITS // WORD_BITS, np.int64)

    def look(self, rows: slice | np.ndarray) -> np.ndarray:
        """Where in `TOTAL` the next symbols of some streams lie, int64."""
        place = self._code[rows] // (self._range[rows] >> _PART)
        return np.minimum(place, np.uint64(TOTAL - 1)).astype(np.int64)

    def take(self, rows: slice | np.ndarray, start: np.ndarray, size: np.ndarray) -> None:
        """Go on behind the symbols that were found there."""
        part = self._range[rows] >> _PART
        code = (self._code[rows] - part * start.astype(np.uint64)) & _MASK
        width = part * size.astype(np.uint64)
        place = self._next[rows]
        short = np.flatnonzero(width < _LEAST)
        numbers = np.arange(len(self._code))[rows][short]
        fresh = self._words[numbers, np.minimum(place[short], self._words.shape[1] - 1)]
        code[short] = ((code[short] << _SHIFT) & _MASK) | fresh
        width[short] <<= _SHIFT
        place[short] += 1
        self._code[rows], self._range[rows], self._next[rows] = code, width, place

    def code(
        self, rows: slice | np.ndarray, starts: np.ndarray, symbols: np.ndarray | None = None
    ) -> np.ndarray:
        """As that of `RangeEncoder`; gives the symbols that were found, whatever it is given."""
        del symbols
        found = (self.look(rows)[:, None] >= starts[:, 1:-1]).sum(1)
        each = np.arange(len(found))
        start = starts[each, found]
        self.take(rows, start, starts[each, found + 1] - start)
        return found
