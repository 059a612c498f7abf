"""Coefficients of patches as streams of 16-bit words, as many words as a patch is given.

A stream begins with its mode: one of the steps that coefficients are divided by, and how many are
coded; the others are 0. Coefficients come in the order of their usual size in patches of that
class. The probability of a magnitude depends on that size against the step (its bucket), and on
whether the coefficients before were larger or smaller than expected (its level). All that
probabilities depend on is made of integers, so any machine reads what any machine wrote.

The words are those of `viq.codec.range_coder`; they fill whole words, so a mode is searched for
each number of words.

N = patches, K = coefficients, J = classes of patches, W = words of a patch, at most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from viq.codec.range_coder import TOTAL, WORD_BITS, RangeDecoder, RangeEncoder

STEPS = 30  # a quarter of an octave apart
BUCKETS, LEVELS, MAGNITUDES = 40, 9, 16
UNIT = 256  # a magnitude of 1 in the sums of contexts
_LARGEST_STEP = 26  # in quarters of octaves of grey levels: 90 of them
_NEUTRAL = 28  # the bucket where the usual size is the step
_ROUNDING = 0.3  # added before rounding down: small magnitudes cost more bits than they are worth
_CHUNK = 256  # patches searched at a time
_PRIOR, _FLOOR, _FORGET = 2 * UNIT, 24, 4
_MARGIN = 0.05  # bits
_BITS_OF_ONE = 3  # of a magnitude above 0, at least: steps that need more than there is are left
_RATIOS = 4096
# Ratios of what was seen to what was expected, in 1/256: half octaves around 1.
_EDGES = np.array([76, 108, 152, 215, 304, 431, 609, 861])
_LEVEL_OF = np.searchsorted(_EDGES, np.arange(_RATIOS), side="right").astype(np.int32)


def step_sizes() -> np.ndarray:
    """Steps (STEPS,), float32, in values of pixels in [-1, 1]."""
    quarters = _LARGEST_STEP - np.arange(STEPS)
    return (2.0 ** (quarters / 4) / 127.5).astype(np.float32)


def cuts_of(coefficients: int) -> np.ndarray:
    """How many coefficients a mode may code: powers of two from 4 on, and all."""
    return np.array([*(2**k for k in range(2, 20) if 2**k < coefficients), coefficients])


class Context:
    """How large the coefficients of patches were so far, against what was expected."""

    def __init__(self, patches: int) -> None:
        self._seen = np.full(patches, _PRIOR, np.int32)
        self._expected = np.full(patches, _PRIOR, np.int32)

    def levels(self, rows: slice = slice(None)) -> np.ndarray:
        """Levels of the next coefficients."""
        ratio = ((self._seen[rows] + _FLOOR) << 8) // (self._expected[rows] + _FLOOR)
        return _LEVEL_OF[np.minimum(ratio, _RATIOS - 1)]

    def update(self, magnitudes: np.ndarray, expected: np.ndarray, rows: slice) -> None:
        """Take in coefficients: their magnitudes, and what their buckets expect in `UNIT`s."""
        seen, before = self._seen[rows], self._expected[rows]
        self._seen[rows] = seen - (seen >> _FORGET) + magnitudes * UNIT
        self._expected[rows] = before - (before >> _FORGET) + expected

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some of the patches."""
        self._seen, self._expected = self._seen[rows], self._expected[rows]


