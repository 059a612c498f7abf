"""Captions judged from pixels."""

import importlib
import math
import sys

import numpy as np
import pytest
from PIL import Image

from viq.core.types import ViqError
from viq.data.synthetic.captions import CaptionedShapes, Shape, satisfies, sides
from viq.eval.generation.shapes import _components, find_shapes
from viq.mllm.generation import Sampling

pytest.importorskip("transformers")
LIKELIEST = Sampling(temperature=0)


@pytest.mark.parametrize("side", [64, 96])
def test_the_judge_finds_what_was_drawn(side: int) -> None:
    shapes = CaptionedShapes("held-out", (side, side))
    for number in range(30):
        pair = shapes.pair(number)
        found = find_shapes(pair.image)
        assert satisfies(pair.caption, found, (side, side)), (number, pair.caption, found)
        for true in pair.shapes:
            nearest = min(found, key=lambda s: math.hypot(s.x - true.x, s.y - true.y))
            assert (nearest.color, nearest.shape) == (true.color, true.shape)
            # The bounding circle's centre; a triangle's centre of mass is that only by symmetry.
            assert math.hypot(nearest.x - true.x, nearest.y - true.y) < 1.5
            assert abs(nearest.size - true.size) < 3


def test_the_judge_parts_touching_things_and_ignores_specks() -> None:
    pixels = np.full((64, 96, 3), 250, np.uint8)
    pixels[20:44, 20:44] = (214, 39, 40)
    pixels[20:44, 44:68] = (31, 80, 200)
    pixels[5, 5] = 0
    found = find_shapes(Image.fromarray(pixels))
    assert sorted((s.color, s.shape) for s in found) == [("blue", "square"), ("red", "square")]
    assert find_shapes(Image.new("RGB", (40, 40), "white")) == []
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not satisfies("a red circle", find_shapes(Image.fromarray(noise)), (64, 64))


def test_things_that_meet_at_a_corner_are_one() -> None:
    mask = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]], bool)
    parts = [{(int(y), int(x)) for y, x in np.argwhere(part)} for part in _components(mask)]
    joined = {(0, 0), (0, 1), (1, 2)}
    assert parts == [joined, {(0, 4), (1, 4)}, {(3, 0)}, {(3, 4)}]


def test_the_judge_names_the_library_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "viq.eval.generation.shapes")
    with pytest.raises(ViqError, match=r"needs scipy: pip install 'viq\[train\]'"):
        importlib.import_module("viq.eval.generation.shapes")


def test_captions_by_hand() -> None:
    def at(color: str, shape: str, x: float, y: float) -> Shape:
        return Shape(color=color, shape=shape, x=x, y=y, size=20)

    a, b = at("red", "circle", 20, 50), at("blue", "square", 80, 52)
    assert sides(a, b, (100, 100)) == ["left of"] and sides(b, a, (100, 100)) == ["right of"]
    for caption, kept in (
        ("a red circle left of a blue square", True),
        ("a blue square right of a red circle", True),
        ("a red circle right of a blue square", False),
        ("a red circle above a blue square", False),  # 2 px are no side
        ("a red square left of a blue circle", False),
        ("a red circle", False),  # there is more
    ):
        assert satisfies(caption, [b, a], (100, 100)) is kept
    # Two alike: one of them is where it should be.
    assert satisfies(
        "a red circle left of a red circle", [at("red", "circle", 90, 5), a], (100, 100)
    )
    with pytest.raises(ViqError, match="cannot be checked"):
        satisfies("a dog", [], (100, 100))
    train, held = CaptionedShapes("train", (48, 48)), CaptionedShapes("held-out", (48, 48))
    assert train.pair(3).image.tobytes() == train.pair(3).image.tobytes()
    assert train.pair(3).image.tobytes() != held.pair(3).image.tobytes()
