"""Tables of transform codes with counts: what is stored, what comes back, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_entropy import LEVELS, STAMP, class_tables, codes_of, counted, counted_tables, usual_codes

from viq.codec.completion import Completion, Head
from viq.codec.counted_tables import UNIT, CountedTables, group_of
from viq.codec.entropy_model import EntropyModel
from viq.core.codes import Codes
from viq.core.types import CodesError, ViqError

pytest.importorskip("constriction")
MODEL = counted_tables()


def read(payload: bytes, like: Codes, model: EntropyModel = MODEL) -> Codes:
    (codes,) = model.decompress([payload], [like.size], [like.tile], [like.counts], like.meaning)
    return replace(like, ids=codes.ids)


@settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=40)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 99), st.booleans(), st.booleans())
def test_what_counts_comes_back(
    height: int, width: int, seed: int, usual: bool, tiled: bool
) -> None:
    make = usual_codes if usual else codes_of
    codes = counted(make((height, width), seed, 32 * tiled), seed)
    (payload,) = MODEL.compress([codes])
    again = read(payload, codes)
    assert again == codes  # of what counts
    assert MODEL.compress([again]) == [payload]


def test_ids_beyond_counts_are_not_stored() -> None:
    codes = counted(usual_codes((90, 80)))
    other = codes.ids.copy()
    other[~codes.kept] = 59
    assert MODEL.compress([replace(codes, ids=other)]) == MODEL.compress([codes])
    few = replace(
        codes, counts=np.ones(codes.grid, np.uint8), extra=np.zeros(0, np.uint16), meaning=False
    )
    assert len(MODEL.compress([few])[0]) < 0.6 * len(MODEL.compress([codes])[0])
    assert MODEL.stored_bytes(few) == 42 + len(MODEL.compress([few])[0]) + len(few.to_bytes()) - (
        42 + 2 * few.total
    )


def test_images_with_and_without_counts_go_together() -> None:
    all_of = [
        counted(usual_codes((40, 60), 1)),
        usual_codes((30, 30), 2),
        counted(codes_of((9, 9))),
    ]
    payloads = MODEL.compress(all_of)
    found = MODEL.decompress(
        payloads, [c.size for c in all_of], [0] * 3, [c.counts for c in all_of], True
    )
    assert [replace(c, ids=f.ids) for c, f in zip(all_of, found, strict=True)] == all_of
    assert payloads == [MODEL.compress([codes])[0] for codes in all_of]


def test_tables_without_counts_store_all_four_ids() -> None:
    """As earlier releases did: what they wrote is read as it was."""
    model, codes = class_tables(), counted(usual_codes((90, 80)))
    (payload,) = model.compress([codes])
    assert payload == model.compress([Codes(codes.ids, codes.size, 0, STAMP)])[0]
    np.testing.assert_array_equal(read(payload, codes, model).ids, codes.ids)


@settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=60)
@given(place=st.integers(0, 2**16), change=st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    codes = counted(usual_codes((90, 70), seed=1))
    payload = bytearray(MODEL.compress([codes])[0])
    payload[place % len(payload)] ^= change
    with pytest.raises(CodesError, match="checksum"):
        read(bytes(payload), codes)


@settings(suppress_health_check=[HealthCheck.differing_executors], max_examples=60)
@given(st.binary(max_size=80), st.integers(1, 100), st.integers(1, 100), st.integers(0, 255))
def test_foreign_bytes_and_counts_are_refused(
    payload: bytes, height: int, width: int, count: int
) -> None:
    grid = -(-height // 16), -(-width // 16)
    with pytest.raises(CodesError):
        MODEL.decompress([payload], [(height, width)], [0], [np.full(grid, count, np.uint8)], True)


def test_other_counts_are_noticed() -> None:
    codes = counted(usual_codes((90, 70), seed=1), most=4)
    (payload,) = MODEL.compress([codes])
    for counts in (None, np.ones(codes.grid, np.uint8)):
        with pytest.raises(CodesError, match="checksum"):
            MODEL.decompress([payload], [codes.size], [0], [counts], True)
    with pytest.raises(CodesError, match="checksum"):
        MODEL.decompress([payload], [codes.size], [0], [codes.counts], False)


def test_bits_of_patches_are_of_what_is_stored() -> None:
    codes = counted(usual_codes((160, 160)))
    bits = MODEL.patch_bits(codes)
    packed = 8 * (len(MODEL.compress([codes])[0]) - 4)
    assert -1 < packed - bits.sum() < 65 + bits.sum() / 500
    before = codes.ids.copy()
    before[~codes.kept] = 7
    odd = replace(codes, ids=before)
    assert MODEL.patch_bits(odd).sum() == bits.sum() and (odd.ids[~odd.kept] == 7).all()


def test_ids_are_completed_by_hand() -> None:
    """One class, one coefficient of 2, 3, 2 and 5 digits in the four codes."""
    radices = np.array([[[2], [3], [2], [5]]], np.uint8)
    nearest = np.zeros(2 + 6 + 12 + 2 + 6, int)
    nearest[1] = 29  # of four codes, level 1 of the first stands for 30: the last of them
    nearest[2 + 4] = 7  # digits 1, 1 stand for 10 levels: 2 * 5 of the third and fourth code
    nearest[2 + 6 + 12 + 1] = 3  # of three codes: digit 1 stands for 6, of which 3 is 1, 1
    completion = Completion(radices, nearest, Head(means=4, first=2))
    ids = np.array([[1, 9, 9, 9], [3, 1, 9, 9], [1, 9, 9, 8], [1, 2, 1, 4]], np.uint16)
    found = completion.complete(ids, np.array([1, 2, 1, 4]), np.array([4, 4, 3, 4]))
    assert found.tolist() == [[1, 2, 1, 4], [3, 1, 1, 2], [1, 1, 1, 8], [1, 2, 1, 4]]
    assert ids[0].tolist() == [1, 9, 9, 9]


def test_weights_of_groups_make_classes_cheap() -> None:
    tensors = dict(MODEL.tensors)
    for name in ("group_high", "group_low"):
        tensors[name] = np.full_like(tensors[name], UNIT)
    even = CountedTables(tensors, LEVELS, STAMP)
    tensors["group_high"][1:3, 0] = 30 * UNIT  # one or two codes: the first two classes
    codes = counted(usual_codes((320, 320), 5), most=3)
    ids = codes.ids.copy()
    ids[..., 0] = ids[..., 0] % 20  # class 0
    codes = replace(codes, ids=ids)
    sharp = CountedTables(tensors, LEVELS, STAMP)
    assert sharp.bits([codes]) < even.bits([codes]) - 100
    assert group_of(np.array([1, 2, 4, 5, 8, 9, 68])).tolist() == [1, 2, 4, 5, 5, 6, 6]


def test_tensors_that_do_not_fit_are_refused() -> None:
    for name, place, value in (
        ("radices", (0, 0, 0), 2), ("radices", (0, 0, 0), 0), ("group_high", (1, 1), 0),
        ("group_low", (1, 1, 0), 0), ("sizes", (0, 1), 59),
    ):  # fmt: skip
        wrong = MODEL.tensors[name].copy()
        wrong[place] = value
        with pytest.raises(ViqError, match="copy it again"):
            CountedTables(MODEL.tensors | {name: wrong}, LEVELS, STAMP)
