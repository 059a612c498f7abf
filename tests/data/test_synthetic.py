"""Drawn pictures: same arguments same pixels, exact sizes, and facts that agree with the pixels."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viq.data.synthetic.canvas import load_font, luminance
from viq.data.synthetic.draw import KINDS, SIMPLE_KINDS, SyntheticImage, draw, fonts
from viq.data.synthetic.shapes import COLOURS

ALL_KINDS = (*KINDS, *SIMPLE_KINDS)


def pixels(drawing: SyntheticImage) -> np.ndarray:
    return np.asarray(drawing.image).astype(int)


def charts(mark: str, count: int = 60) -> list[SyntheticImage]:
    drawn = [draw("chart", (200, 240), seed) for seed in range(count)]
    chosen = [d for d in drawn if d.facts["mark"] == mark]
    assert chosen
    return chosen


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_same_arguments_same_picture(kind):
    for seed in range(12):
        a, b = draw(kind, (72, 100), seed), draw(kind, (72, 100), seed)
        assert a.image.tobytes() == b.image.tobytes()
        assert a.facts == b.facts
    assert len({draw(kind, (72, 100), seed).image.tobytes() for seed in range(12)}) == 12


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ALL_KINDS), st.integers(16, 400), st.integers(16, 400), st.integers(0, 2**63)
)
def test_exact_size_and_plain_facts(kind, height, width, seed):
    drawing = draw(kind, (height, width), seed)
    assert drawing.kind == kind
    assert drawing.image.mode == "RGB"
    assert drawing.image.size == (width, height)
    assert json.loads(json.dumps(drawing.facts)) == drawing.facts


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("size", [(16, 16), (16, 64), (64, 16), (16, 2048), (2048, 16)])
def test_smallest_and_longest_sizes(kind, size):
    for seed in range(20):
        assert draw(kind, size, seed).image.size == (size[1], size[0])


def test_unknown_kind_names_the_kinds():
    with pytest.raises(
        ValueError,
        match="'photo': use one of text, chart, shapes, gradient, scene, word, plain, single, "
        "several$",
    ):
        draw("photo", (64, 64), 0)


@pytest.mark.parametrize("size", [(15, 64), (64, 2049)])
def test_size_out_of_range(size):
    with pytest.raises(ValueError, match="16 to 2048"):
        draw("text", size, 0)


def test_fonts_always_hold_pillows_own():
    assert fonts()[0] is None
    assert load_font(None, 20).getlength("word") > 10
    assert draw("text", (64, 64), 3, system_fonts=True).image.size == (64, 64)


def test_shape_centres_have_the_named_colour():
    seen = set()
    for seed in range(40):
        drawing = draw("shapes", (128, 160), seed)
        assert drawing.facts["shapes"]
        for shape in drawing.facts["shapes"]:
            centre = drawing.image.getpixel((shape["x"], shape["y"]))
            # A ring shows the background there; on all others no neighbour covers the centre.
            assert (centre == COLOURS[shape["color"]]) == (shape["shape"] != "ring")
            seen.add(shape["shape"])
    assert len(seen) == 8


def test_lone_circle_has_its_size():
    for seed in range(400):
        drawing = draw("shapes", (128, 128), seed)
        shapes = drawing.facts["shapes"]
        if len(shapes) == 1 and shapes[0]["shape"] == "circle":
            circle = shapes[0]
            hit = (pixels(drawing) == COLOURS[circle["color"]]).all(-1)
            assert hit.sum() == pytest.approx(np.pi / 4 * circle["size"] ** 2, rel=0.12)
            return
    pytest.fail("no lone circle in 400 drawings")


@pytest.mark.parametrize("mark", ["bar", "barh"])
def test_bars_are_proportional_and_where_facts_say(mark):
    for drawing in charts(mark):
        facts, image = drawing.facts, pixels(drawing)
        bars = zip(facts["values"], facts["boxes"], facts["colors"], strict=True)
        assert len(facts["categories"]) == len(set(facts["categories"]))
        for value, (x0, y0, x1, y1), colour in bars:
            long = y1 - y0 if mark == "bar" else x1 - x0
            assert abs(long - value * facts["px_per_unit"]) <= 0.5
            # Axis lines lie on the foot and frame lines on the top: look one pixel inside.
            inside = image[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
            assert (inside == colour).all()
            y, x = (y0 - 1, (x0 + x1) // 2) if mark == "bar" else ((y0 + y1) // 2, x1)
            assert (image[y, x] != colour).any()


def test_pie_shares_are_percent_and_drawn():
    for drawing in charts("pie"):
        facts, image = drawing.facts, pixels(drawing)
        assert sum(facts["values"]) == 100
        (cx, cy), angle = facts["center"], facts["start_degrees"]
        for value, colour in zip(facts["values"], facts["colors"], strict=True):
            middle, reach = np.radians(angle + value * 1.8), 0.75 * facts["radius"]
            x, y = cx + reach * np.cos(middle), cy + reach * np.sin(middle)
            if value >= 8:
                assert (image[int(y), int(x)] == colour).all()
            angle += value * 3.6


def test_kinds_that_tokenizers_train_on_stay_the_same():
    """Training data pick from these by number, so another kind would change all of them."""
    assert KINDS == ("text", "chart", "shapes", "gradient")


@pytest.mark.parametrize("size", [(64, 64), (128, 160), (301, 97)])
def test_scenes_hold_few_big_different_shapes(size):
    counts = set()
    for seed in range(200):
        shapes = draw("scene", size, seed).facts["shapes"]
        names = [(s["color"], s["shape"]) for s in shapes]
        assert len(names) == len(set(names))
        assert all(min(size) / 4 <= s["size"] <= min(size) / 2 for s in shapes)
        counts.add(len(shapes))
    assert counts == {1, 2, 3, 4}


def test_words_are_one_or_two_and_large():
    for seed in range(200):
        facts = draw("word", (48, 128), seed).facts
        assert facts["layout"] == "word"
        assert 1 <= len(facts["lines"]) <= 2
        assert all(line.isalnum() for line in facts["lines"])
        assert all(12 <= y1 - y0 <= 48 for _, y0, _, y1 in facts["boxes"])


def test_charts_list_the_texts_on_them():
    for drawing in charts("bar"):
        facts = drawing.facts
        assert set(facts["categories"]) <= set(facts["texts"])
        assert (facts["title"] in facts["texts"]) == bool(facts["title"])
        assert str(facts["axis_max"]) in facts["texts"]
        if facts["shown"]:
            assert set(map(str, facts["values"])) <= set(facts["texts"])
    for seed in range(20):
        assert draw("chart", (48, 48), seed).facts["texts"] == []


@pytest.mark.parametrize(("kind", "size"), [("text", (160, 200)), ("word", (64, 96))])
def test_text_is_ink_on_paper_inside_its_box(kind, size):
    height, width = size
    for seed in range(40):
        drawing = draw(kind, size, seed)
        facts, image = drawing.facts, pixels(drawing)
        assert facts["lines"]
        runs = zip(facts["lines"], facts["boxes"], facts["inks"], facts["papers"], strict=True)
        for line, (x0, y0, x1, y1), ink, paper in runs:
            assert line.strip()
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            contrast = luminance(ink) - luminance(paper)
            assert abs(contrast) >= 90
            box = image[y0:y1, x0:x1].reshape(-1, 3)
            light = box @ (0.299, 0.587, 0.114) - luminance(paper)
            # Some pixels come most of the way from paper to ink, and most stay nearer to paper.
            assert (light / contrast).max() > 0.55
            assert np.median(light / contrast) < 0.5
