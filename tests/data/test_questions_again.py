"""Questions about random drawings: a second reading of the facts."""

import math
import random
import re
from collections import Counter

from question_words import words_of

from viq.data.synthetic.draw import KINDS as RICH_KINDS
from viq.data.synthetic.draw import SIMPLE_KINDS, SyntheticImage, draw
from viq.data.synthetic.questions import KINDS, Question, caption, questions

DRAWN = (*RICH_KINDS, *SIMPLE_KINDS)
YES_NO = ("exists", "relation", "chart_compare", "has_word")


def random_drawings(count: int = 2200) -> list[SyntheticImage]:
    sizes = ((64, 64), (96, 96), (128, 224), (256, 200), (48, 120))
    return [draw(DRAWN[i % len(DRAWN)], sizes[i % len(sizes)], i) for i in range(count)]


def again(question: Question, about: SyntheticImage) -> list[str]:
    """All answers that the facts allow, found without the code under test."""
    kind, words = question.kind, words_of(question)
    family = kind.split("_")[0]
    if about.kind in ("shapes", "scene", "plain", "single", "several"):
        return _shapes_again(kind, words, about.facts, about.image.size)
    if family == "chart":
        return _chart_again(kind, words, about.facts)
    if family == "field":
        return _field_again(kind, about.facts)
    return _text_again(kind, words, about.facts)


def _shapes_again(kind: str, words: dict, facts: dict, size: tuple[int, int]) -> list[str]:
    shapes = facts["shapes"]
    names = [f"{s['color']} {s['shape']}" for s in shapes]
    one = {name: s for name, s in zip(names, shapes, strict=True) if names.count(name) == 1}
    if kind == "count":
        return [str(len(shapes))]
    if kind == "count_of":
        noun = re.sub(" shapes$|(?<=cross)es$|s$", "", words["things"])
        return [str(sum(noun in name.split() for name in names))]
    if kind == "color_of":
        return [s["color"] for s in shapes if s["shape"] == words["shape"]]
    if kind == "shape_of":
        return [s["shape"] for s in shapes if s["color"] == words["color"]]
    if kind == "exists":
        return ["yes" if words["thing"].split(" ", 1)[1] in names else "no"]
    if kind == "position":
        at = one[words["thing"]]
        column, row = int(3 * at["x"] / size[0]), int(3 * at["y"] / size[1])
        rows = ("top left", "top", "top right"), ("left", "center", "right")
        return [(*rows, ("bottom left", "bottom", "bottom right"))[row][column]]
    if kind == "relation":
        a, b = one[words["a"]], one[words["b"]]
        across, down = (a["x"] - b["x"]) / size[0], (a["y"] - b["y"]) / size[1]
        gap = {"left of": -across, "right of": across, "above": -down, "below": down}[words["side"]]
        assert abs(gap) > 0.1
        return ["yes" if gap > 0 else "no"]
    if kind == "largest":
        top = max(s["size"] for s in shapes)
        return [n for n, s in zip(names, shapes, strict=True) if s["size"] > top / 1.5]
    assert kind == "background"
    looks = {"flat": "plain", "stripes": "striped", "chequer": "checkered", "noise": "noisy"}
    return [({"gradient": "gradient"} | looks)[facts["background"]]]


def _chart_again(kind: str, words: dict, facts: dict) -> list[str]:
    mark, values, texts = facts["mark"], facts["values"], facts["texts"]
    if kind == "chart_mark":
        names = {"bar": "bar chart", "barh": "horizontal bar chart", "line": "line chart"}
        names |= {"scatter": "scatter plot"}
        names |= {"pie": "donut chart" if facts.get("donut") else "pie chart"}
        return [names[mark]]
    if kind == "chart_count":
        plural = {"pie": "slices", "line": "lines"}.get(mark, "bars")
        assert words["marks"] == plural
        return [str(len(facts["colors"]))]
    if kind == "chart_title":
        return [t.lower() for t in texts if t == facts["title"]]
    names = facts["categories"]
    assert all(n in texts or f"{n} {v}%" in texts for n, v in zip(names, values, strict=True))
    if kind in ("chart_max", "chart_min"):
        end = max(values) if kind == "chart_max" else min(values)
        return [n.lower() for n, v in zip(names, values, strict=True) if v == end]
    if kind == "chart_compare":
        a, b = (values[names.index(words[key])] for key in "ab")
        more = words.get("more") == "larger" or words.get("amount") == "a higher"
        return ["yes" if (a > b if more else a < b) else "no"]
    value = values[names.index(words["name"])]
    assert mark == "pie" or facts["shown"] or facts["px_per_unit"] >= 8
    return [f"{value}%" if mark == "pie" else str(value)]


