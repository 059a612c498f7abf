"""Streams of symbols come back, in as few words as their bits ask for."""

import numpy as np
import pytest

from viq.codec.range_coder import TOTAL, WORD_BITS, RangeDecoder, RangeEncoder

STREAMS, LENGTH = 300, 200


def tables(rng: np.random.Generator, spread: float) -> np.ndarray:
    """Starts (LENGTH, 9) of eight symbols at each place."""
    weights = rng.random((LENGTH, 8)) ** spread
    sizes = 1 + np.floor(weights / weights.sum(1, keepdims=True) * (TOTAL - 8)).astype(np.int64)
    sizes[:, 0] += TOTAL - sizes.sum(1)
    return np.concatenate([np.zeros((LENGTH, 1), np.int64), sizes.cumsum(1)], 1)


def encoded(starts: np.ndarray, symbols: np.ndarray, lengths: np.ndarray):
    """Words of streams of different lengths, the longest first, and their bits."""
    coder, bits = RangeEncoder(STREAMS, LENGTH), np.zeros(STREAMS)
    for place in range(LENGTH):
        rows = slice(0, int((lengths > place).sum()))
        start = starts[place][symbols[rows, place]]
        size = starts[place][symbols[rows, place] + 1] - start
        bits[rows] -= np.log2(size / TOTAL)
        coder.put(rows, start, size)
    return *coder.finish(), bits


@pytest.mark.parametrize("spread", [0.5, 4, 30])
def test_symbols_come_back_in_no_more_words_than_they_need(spread):
    rng = np.random.default_rng(0)
    starts = tables(rng, spread)
    drawn = rng.integers(0, TOTAL, (STREAMS, LENGTH))  # each symbol as often as its size says
    drawn[:20] = rng.choice([0, TOTAL - 1], (20, LENGTH))  # and the ends, where carries come from
    symbols = (drawn[..., None] >= starts[None, :, 1:-1]).sum(-1)
    lengths = np.sort(rng.integers(0, LENGTH + 1, STREAMS))[::-1]
    words, counts, bits = encoded(starts, symbols, lengths)
    assert (counts <= np.floor((bits + 0.05) / WORD_BITS) + 1).all()
    assert (counts[lengths == 0] == 0).all()
    for stream in range(STREAMS):
        words[stream, counts[stream] :] = 0
    decoder = RangeDecoder(words[:, : counts.max()])
    for place in range(LENGTH):
        rows = slice(0, int((lengths > place).sum()))
        found = (decoder.look(rows)[:, None] >= starts[place, 1:-1]).sum(1)
        assert (found == symbols[rows, place]).all()
        start = starts[place][found]
        decoder.take(rows, start, starts[place][found + 1] - start)


def test_any_words_are_decoded_to_symbols():
    words = np.random.default_rng(1).integers(0, 2**16, (50, 6)).astype(np.uint16)
    words[0] = 2**16 - 1
    decoder = RangeDecoder(words)
    for _ in range(400):
        places = decoder.look(slice(None))
        assert ((places >= 0) & (places < TOTAL)).all()
        decoder.take(slice(None), places, np.ones_like(places))