class Stream:
    """Coefficients (N, K), float32, of patches of known classes, to words and back.

    Args:
        sizes: (J, K) integers, the usual size of each coefficient in quarters of octaves of grey
            levels.
        frequencies: (BUCKETS, LEVELS, MAGNITUDES), of magnitudes; all but the first are even.
        expected: (BUCKETS,) integers, the mean magnitude in `UNIT`s.
        offsets: (BUCKETS, MAGNITUDES) float32, from a magnitude to the mean of what it stands for.
        modes: frequencies (W, STEPS * cuts) of modes, by the number of words.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        frequencies: np.ndarray,
        expected: np.ndarray,
        offsets: np.ndarray,
        modes: np.ndarray,
    ) -> None:
        self.order = np.argsort(-sizes, axis=1, kind="stable")
        self.sizes = np.take_along_axis(sizes, self.order, 1).astype(np.int32)
        self.cuts = cuts_of(sizes.shape[1])
        self.steps = step_sizes()
        self.starts, self.mode_starts = _starts(frequencies), _starts(modes)
        signs = np.arange(MAGNITUDES) > 0
        self.bits = (signs - np.log2(frequencies / TOTAL)).astype(np.float32)
        self.mode_bits = -np.log2(modes / TOTAL)
        self.expected, self.offsets = expected.astype(np.int32), offsets.astype(np.float32)
        self.words = len(modes)

    # Which mode is best

    def search(
        self, values_NK: np.ndarray, classes_N: np.ndarray, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """How much squared error 0 to `most` words take away, (N, most + 1), float32, and the modes
        that do it, int16; more words never take away less."""
        gains = np.zeros((len(values_NK), most + 1), np.float32)
        modes = np.zeros((len(values_NK), most + 1), np.int16)
        for start in range(0, len(values_NK), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            walk = Walk(self, values_NK[chunk], classes_N[chunk], WORD_BITS * most)
            gains_Nm, bits_Nm = walk.run()
            for words in range(1, most + 1):
                room = WORD_BITS * words - _MARGIN - self.mode_bits[words - 1]
                fitting = np.where(bits_Nm <= room, gains_Nm, -np.inf)
                best = fitting.argmax(1)
                gain = np.take_along_axis(fitting, best[:, None], 1)[:, 0]
                better = gain > gains[chunk, words - 1]
                gains[chunk, words] = np.where(better, gain, gains[chunk, words - 1])
                modes[chunk, words] = np.where(better, best, -1)
        return gains, modes

    # Words

    def encode(
        self, values_NK: np.ndarray, classes_N: np.ndarray, words_N: np.ndarray, modes_N: np.ndarray
    ) -> np.ndarray:
        """Words of all patches, one after another, uint16: `words_N` of each, which is above 0, in
        the mode that `search` has found for it."""
        if not len(values_NK):
            return np.zeros(0, np.uint16)
        steps, cuts = np.divmod(modes_N.astype(np.int64), len(self.cuts))
        rank = np.argsort(-self.cuts[cuts], kind="stable")
        values, buckets = self._arranged(values_NK, classes_N, steps)
        coder = RangeEncoder(len(rank), int(words_N.max()) + 2)
        coder.code(slice(None), self.mode_starts[words_N[rank] - 1], modes_N[rank])
        magnitudes, negative = self._magnitudes(values, steps), values < 0
        context, longest = Context(len(rank)), self.cuts[cuts][rank]
        for place in range(int(longest.max())):
            rows = slice(0, int(np.searchsorted(-longest, -place)))
            chosen = rank[rows]
            bucket, symbol = buckets[chosen, place], magnitudes[chosen, place]
            table = self.starts[bucket, context.levels(rows)]
            self._put(coder, rows, table, symbol, negative[chosen, place])
            context.update(symbol, self.expected[bucket], rows)
        words, counts = coder.finish()
        assert (counts <= words_N[rank]).all()
        found = np.empty_like(words)
        found[rank] = words
        return found[np.arange(words.shape[1]) < words_N[:, None]]

    def decode(self, words: np.ndarray, classes_N: np.ndarray, words_N: np.ndarray) -> np.ndarray:
        """Coefficients (N, K), float32, of the words that `encode` gave; of any words, some."""
        values_NK = np.zeros((len(words_N), self.sizes.shape[1]), np.float32)
        if not len(words_N):
            return values_NK
        table = np.zeros((len(words_N), int(words_N.max())), np.uint16)
        table[np.arange(table.shape[1]) < words_N[:, None]] = words
        coder = RangeDecoder(table)
        modes = coder.code(slice(None), self.mode_starts[words_N - 1])
        steps, cuts = np.divmod(modes, len(self.cuts))
        rank = np.argsort(-self.cuts[cuts], kind="stable")
        context, longest = Context(len(rank)), self.cuts[cuts][rank]
        for place in range(int(longest.max())):
            chosen = rank[: int(np.searchsorted(-longest, -place))]
            rows = slice(0, len(chosen))
            bucket = self._buckets(self.sizes[classes_N[chosen], place], steps[chosen])
            table = self.starts[bucket, context.levels(rows)]
            symbol, negative = self._get(coder, chosen, table)
            context.update(symbol.astype(np.int32), self.expected[bucket], rows)
            size = (symbol + self.offsets[bucket, symbol]) * self.steps[steps[chosen]]
            where = self.order[classes_N[chosen], place]
            values_NK[chosen, where] = np.where(negative, -size, size) * (symbol > 0)
        return values_NK

    def _arranged(
        self, values_NK: np.ndarray, classes_N: np.ndarray, steps_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients in the order in which they are coded, and their buckets."""
        values = np.take_along_axis(values_NK, self.order[classes_N], 1)
        return values, self._buckets(self.sizes[classes_N], steps_N[:, None])

    def _buckets(self, sizes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        bucket = sizes - (_LARGEST_STEP - steps) + _NEUTRAL
        return np.clip(bucket, 0, BUCKETS - 1).astype(np.int32)

    def _magnitudes(self, values: np.ndarray, steps_N: np.ndarray) -> np.ndarray:
        scaled = np.abs(values) / self.steps[steps_N][:, None] + np.float32(_ROUNDING)
        return np.minimum(scaled, MAGNITUDES - 1).astype(np.int32)

    @staticmethod
    def _put(
        coder: RangeEncoder,
        rows: slice,
        starts: np.ndarray,
        symbols: np.ndarray,
        negative: np.ndarray,
    ) -> None:
        """Symbols of tables (n, symbols + 1) with their signs: half a symbol above 0 is for
        either."""
        each = np.arange(len(symbols))
        start = starts[each, symbols]
        size = starts[each, symbols + 1] - start
        size = np.where(symbols > 0, size // 2, size)
        start = np.where((symbols > 0) & negative, start + size, start)
        coder.put(rows, start, size)

    @staticmethod
    def _get(
        coder: RangeDecoder, rows: slice | np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Symbols, and whether they are negative."""
        place = coder.look(rows)
        symbols = (place[:, None] >= starts[:, 1:-1]).sum(1)
        each = np.arange(len(symbols))
        start = starts[each, symbols]
        size = starts[each, symbols + 1] - start
        size = np.where(symbols > 0, size // 2, size)
        negative = (symbols > 0) & (place >= start + size)
        start = np.where(negative, start + size, start)
        coder.take(rows, start, size)
        return symbols, negative


class Walk:
    """Patches in all steps at once, coefficient by coefficient: what each mode costs and brings.

    Args:
        room: bits; what takes more is left.
        seen: is told of buckets, levels and magnitudes of one place: for statistics.
    """

    def __init__(
        self,
        stream: Stream,
        values_NK: np.ndarray,
        classes_N: np.ndarray,
        room: float,
        seen: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None = None,
    ) -> None:
        self._stream, self._room, self._seen = stream, room, seen
        self._shape = (len(values_NK), STEPS)
        least = (1 - _ROUNDING) * stream.steps  # that is not rounded to 0
        counts = np.stack([(np.abs(values_NK) >= each).sum(1) for each in least], 1)
        rows = np.flatnonzero((counts > 0) & (counts * _BITS_OF_ONE <= room))
        patches, self._steps = np.divmod(rows, STEPS)
        values, self._buckets = stream._arranged(
            values_NK[patches], classes_N[patches], self._steps
        )
        self._magnitudes = stream._magnitudes(values, self._steps)
        offset = stream.offsets[self._buckets, self._magnitudes]
        size = (self._magnitudes + offset) * stream.steps[self._steps][:, None]
        size *= self._magnitudes > 0
        self._values = np.abs(values)
        self._gains = size * (2 * self._values - size)  # of squared error
        self._rows, self._alive = rows, np.arange(len(rows))
        self._last = np.where(self._magnitudes > 0, np.arange(values.shape[1]), -1).max(
            1, initial=-1
        )
        self._spent = np.zeros(len(rows))

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared error taken away, and bits, both (N, STEPS * cuts); bits are infinite for what
        was left."""
        cuts = self._stream.cuts
        shape = (len(self._rows), len(cuts))
        gains, bits = np.zeros(shape, np.float32), np.full(shape, np.inf, np.float32)
        context, spent = Context(len(self._alive)), self._spent.astype(np.float32)
        gained, start = np.zeros(len(self._alive), np.float32), 0
        for number, stop in enumerate(cuts):
            keep = (self._last[self._alive] >= start) & (spent <= self._room)
            context.keep(keep)
            self._alive, spent, gained = self._alive[keep], spent[keep], gained[keep]
            if not len(self._alive):
                break
            spent += self._segment(context, start, stop)
            gained += self._gains[self._alive, start:stop].sum(1)
            self._spent[self._alive] = spent
            gains[self._alive, number], bits[self._alive, number] = gained, spent
            start = stop
        return self._spread(gains, 0), self._spread(bits, np.inf)

    def _spread(self, table: np.ndarray, rest: float) -> np.ndarray:
        """Rows of patches and steps as (N, STEPS * cuts); `rest` for those never tried."""
        whole = np.full((self._shape[0] * STEPS, table.shape[1]), rest, np.float32)
        whole[self._rows] = table
        return whole.reshape(self._shape[0], -1)

    def remainders(self) -> np.ndarray:
        """How far coefficients lie beyond their magnitudes, in steps: sums and counts
        (2, BUCKETS * MAGNITUDES) over what was not left."""
        rows = np.flatnonzero(self._spent <= self._room)
        scaled = self._values[rows] / self._stream.steps[self._steps[rows]][:, None]
        places = (self._buckets[rows] * MAGNITUDES + self._magnitudes[rows]).ravel()
        apart = (scaled - self._magnitudes[rows]).ravel()
        most = BUCKETS * MAGNITUDES
        return np.stack([np.bincount(places, apart, most), np.bincount(places, minlength=most)])

    def _segment(self, context: Context, start: int, stop: int) -> np.ndarray:
        """Bits of the coefficients from `start` to `stop` of those that are left."""
        buckets = self._buckets[self._alive, start:stop].T.copy()
        magnitudes = self._magnitudes[self._alive, start:stop].T.copy()
        expected = self._stream.expected[buckets]
        flat, everyone = self._stream.bits.ravel(), slice(None)
        base = buckets * (LEVELS * MAGNITUDES) + magnitudes
        spent = np.zeros(len(self._alive), np.float32)
        for place in range(stop - start):
            levels = context.levels()
            if self._seen is not None:
                self._seen(buckets[place], levels, magnitudes[place])
            spent += flat[base[place] + levels * MAGNITUDES]
            context.update(magnitudes[place], expected[place], everyone)
        return spent


def _starts(frequencies: np.ndarray) -> np.ndarray:
    """Where symbols begin, (..., symbols + 1)."""
    starts = np.cumsum(frequencies.astype(np.int64), axis=-1)
    return np.concatenate([np.zeros_like(starts[..., :1]), starts], -1)


def initial_tables() -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and expected magnitudes, as of `Stream`, of coefficients that are Laplacian."""
    size = 2.0 ** ((np.arange(BUCKETS) - _NEUTRAL) / 4)[:, None]
    edges = np.arange(MAGNITUDES + 1) - _ROUNDING
    above = np.exp(-(2**0.5) * np.maximum(edges, 0) / size)
    above[:, -1] = 0
    chances = above[:, :-1] - above[:, 1:]
    frequencies = 2 * (1 + np.floor(chances * (TOTAL // 2 - MAGNITUDES)).astype(np.int64))
    frequencies[:, 0] += TOTAL - frequencies.sum(1)
    expected = np.round(UNIT * (chances * np.arange(MAGNITUDES)).sum(1)).astype(np.int64)
    return np.repeat(frequencies[:, None], LEVELS, 1), expected