def _text_again(kind: str, words: dict, facts: dict) -> list[str]:
    boxes = facts["boxes"]
    lines = [line.lower() for line in facts["lines"]]
    flat = [[word.removesuffix(".") for word in line.split()] for line in lines]
    if kind == "text_layout":
        return [facts["layout"]]
    tall = [y1 - y0 for _, y0, _, y1 in boxes]
    assert min(tall) >= 10
    down = [line for _, line in sorted(zip((b[1] for b in boxes), lines, strict=True))]
    nth = ("first", "second", "third", "fourth", "fifth", "sixth")
    if kind == "count_lines":
        assert len({y0 for _, y0, _, _ in boxes}) == len(boxes)
        return [str(len(lines))]
    if kind == "read":
        return lines
    if kind == "read_line":
        at = -1 if words["nth"] == "last" else nth.index(words["nth"])
        return [down[at]]
    if kind == "read_largest":
        return [line for line, t in zip(lines, tall, strict=True) if 1.2 * t > max(tall)]
    if kind == "read_letter":
        at = -1 if words["nth"] == "last" else nth.index(words["nth"])
        return [lines[0][at]]
    if kind == "has_word":
        return ["yes" if words["word"] in re.split("[^a-z]+", " ".join(lines)) else "no"]
    if kind == "read_word":
        return [row[i + 1] for row in flat for i, w in enumerate(row[:-1]) if w == words["word"]]
    before = "total" if kind == "receipt_total" else words["item"]
    return [b for a, b in zip(lines, lines[1:], strict=False) if a.split()[-1] == before]


def _field_again(kind: str, facts: dict) -> list[str]:
    if kind == "field_kind":
        return [facts["pattern"]]
    if kind == "field_angle":
        x, y = abs(math.cos(facts["angle"])), abs(math.sin(facts["angle"]))
        return ["vertical" if y < x / 2 else "horizontal" if x < y / 2 else "diagonal"]
    palette = {
        "red": (214, 39, 40), "green": (34, 139, 34), "blue": (31, 80, 200), "white": (250,) * 3,
        "yellow": (250, 218, 40), "orange": (250, 130, 20), "purple": (128, 30, 160),
        "pink": (250, 130, 190), "cyan": (30, 200, 215), "brown": (120, 72, 30),
        "black": (15, 15, 15), "gray": (128, 128, 128),
    }  # fmt: skip
    near = {min(palette, key=lambda n: math.dist(palette[n], c)) for c in facts["colors"]}
    return sorted(near)


def test_every_answer_is_the_only_one():
    seen = Counter()
    for seed, about in enumerate(random_drawings()):
        for question in questions(about, random.Random(seed)):
            assert again(question, about) == [question.answer], (question, about.facts)
            assert question.answer == question.answer.lower().strip() != ""
            assert len(question.answer) <= 40
            seen[question.kind] += 1
    assert set(seen) == set(KINDS)


def test_yes_and_no_are_balanced():
    answers: dict[str, Counter] = {kind: Counter() for kind in YES_NO}
    for seed in range(2400):
        about = draw(("scene", "text", "chart")[seed % 3], (160, 160), seed)
        rng = random.Random(seed)
        for question in questions(about, rng) + questions(about, rng) + questions(about, rng):
            if question.kind in YES_NO:
                answers[question.kind][question.answer] += 1
    for kind, count in answers.items():
        assert set(count) == {"yes", "no"}
        assert 0.45 < count["yes"] / count.total() < 0.55, (kind, count)


def test_same_generator_same_questions():
    for seed, about in enumerate(random_drawings(30)):
        first, second = random.Random(seed), random.Random(seed)
        assert questions(about, first) == questions(about, second)
        assert caption(about, first) == caption(about, second)


def test_captions_of_every_kind_are_one_plain_line():
    for seed, about in enumerate(random_drawings(120)):
        said = caption(about, random.Random(seed))
        assert said == said.strip() and "\n" not in said and 5 < len(said) < 220
        for quoted in re.findall(r"'(.+)'", said):
            drawn = [*about.facts.get("texts", ()), *about.facts.get("lines", ())]
            assert quoted in drawn or all(word in " ".join(drawn) for word in quoted.split())
