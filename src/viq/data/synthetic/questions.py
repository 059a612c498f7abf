"""Questions with exact answers, and captions, about drawn pictures.

    drawing = draw("scene", (96, 96), seed=3)
    questions(drawing, random.Random(0))  # [Question(kind="count", prompt=..., answer="2"), ...]

Everything follows from `Drawing.facts`. Answers are short, lower case and in one style; wording
varies only in prompts. What a reader could not tell for certain is not asked: things that share a
name, differences too small to see, print below 10 px. Yes and no are equally likely, and the two
are asked in the same words, so that a model that never looks gains little.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from viq.data.synthetic.canvas import Drawing, distance
from viq.data.synthetic.pages import WORDS
from viq.data.synthetic.shapes import COLOURS, SHAPES

Facts = dict[str, Any]
Draft = tuple[str, str, dict[str, str]]  # kind, answer, words for the prompt

_PROMPTS: dict[str, tuple[str, ...]] = {
    # Shapes.
    "count": ("how many shapes are there?", "count the shapes."),
    "count_of": ("how many {things} are there?", "count the {things}."),
    "color_of": ("what color is the {shape}?", "name the color of the {shape}."),
    "shape_of": ("what shape is the {color} thing?", "which shape is {color}?"),
    "exists": ("is there {thing}?", "can you see {thing}?"),
    "position": ("where is the {thing}?", "in which part of the picture is the {thing}?"),
    "relation": ("is the {a} {side} the {b}?", "does the {a} lie {side} the {b}?"),
    "largest": ("which shape is the largest?", "what is the largest shape?"),
    "background": ("what is the background?", "what kind of background is there?"),
    # Charts.
    "chart_mark": ("what kind of chart is this?", "name the kind of chart."),
    "chart_count": ("how many {marks} are there?", "count the {marks}."),
    "chart_title": ("what is the title?", "read the title of the chart."),
    "chart_max": ("which {mark} is the {most}?", "what is the {most} {mark}?"),
    "chart_min": ("which {mark} is the {least}?", "what is the {least} {mark}?"),
    "chart_compare": ("is {a} {more} than {b}?", "does {a} have {amount} value than {b}?"),
    "chart_value": ("what is the value of {name}?", "read the value of {name}."),
    # Text.
    "text_layout": ("what kind of page is this?", "name the kind of page."),
    "count_lines": ("how many lines are there?", "count the lines of text."),
    "read": ("what does it say?", "read the text."),
    "read_line": ("read the {nth} line.", "what does the {nth} line say?"),
    "read_largest": ("read the largest line.", "what does the largest line say?"),
    "read_word": ("which word follows '{word}'?", "what is the word after '{word}'?"),
    "read_letter": ("what is the {nth} letter?", "read the {nth} letter."),
    "has_word": ("is the word '{word}' in the picture?", "can you read the word '{word}'?"),
    "receipt_price": ("what does {item} cost?", "what is the price of {item}?"),
    "receipt_total": ("what is the total?", "how much is it in total?"),
    # Colour fields.
    "field_kind": ("what pattern is this?", "name the pattern."),
    "field_color": ("which color is it?", "what is the main color?"),
    "field_angle": ("how do the stripes run?", "which way do the stripes run?"),
}
KINDS = tuple(_PROMPTS)

_LEAST_SHAPE = 12  # px across, below which a hexagon looks like a circle
_LEAST_PRINT, _LONGEST = 10, 40  # px of a readable line, and letters in an answer
_APART = 0.1  # of the side: least difference between "left of" and "right of"
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_BACKGROUNDS = {
    "flat": "plain", "gradient": "gradient", "stripes": "striped", "chequer": "checkered",
    "noise": "noisy",
}  # fmt: skip
_MARKS = {
    "bar": ("bar chart", "bar"), "barh": ("horizontal bar chart", "bar"),
    "line": ("line chart", "line"), "scatter": ("scatter plot", "dot"),
    "pie": ("pie chart", "slice"), "donut": ("donut chart", "slice"),
}  # fmt: skip
_EXTREMES = {"bar": ("highest", "lowest"), "barh": ("longest", "shortest")}


@dataclass(frozen=True, kw_only=True)
class Question:
    """`kind` is one of `KINDS`; `answer` is the only right one, in lower case."""

    kind: str
    prompt: str
    answer: str


def questions(drawing: Drawing, rng: random.Random, limit: int | None = None) -> list[Question]:
    """At most one question of each kind that fits the picture, shuffled, at most `limit`.

    Empty where nothing can be asked, for instance where all print is too small.
    """
    drafts = list(_ASK[drawing.kind](drawing, rng))
    rng.shuffle(drafts)
    return [
        Question(kind=kind, prompt=rng.choice(_PROMPTS[kind]).format(**words), answer=answer)
        for kind, answer, words in drafts[:limit]
    ]


def caption(drawing: Drawing, rng: random.Random) -> str:
    """One true sentence, with the names and words of the picture."""
    start = rng.choice(("", "a picture of "))
    return start + _CAPTION[drawing.kind](drawing.facts, rng)


# Shapes.


def _name(shape: Facts) -> str:
    return f"{shape['color']} {shape['shape']}"


def _a(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _about_shapes(drawing: Drawing, rng: random.Random) -> Iterator[Draft]:
    shapes, size = drawing.facts["shapes"], drawing.image.size
    yield "count", str(len(shapes)), {}
    if drawing.kind != "plain":  # there it is always the same
        yield "background", _BACKGROUNDS[drawing.facts["background"]], {}
    if min(s["size"] for s in shapes) < _LEAST_SHAPE:
        return
    yield _count_of(shapes, rng)
    yield _exists(shapes, rng)
    if only := _single(shapes, lambda s: s["shape"]):
        shape = rng.choice(only)
        yield "color_of", shape["color"], {"shape": shape["shape"]}
    if only := _single(shapes, lambda s: s["color"]):
        shape = rng.choice(only)
        yield "shape_of", shape["shape"], {"color": shape["color"]}
    named = _single(shapes, _name)
    places = [(s, place) for s in named if (place := _place_of(s, size))]
    if places:
        shape, place = rng.choice(places)
        yield "position", place, {"thing": _name(shape)}
    pairs = [(a, b) for a in named for b in named if _sides(a, b, size)]
    if pairs:
        a, b = rng.choice(pairs)
        side, yes = rng.choice(_sides(a, b, size)), rng.random() < 0.5
        side = side if yes else _OPPOSITE[side]
        yield "relation", _yes(yes), {"a": _name(a), "b": _name(b), "side": side}
    if len(shapes) > 1 and (largest := _largest(shapes)):
        yield "largest", _name(largest), {}


def _single(things: Sequence[Facts], key: Callable[[Facts], str]) -> list[Facts]:
    """Those that share their key with no other."""
    counts = Counter(map(key, things))
    return [thing for thing in things if counts[key(thing)] == 1]


def _count_of(shapes: Sequence[Facts], rng: random.Random) -> Draft:
    """Each number that occurs is equally likely; none at all in 2 of 5."""
    field, names, ending = rng.choice((("shape", SHAPES, "s"), ("color", COLOURS, " shapes")))
    counts = Counter(s[field] for s in shapes)
    absent = len(counts) < len(names) and rng.random() < 0.4
    number = 0 if absent else rng.choice(sorted(set(counts.values())))
    name = rng.choice([n for n in names if counts[n] == number])
    plural = "crosses" if name == "cross" else name + ending
    return "count_of", str(number), {"things": plural}


def _exists(shapes: Sequence[Facts], rng: random.Random) -> Draft:
    """A shape that is there, or one that is not; of those half share a colour or a shape."""
    there = {(s["color"], s["shape"]) for s in shapes}
    color, shape = rng.choice(sorted(there))
    if yes := rng.random() < 0.5:
        return "exists", _yes(yes), {"thing": _a(f"{color} {shape}")}
    near = rng.random() < 0.5
    colors, kinds = {c for c, _ in there}, {s for _, s in there}
    missing = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in there]
    close = [(c, s) for c, s in missing if (c == color) != (s == shape)]
    far = [(c, s) for c, s in missing if c not in colors and s not in kinds]
    color, shape = rng.choice((close if near else far) or missing)
    return "exists", _yes(yes), {"thing": _a(f"{color} {shape}")}


def _yes(yes: bool) -> str:
    return "yes" if yes else "no"


def _third(at: int, side: int, names: tuple[str, str, str]) -> str | None:
    """Which third of `side` holds `at`; None too near to a border between two."""
    near = any(abs(at - border * side / 3) < side / 24 for border in (1, 2))
    return None if near else names[min(2, 3 * at // side)]


def _place_of(shape: Facts, size: tuple[int, int]) -> str | None:
    """The cell of a 3 x 3 grid that holds its centre, such as "top left"."""
    row = _third(shape["y"], size[1], ("top", "", "bottom"))
    column = _third(shape["x"], size[0], ("left", "", "right"))
    return None if row is None or column is None else f"{row} {column}".strip() or "center"


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _sides(a: Facts, b: Facts, size: tuple[int, int]) -> list[str]:
    """On which sides of `b` shape `a` clearly lies."""
    right, down = (a["x"] - b["x"]) / size[0], (a["y"] - b["y"]) / size[1]
    across = ["right of" if right > 0 else "left of"] if abs(right) > _APART else []
    return across + (["below" if down > 0 else "above"] if abs(down) > _APART else [])


def _largest(shapes: Sequence[Facts]) -> Facts | None:
    """The largest, if 1.5 times as wide as all others: a wide star covers less than a circle."""
    *rest, largest = sorted(shapes, key=lambda s: s["size"])
    return largest if all(largest["size"] >= 1.5 * s["size"] for s in rest) else None


def _shapes_caption(facts: Facts, rng: random.Random) -> str:
    shapes = facts["shapes"]
    names = [_a(_name(s)) for s in rng.sample(shapes, min(len(shapes), 4))]
    listed = ", ".join(names[:-1]) + " and " + names[-1] if names[1:] else names[0]
    many = f"{len(shapes)} shapes, among them " if len(shapes) > 4 else ""
    return f"{many}{listed} on {_a(_BACKGROUNDS[facts['background']])} background"


# Charts.


def _about_chart(drawing: Drawing, rng: random.Random) -> Iterator[Draft]:
    facts = drawing.facts
    chart, mark = _MARKS[_mark(facts)]
    yield "chart_mark", chart, {}
    if facts["mark"] != "scatter" and _told_apart(facts):
        yield "chart_count", str(len(facts["values"])), {"marks": f"{mark}s"}
    if facts["title"] in facts["texts"] and len(facts["title"]) <= _LONGEST:
        yield "chart_title", facts["title"].lower(), {}
    values = _named_values(facts)
    if not values:
        return
    most, least = _EXTREMES.get(facts["mark"], ("largest", "smallest"))
    if highest := _peak(facts):
        yield "chart_max", highest.lower(), {"mark": mark, "most": most}
    if lowest := _peak(facts, sign=-1):
        yield "chart_min", lowest.lower(), {"mark": mark, "least": least}
    gap = _clear_gap(facts)
    pairs = [(a, b) for a in values for b in values if abs(values[a] - values[b]) >= gap]
    if pairs:
        a, b = rng.choice(pairs)
        more, amount = rng.choice((("larger", "a higher"), ("smaller", "a lower")))
        yes = (values[a] > values[b]) == (more == "larger")
        yield "chart_compare", _yes(yes), {"a": a, "b": b, "more": more, "amount": amount}
    # A value is written out, or a unit of the axis is wide enough to read off.
    if facts["mark"] == "pie" or facts["shown"] or facts["px_per_unit"] >= 8:
        name = rng.choice(sorted(values))
        sign = "%" if facts["mark"] == "pie" else ""
        yield "chart_value", f"{values[name]}{sign}", {"name": name}


def _mark(facts: Facts) -> str:
    return "donut" if facts.get("donut") else facts["mark"]


def _told_apart(facts: Facts) -> bool:
    """Bars stand apart; lines and slices need colours that differ."""
    colors = [tuple(c) for c in facts["colors"]]
    pairs = ((a, b) for i, a in enumerate(colors) for b in colors[:i])
    return facts["mark"] in ("bar", "barh") or all(distance(a, b) >= 60 for a, b in pairs)


def _named_values(facts: Facts) -> dict[str, int]:
    """Value of each category, if all their names were drawn and can be matched with the marks."""
    if facts["mark"] not in ("bar", "barh", "pie") or not _told_apart(facts):
        return {}
    values = dict(zip(facts["categories"], facts["values"], strict=True))
    drawn = [f"{n} {v}%" if facts["mark"] == "pie" else n for n, v in values.items()]
    return values if set(drawn) <= set(facts["texts"]) else {}


def _clear_gap(facts: Facts) -> float:
    """The least difference of values that shows: 3 percent of a pie, 3 px of a bar."""
    return 3.0 if facts["mark"] == "pie" else max(1.0, 3 / facts["px_per_unit"])


def _peak(facts: Facts, sign: int = 1) -> str | None:
    """The category with the highest value (lowest with `sign` -1), if clear."""
    values = _named_values(facts)
    ranked = sorted(values, key=lambda name: sign * values[name])[-2:]
    clear = len(ranked) == 2 and abs(values[ranked[1]] - values[ranked[0]]) >= _clear_gap(facts)
    return ranked[1] if clear else None


def _chart_caption(facts: Facts, rng: random.Random) -> str:
    chart, mark = _MARKS[_mark(facts)]
    titled = facts["title"] in facts["texts"]
    title = f" titled '{facts['title']}'" if titled else ""
    number = len(facts["values"])
    marks = f" with {number} {mark}{'s' if number > 1 else ''}" if _told_apart(facts) else ""
    highest = _peak(facts)
    top = f", {rng.choice(('highest', 'largest'))} at {highest}" if highest else ""
    return _a(chart) + title + (marks if facts["mark"] != "scatter" else "") + top


# Text.


class Run(NamedTuple):
    """A run of text and its box in px."""

    text: str
    box: tuple[int, int, int, int]

    @property
    def tall(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def readable(self) -> bool:
        return self.tall >= _LEAST_PRINT and len(self.text) <= _LONGEST


def _runs(facts: Facts) -> list[Run]:
    """All runs in drawn order, which is reading order within a column."""
    pairs = zip(facts["lines"], facts["boxes"], strict=True)
    return [Run(text, (x0, y0, x1, y1)) for text, (x0, y0, x1, y1) in pairs]


def _countable(runs: Sequence[Run]) -> list[Run]:
    """The lines from the top down to where two stand side by side: their order is plain."""
    lines = sorted(runs, key=lambda run: run.box[1])
    for i, (a, b) in enumerate(zip(lines, lines[1:], strict=False)):
        if b.box[1] < (a.box[1] + a.box[3]) / 2:
            return lines[:i]
    return lines


def _about_text(drawing: Drawing, rng: random.Random) -> Iterator[Draft]:
    facts, runs = drawing.facts, _runs(drawing.facts)
    if facts["layout"] == "sign" or len(runs) > 3:  # less of the others tells little
        yield "text_layout", facts["layout"], {}
    if not runs or min(run.tall for run in runs) < _LEAST_PRINT:
        return
    yield from _lines(runs, rng)
    yield from _words(runs, rng)
    if facts["layout"] == "receipt":
        yield from _receipt(runs, rng)


def _lines(runs: Sequence[Run], rng: random.Random) -> Iterator[Draft]:
    lines = _countable(runs)
    whole = len(lines) == len(runs)
    if whole and len(lines) <= 12:
        yield "count_lines", str(len(lines)), {}
    if len(runs) == 1:
        if runs[0].readable:
            yield "read", runs[0].text.lower(), {}
        return
    named = list(zip(_ORDINALS, lines, strict=False)) + ([("last", lines[-1])] if whole else [])
    named = [(nth, line) for nth, line in named if line.readable]
    if named:
        nth, line = rng.choice(named)
        yield "read_line", line.text.lower(), {"nth": nth}
    second, largest = sorted(runs, key=lambda run: run.tall)[-2:]
    if largest.tall >= 1.2 * second.tall and largest.readable:
        yield "read_largest", largest.text.lower(), {}


def _words(runs: Sequence[Run], rng: random.Random) -> Iterator[Draft]:
    if len(runs) == 1 and runs[0].text.isalnum() and len(runs[0].text) > 1:
        nth = rng.choice([*_ORDINALS[: len(runs[0].text)], "last"])
        at = -1 if nth == "last" else _ORDINALS.index(nth)
        yield "read_letter", runs[0].text[at].lower(), {"nth": nth}
    rows = [[word.lower().rstrip(".") for word in run.text.split()] for run in runs]
    counts = Counter(word for row in rows for word in row)
    follows = [
        (a, b)
        for row in rows
        for a, b in zip(row, row[1:], strict=False)
        if counts[a] == 1 and a.isalnum() and any(map(str.isalnum, b))
    ]
    if follows:
        word, after = rng.choice(follows)
        yield "read_word", after, {"word": word}
    # Common words of 4 letters and more, so that hardly one is hidden in another.
    text = " ".join(run.text.lower() for run in runs)
    there = sorted(set(re.findall(r"[a-z]+", text)) & _COMMON)
    if there:
        yes = rng.random() < 0.5
        word = rng.choice(there if yes else sorted(w for w in _COMMON if w not in text))
        yield "has_word", _yes(yes), {"word": word}


_COMMON = {word for word in WORDS if len(word) >= 4}
_PRICE = re.compile(r"\d+\.\d\d")


def _receipt(runs: Sequence[Run], rng: random.Random) -> Iterator[Draft]:
    """Items look like "3 apple", with their price as the next run of the same row."""
    rows = [(a.text, b.text) for a, b in zip(runs, runs[1:], strict=False) if a.box[1] == b.box[1]]
    priced = [(name, price) for name, price in rows if _PRICE.fullmatch(price)]
    items = [(m[1], price) for name, price in priced if (m := re.fullmatch(r"\d ([a-z]+)", name))]
    counts = Counter(item for item, _ in items)
    single = [(item, price) for item, price in items if counts[item] == 1]
    if single:
        item, price = rng.choice(single)
        yield "receipt_price", price, {"item": item}
    if priced and priced[-1][0] == "TOTAL":
        yield "receipt_total", priced[-1][1], {}


def _text_caption(facts: Facts, rng: random.Random) -> str:
    layout = "text" if facts["layout"] == "word" else _a(facts["layout"])
    runs = _runs(facts)
    readable = [run.text for run in _countable(runs) if run.readable]
    if not readable:
        return layout
    if len(readable) == len(runs) <= 2:
        return f"{layout} that reads '{' '.join(readable)}'"
    return f"{layout} with a line that reads '{rng.choice(readable)}'"


# Colour fields.


def _about_field(drawing: Drawing, rng: random.Random) -> Iterator[Draft]:
    facts = drawing.facts
    stops = [tuple(c) for c in facts.get("colors", ())]
    steps = zip(stops, stops[1:], strict=False)
    if "+" in facts["pattern"]:
        return
    if color := _shared_name(stops):
        yield "field_color", color, {}
    if all(distance(a, b) >= 60 for a, b in steps):
        yield "field_kind", facts["pattern"], {}
        if facts["pattern"] == "stripes" and (way := _direction(facts["angle"])):
            yield "field_angle", way, {}


def _shared_name(stops: Sequence[tuple[int, int, int]]) -> str | None:
    """The one colour name that is clearly nearest to all stops."""
    names = set()
    for stop in stops:
        first, second = sorted(COLOURS, key=lambda name: distance(COLOURS[name], stop))[:2]
        clear = 1.5 * distance(COLOURS[first], stop) < distance(COLOURS[second], stop)
        names.add(first if clear else None)
    return names.pop() if len(names) == 1 else None


def _direction(angle: float) -> str | None:
    """How stripes run whose wave travels at `angle`, within 15 degrees; None in between."""
    degrees = angle * 57.29578 % 180
    names = {0: "vertical", 45: "diagonal", 90: "horizontal", 135: "diagonal", 180: "vertical"}
    return next((name for at, name in names.items() if abs(degrees - at) <= 15), None)


def _field_caption(facts: Facts, rng: random.Random) -> str:
    names = [_FIELDS[name] for name in facts["pattern"].split("+")]
    rng.shuffle(names)
    return " blended with ".join(names)


_FIELDS = {
    "linear": "a linear gradient", "radial": "a radial gradient", "clouds": "clouds of color",
    "stripes": "colored stripes", "checkerboard": "a checkerboard", "zone plate": "a zone plate",
    "blobs": "soft blobs", "leaves": "overlapping leaves",
}  # fmt: skip

_ASK: dict[str, Callable[[Drawing, random.Random], Iterator[Draft]]] = {
    "shapes": _about_shapes,
    "scene": _about_shapes,
    "plain": _about_shapes,
    "chart": _about_chart,
    "text": _about_text,
    "word": _about_text,
    "gradient": _about_field,
}
_CAPTION: dict[str, Callable[[Facts, random.Random], str]] = {
    "shapes": _shapes_caption,
    "scene": _shapes_caption,
    "plain": _shapes_caption,
    "chart": _chart_caption,
    "text": _text_caption,
    "word": _text_caption,
    "gradient": _field_caption,
}
