"""The tables of transform codes: what codes say, from which neighbours, what is stored plain."""

import numpy as np
import pytest
from tiny_entropy import LEVELS, STAMP, class_tables, codes_of, usual_codes

from viq.codec.class_tables import ClassTables
from viq.codec.phases import steps_of
from viq.core.codes import Codes

pytest.importorskip("constriction")
MODEL = class_tables()


def flat(codes: Codes) -> np.ndarray:
    return codes.ids.reshape(-1, 4)


def test_parts_join_to_the_codes_they_were_split_from() -> None:
    for codes in (usual_codes((300, 200)), codes_of((300, 200))):
        parts = MODEL.split(flat(codes))
        np.testing.assert_array_equal(MODEL.join(parts), flat(codes))
    assert MODEL.fits(MODEL.split(flat(usual_codes((300, 200))))).all()


def test_what_codes_say_by_hand() -> None:
    parts = MODEL.split(np.array([[5 * (4 * 2 + 3) + 1, 7, 0, 53]], np.uint16))
    assert (parts.class_T[0], parts.mean_T[0], parts.kind_T[0]) == (2, 3, 3)
    assert parts.rest_ST[:, 0].tolist() == [1, 7, 0, 3]  # 53 is 40 and 2 kinds of 5, and 3
    assert parts.sizes_ST[:, 0].tolist() == [1, 60, 60, 5]
    assert not MODEL.fits(parts)[0]  # class 2 leaves nothing of the first code


def test_contexts_by_hand() -> None:
    """The mean of the means and of the coordinates of the neighbours that are there."""
    grid = (7, 6)
    parts = MODEL.split(flat(usual_codes((7 * 16, 6 * 16), 4)))
    mean_U, class_U = np.pad(parts.mean_T, (1, 0)), np.pad(parts.class_T + 1, (1, 0))
    coordinates, cuts = MODEL.tensors["coordinates"], MODEL.tensors["cuts"]
    for step in steps_of([grid]):
        means, classes = MODEL.means_near(step, mean_U), MODEL.classes_near(step, class_U)
        buckets = MODEL.buckets(classes)
        for n, near_4 in enumerate(step.neighbours_4n.T):
            near = near_4[near_4 > 0] - 1
            if not len(near):
                assert means[n] == 0 and not classes[:, n].any()
                continue
            assert means[n] == int(parts.mean_T[near].mean() + 0.5)
            there = 12 * coordinates[parts.class_T[near]].astype(float).mean(0)
            np.testing.assert_allclose(classes[:, n], there)
            first, second = ((c <= v).sum() for c, v in zip(cuts, there, strict=True))
            assert buckets[n] == first * 4 + second


def test_likely_codes_take_fewer_bytes() -> None:
    """Tables that expect class 0 and mean 0 store such codes in what their rests take."""
    sharp = dict(MODEL.tensors)
    for name in ("coarse", "fine", "high", "low", "kind"):
        sharp[name] = np.ones_like(sharp[name])
        sharp[name][..., 0] = 60_000
    model = ClassTables(sharp, LEVELS, STAMP)
    ids = np.random.default_rng(0).integers(0, [5, 60, 50, 40], (40, 40, 4)).astype(np.uint16)
    codes = Codes(ids, (640, 640), 0, STAMP)
    least = 1600 * np.log2([5.0, 60, 50, 40]).sum()
    assert least < model.bits([codes]) < least * 1.001 + 64
    assert model.bits([usual_codes((640, 640))]) > least * 1.3
    for place in ((0, 0), (39, 39), (7, 12)):  # the patch that nobody expects costs most, alone
        odd = ids.copy()
        odd[place] = [20, 0, 0, 0]  # class 1
        bits = model.patch_bits(Codes(odd, (640, 640), 0, STAMP))
        assert np.unravel_index(bits.argmax(), bits.shape) == place


def test_one_impossible_code_makes_an_image_plain() -> None:
    codes = usual_codes((640, 640))
    ids = codes.ids.copy()
    ids[20, 20, 1] = 59
    ids[20, 20, 0] = 20  # of class 1, which has 59 of it
    odd = Codes(ids, codes.size, 0, STAMP)
    payloads = MODEL.compress([odd, codes])
    assert len(payloads[0]) * 8 == pytest.approx(4 * 1600 * np.log2(60), rel=0.01)
    assert MODEL.decompress(payloads, [odd.size] * 2, [0, 0]) == [odd, codes]
