"""Counts of patches come back from few bytes, and any bytes give some."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viq.core.counts import pack_counts, unpack_counts
from viq.core.errors import CodesError


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12), st.integers(0, 12), st.integers(1, 256), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_counts_come_back(rows, cols, largest, seed):
    counts = np.random.default_rng(seed).integers(0, largest, (rows, cols)).astype(np.uint8)
    assert np.array_equal(unpack_counts(pack_counts(counts), rows, cols), counts)


def test_runs_of_255_carry():
    for seed in range(200):  # a carry has to pass bytes that wait for it
        rng = np.random.default_rng(seed)
        counts = np.where(rng.random((20, 20)) < 0.02, 255, rng.integers(0, 2, (20, 20)))
        counts = counts.astype(np.uint8)
        assert np.array_equal(unpack_counts(pack_counts(counts), 20, 20), counts)


def test_counts_like_their_neighbours_take_few_bits():
    smooth = np.full((32, 48), 2, np.uint8)
    smooth[10:20, 10:30] = 9
    assert len(pack_counts(smooth)) < smooth.size * 0.6 / 8
    noise = np.random.default_rng(0).integers(0, 8, (32, 48)).astype(np.uint8)
    assert len(pack_counts(noise)) < noise.size * 3.4 / 8  # 3 bits are the least


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=40))
def test_any_bytes_give_counts_up_to_the_first_byte(data):
    counts = unpack_counts(data, 7, 5)
    assert counts.shape == (7, 5) and counts.max() <= data[0]


def test_no_bytes_are_refused():
    with pytest.raises(CodesError, match="counts of codes are missing"):
        unpack_counts(b"", 2, 2)
