"""Questions about drawn pictures: hand-checked cases."""

import math
import random

import pytest
from PIL import Image
from question_words import words_of

from viq.data.synthetic.draw import SyntheticImage, draw
from viq.data.synthetic.questions import _PROMPTS, caption, questions


def drawing(kind: str, facts: dict, size: tuple[int, int] = (96, 96)) -> SyntheticImage:
    return SyntheticImage(image=Image.new("RGB", size), kind=kind, facts=facts)


def asked(about: SyntheticImage, kind: str) -> set[str]:
    """All that is asked of a kind, as "word, word: answer"."""
    found = (q for seed in range(300) for q in questions(about, random.Random(seed)))
    return {f"{', '.join(words_of(q).values())}: {q.answer}" for q in found if q.kind == kind}


def shape(name: str, x: int, y: int, size: int = 24) -> dict:
    color, kind = name.split()
    return {"shape": kind, "color": color, "x": x, "y": y, "size": size}


def scene(*shapes: dict) -> SyntheticImage:
    return drawing("scene", {"background": "stripes", "shapes": list(shapes)})


# Hand-checked: every question that can be asked.

TWO = scene(shape("red circle", 15, 16), shape("blue square", 80, 22, 36))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("count", {": 2"}),
        ("background", {": striped"}),
        ("color_of", {"circle: red", "square: blue"}),
        ("shape_of", {"red: circle", "blue: square"}),
        ("position", {"red circle: top left", "blue square: top right"}),
        (
            "relation",  # 6 px of 96 in height are no clear difference
            {
                "red circle, left of, blue square: yes", "red circle, right of, blue square: no",
                "blue square, right of, red circle: yes", "blue square, left of, red circle: no",
            },
        ),
        ("largest", {": blue square"}),
    ],
)  # fmt: skip
def test_shapes_by_hand(kind, expected):
    assert asked(TWO, kind) == expected


def test_counting_shapes_by_name_and_color():
    shapes = [shape("red cross", 15, 15), shape("red cross", 80, 15), shape("red star", 15, 80)]
    counted = asked(scene(*shapes), "count_of")
    assert {"crosses: 2", "stars: 1", "red shapes: 3"} < counted
    assert {"circles: 0", "blue shapes: 0"} < counted
    # The only answers that are not zero.
    assert sum(not line.endswith(": 0") for line in counted) == 3


def test_existing_and_missing_shapes():
    found = asked(TWO, "exists")
    assert {"a red circle: yes", "a blue square: yes"} < found
    assert {"a red square: no", "a blue circle: no"} < found
    assert sum(line.endswith("yes") for line in found) == 2


def test_ambiguous_shapes_are_not_asked():
    twins = scene(shape("red star", 16, 16, 24), shape("red star", 80, 80, 35))
    for kind in ("color_of", "shape_of", "position", "relation"):
        assert asked(twins, kind) == set()
    assert asked(twins, "largest") == set()  # 35 / 24 is below 1.5
    on_a_border = scene(shape("red star", 32, 16))
    assert asked(on_a_border, "position") == set()
    assert asked(scene(shape("red star", 48, 48)), "position") == {"red star: center"}
    assert asked(scene(shape("red star", 48, 80)), "position") == {"red star: bottom"}
    tiny = scene(shape("red star", 16, 16, 10))
    assert {q.kind for q in questions(tiny, random.Random(0))} == {"count", "background"}


BARS = {
    "mark": "bar", "title": "River bread", "labelled": True, "shown": True, "px_per_unit": 2.0,
    "categories": ["Jan", "Feb", "Mar"], "values": [9, 30, 8], "colors": [[9, 9, 9]] * 3,
    "texts": ["River bread", "Jan", "Feb", "Mar", "9", "30", "8"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("chart_mark", {": bar chart"}),
        ("chart_count", {"bars: 3"}),
        ("chart_title", {": river bread"}),
        ("chart_max", {"bar, highest: feb", "highest, bar: feb"}),
        ("chart_min", set()),  # 8 and 9 are 2 px apart
        ("chart_value", {"Jan: 9", "Feb: 30", "Mar: 8"}),
    ],
)
def test_bars_by_hand(kind, expected):
    assert asked(drawing("chart", BARS), kind) == expected


def test_comparing_bars():
    found = asked(drawing("chart", BARS), "chart_compare")
    assert {"Jan, larger, Feb: no", "Feb, a higher, Mar: yes", "Jan, smaller, Feb: yes"} < found
    assert not any("Jan" in line and "Mar" in line for line in found)


def test_undrawn_text_is_not_asked():
    bare = drawing("chart", {**BARS, "title": "", "labelled": False, "texts": []})
    kinds = {q.kind for seed in range(9) for q in questions(bare, random.Random(seed))}
    assert kinds == {"chart_mark", "chart_count"}
    unread = drawing("chart", {**BARS, "shown": False})
    assert asked(unread, "chart_value") == set()
    assert asked(drawing("chart", {**BARS, "shown": False, "px_per_unit": 8}), "chart_value")


def test_pie_by_hand():
    facts = {
        "mark": "pie", "title": "", "labelled": True, "donut": False, "categories": ["A", "B"],
        "values": [70, 30], "colors": [[200, 0, 0], [0, 0, 200]], "texts": ["A 70%", "B 30%"],
    }  # fmt: skip
    pie = drawing("chart", facts)
    assert asked(pie, "chart_value") == {"A: 70%", "B: 30%"}
    assert asked(pie, "chart_min") == {"slice, smallest: b", "smallest, slice: b"}
    assert asked(drawing("chart", {**facts, "donut": True}), "chart_mark") == {": donut chart"}
    cut = drawing("chart", {**facts, "texts": ["A 70%", "B"]})
    alike = drawing("chart", {**facts, "colors": [[200, 0, 0], [190, 0, 0]]})
    assert asked(cut, "chart_value") == asked(alike, "chart_value") == set()
    assert asked(alike, "chart_count") == set()


