"""Codes with a count for each patch: version 3 of a .viq file, and damage to it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viq.core.codes import COUNTED_HEADER_BYTES, Codes, detail_slots
from viq.core.types import CodesError, grid_of


def some_codes(height: int, width: int, seed: int = 0, tile: int = 0, meaning: bool = False):
    draw = np.random.default_rng(seed)
    grid = grid_of((height, width))
    counts = draw.integers(1, 12, grid).astype(np.uint8)
    extra = np.maximum(counts - detail_slots(grid, tile, meaning), 0).sum()
    return Codes(
        draw.integers(0, 64000, (*grid, 4)).astype(np.uint16), (height, width), tile,
        "00000000000000ab", counts=counts, extra=draw.integers(0, 2**16, extra).astype(np.uint16),
        meaning=meaning, refinement="00000000000000cd",
    )  # fmt: skip


@settings(deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.sampled_from([0, 16, 48, 1024]),
    seed=st.integers(0, 2**31),
    meaning=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_bytes_round_trip(height, width, tile, seed, meaning, dtype) -> None:
    codes = replace(some_codes(height, width, seed, tile, meaning), dtype=dtype)
    data = codes.to_bytes()
    again = Codes.from_bytes(data)
    assert again == codes and again.dtype == dtype
    assert len(data) == codes.nbytes + COUNTED_HEADER_BYTES
    assert again.total == codes.total == int(codes.kept.sum()) + len(codes.extra)
    assert not again.ids[~again.kept].any()


def test_ids_beyond_the_count_are_no_part_of_the_codes() -> None:
    codes = some_codes(40, 50)
    ids = codes.ids.copy()
    ids[~codes.kept] = 7
    assert (
        replace(codes, ids=ids) == codes and replace(codes, ids=ids).to_bytes() == codes.to_bytes()
    )
    ids[0, 0, 0] ^= 1
    assert replace(codes, ids=ids) != codes
    assert codes != replace(codes, counts=None, extra=np.zeros(0, np.uint16))


def test_meaning_is_numbered_by_tiles() -> None:
    slots = detail_slots((5, 6), 48, True)  # tiles of 2 and 3 rows, of 3 columns
    assert (slots == 3).nonzero()[0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4]
    assert (slots[0] == 3).nonzero()[0].tolist() == [0, 2, 3, 5]
    assert (detail_slots((5, 6), 48, False) == 4).all()


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    good = some_codes(40, 50).to_bytes()
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CodesError) as error:
        Codes.from_bytes(bytes(bad))
    assert "\n" not in str(error.value)


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_a_forger_who_knows_the_checksum_gets_codes_or_one_line(tail: bytes) -> None:
    good = some_codes(40, 50).to_bytes()
    for payload in (tail, good[28:42] + tail):
        head = bytearray(good[:28])
        head[24:28] = bytes(4)
        head[24:28] = struct.pack("<I", zlib.crc32(payload, zlib.crc32(bytes(head))))
        try:
            assert Codes.from_bytes(bytes(head) + payload).counts is not None
        except CodesError as error:
            assert "\n" not in str(error)


def test_counts_and_codes_have_to_fit() -> None:
    codes = some_codes(40, 50)
    assert codes.counts is not None
    none = np.zeros(0, np.uint16)
    with pytest.raises(CodesError, match=r"^0 extra codes, but counts say \d+: damaged$"):
        replace(codes, extra=none)
    with pytest.raises(CodesError, match="0 codes, but each has at least one"):
        replace(codes, counts=np.zeros_like(codes.counts), extra=none)
    with pytest.raises(CodesError, match="counts of codes must be uint8 of shape"):
        replace(codes, counts=codes.counts[:1])
    with pytest.raises(CodesError, match="extra codes, but counts say 0"):
        replace(codes, counts=None)


def test_a_claim_of_many_words_takes_no_memory() -> None:
    """255 codes for each patch of a large image, in a file of a few bytes."""
    codes = some_codes(16, 16)
    big = 16 * 512
    head = struct.pack("<4sBBHIIQI", b"ViQc", 3, 16, 0, big, big, 1, 0)
    payload = struct.pack("<BBQI", 0, 0, 1, 3) + b"\xff\xff\xff"
    checksum = zlib.crc32(payload, zlib.crc32(head))
    with pytest.raises(CodesError, match="codes with counts take at least 524,288 bytes, got 0"):
        Codes.from_bytes(head[:-4] + struct.pack("<I", checksum) + payload)
    assert codes.nbytes < 40