def text(layout: str, *runs: tuple[str, int, int, int], kind: str = "text") -> SyntheticImage:
    """Runs as (words, x, y, height)."""
    boxes = [[x, y, x + 8 * len(words), y + tall] for words, x, y, tall in runs]
    facts = {"layout": layout, "lines": [words for words, *_ in runs], "boxes": boxes}
    return drawing(kind, facts)


PAGE = text(
    "article",
    ("River Bread", 0, 0, 20),
    ("the coffee was", 0, 24, 12),
    ("on the train.", 0, 38, 12),
    ("End", 0, 52, 12),
)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text_layout", {": article"}),
        ("count_lines", {": 4"}),
        ("read", set()),
        ("read_largest", {": river bread"}),
        (
            "read_line",
            {
                "first: river bread", "second: the coffee was", "third: on the train.",
                "fourth: end", "last: end",
            },
        ),
        # "the" occurs twice, and "was" ends its line.
        ("read_word", {"river: bread", "coffee: was", "on: the"}),
    ],
)  # fmt: skip
def test_page_by_hand(kind, expected):
    assert asked(PAGE, kind) == expected


def test_words_there_and_not_there():
    found = asked(PAGE, "has_word")
    assert {line for line in found if line.endswith("yes")} == {
        "river: yes", "bread: yes", "coffee: yes",
    }  # fmt: skip
    assert len(found) > 50


def test_lines_side_by_side_are_not_numbered():
    columns = text("table", ("Head", 0, 0, 12), ("left", 0, 20, 12), ("right", 50, 22, 12))
    assert asked(columns, "read_line") == {"first: head"}
    assert asked(columns, "count_lines") == set()


def test_small_and_long_print_is_not_read():
    assert asked(text("sign", ("EXIT", 0, 0, 9)), "read") == set()
    assert asked(text("sign", ("EXIT", 0, 0, 10)), "read") == {": exit"}
    assert asked(text("sign", ("E" * 41, 0, 0, 10)), "read") == set()


def test_a_word_and_its_letters():
    word = text("word", ("Tes", 0, 0, 20), kind="word")
    assert asked(word, "read") == {": tes"}
    assert asked(word, "count_lines") == {": 1"}
    assert asked(word, "read_letter") == {"first: t", "second: e", "third: s", "last: s"}


def test_receipt_by_hand():
    receipt = text(
        "receipt",
        ("3 apple", 0, 0, 12), ("4.50", 60, 0, 12), ("1 bread", 0, 14, 12), ("1.25", 60, 14, 12),
        ("TOTAL", 0, 28, 12), ("5.75", 60, 28, 12),
    )  # fmt: skip
    assert asked(receipt, "receipt_price") == {"apple: 4.50", "bread: 1.25"}
    assert asked(receipt, "receipt_total") == {": 5.75"}
    cut = text("receipt", ("3 apple", 0, 0, 12), ("4.5", 60, 0, 12), ("TOTAL", 0, 28, 12))
    assert asked(cut, "receipt_price") == asked(cut, "receipt_total") == set()


def test_fields_by_hand():
    facts = {"pattern": "stripes", "angle": 0.1, "colors": [[200, 30, 30], [30, 30, 200]]}
    stripes = drawing("gradient", facts)
    assert asked(stripes, "field_kind") == {": stripes"}
    assert asked(stripes, "field_angle") == {": vertical"}
    assert asked(stripes, "field_color") == set()
    reds = drawing("gradient", {**facts, "colors": [[210, 30, 30], [220, 40, 50]]})
    assert asked(reds, "field_color") == {": red"}
    assert asked(reds, "field_kind") == asked(reds, "field_angle") == set()
    for angle, way in ((math.pi / 2, "horizontal"), (2.3, "diagonal")):
        turned = drawing("gradient", {**facts, "angle": angle})
        assert asked(turned, "field_angle") == {f": {way}"}
    assert questions(drawing("gradient", {"pattern": "blobs+linear"}), random.Random(0)) == []


def test_captions_by_hand():
    captions = [
        (TWO, "a red circle and a blue square on a striped background"),
        (drawing("chart", BARS), "a bar chart titled 'River bread' with 3 bars, highest at Feb"),
        (text("sign", ("EXIT", 0, 0, 20)), "a sign that reads 'EXIT'"),
        (drawing("gradient", {"pattern": "leaves"}), "overlapping leaves"),
    ]
    for about, expected in captions:
        assert expected in {caption(about, random.Random(seed)) for seed in range(60)}


def test_wording_varies_and_limit_holds():
    prompts = {q.prompt for s in range(20) for q in questions(TWO, random.Random(s))}
    assert {"how many shapes are there?", "count the shapes."} < prompts
    assert all(2 <= len(templates) <= 3 for templates in _PROMPTS.values())
    for limit in (0, 1, 3):
        assert len(questions(TWO, random.Random(0), limit)) == limit
    assert len({q.kind for s in range(20) for q in questions(TWO, random.Random(s), 1)}) > 4


def test_single_shapes_are_not_asked_for_what_is_always_the_same() -> None:
    asked = set[str]()
    for seed in range(40):
        one = draw("single", (96, 96), seed)
        assert len(one.facts["shapes"]) == 1
        asked |= {q.kind for q in questions(one, random.Random(seed))}
    assert asked == {"count_of", "exists", "color_of", "shape_of", "position"}
