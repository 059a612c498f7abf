"""Questions and captions about coloured shapes on any ground."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from viq.core.types import Size
from viq.data.synthetic.canvas import SyntheticImage
from viq.data.synthetic.captions import Shape, sides
from viq.data.synthetic.questions.base import Draft, Facts, with_article, yes_no
from viq.data.synthetic.shapes import COLOURS, SHAPES

PROMPTS: dict[str, tuple[str, ...]] = {
    "count": ("how many shapes are there?", "count the shapes."),
    "count_of": ("how many {things} are there?", "count the {things}."),
    "color_of": ("what color is the {shape}?", "name the color of the {shape}."),
    "shape_of": ("what shape is the {color} thing?", "which shape is {color}?"),
    "exists": ("is there {thing}?", "can you see {thing}?"),
    "position": ("where is the {thing}?", "in which part of the picture is the {thing}?"),
    "relation": ("is the {a} {side} the {b}?", "does the {a} lie {side} the {b}?"),
    "largest": ("which shape is the largest?", "what is the largest shape?"),
    "background": ("what is the background?", "what kind of background is there?"),
}

_LEAST_SHAPE = 12  # px across, below which a hexagon looks like a circle
_BACKGROUNDS = {
    "flat": "plain", "gradient": "gradient", "stripes": "striped", "chequer": "checkered",
    "noise": "noisy",
}  # fmt: skip
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _shapes(facts: Facts) -> list[Shape]:
    return [Shape(**shape) for shape in facts["shapes"]]


def _name(shape: Shape) -> str:
    return f"{shape.color} {shape.shape}"


def ask(drawing: SyntheticImage, rng: random.Random) -> Iterator[Draft]:
    """All that can be asked, in a fixed order."""
    shapes = _shapes(drawing.facts)
    width, height = drawing.image.size
    size = (height, width)
    if drawing.kind != "single":  # there it is always the same
        yield "count", str(len(shapes)), {}
    if drawing.kind in ("shapes", "scene"):  # else it is paper or black
        yield "background", _BACKGROUNDS[drawing.facts["background"]], {}
    if min(s.size for s in shapes) < _LEAST_SHAPE:
        return
    yield _count_of(shapes, rng)
    yield _exists(shapes, rng)
    if only := _single(shapes, lambda s: s.shape):
        shape = rng.choice(only)
        yield "color_of", shape.color, {"shape": shape.shape}
    if only := _single(shapes, lambda s: s.color):
        shape = rng.choice(only)
        yield "shape_of", shape.shape, {"color": shape.color}
    named = _single(shapes, _name)
    places = [(s, place) for s in named if (place := _place_of(s, size))]
    if places:
        shape, place = rng.choice(places)
        yield "position", place, {"thing": _name(shape)}
    pairs = [(a, b) for a in named for b in named if sides(a, b, size)]
    if pairs:
        a, b = rng.choice(pairs)
        side, yes = rng.choice(sides(a, b, size)), rng.random() < 0.5
        side = side if yes else _OPPOSITE[side]
        yield "relation", yes_no(yes), {"a": _name(a), "b": _name(b), "side": side}
    if len(shapes) > 1 and (largest := _largest(shapes)):
        yield "largest", _name(largest), {}


def _single(things: Sequence[Shape], key: Callable[[Shape], str]) -> list[Shape]:
    """Those that share their key with no other."""
    counts = Counter(map(key, things))
    return [thing for thing in things if counts[key(thing)] == 1]


def _count_of(shapes: Sequence[Shape], rng: random.Random) -> Draft:
    """Each number that occurs is equally likely; none at all in 2 of 5."""
    field, names, ending = rng.choice((("shape", SHAPES, "s"), ("color", COLOURS, " shapes")))
    counts = Counter(getattr(s, field) for s in shapes)
    absent = len(counts) < len(names) and rng.random() < 0.4
    number = 0 if absent else rng.choice(sorted(set(counts.values())))
    name = rng.choice([n for n in names if counts[n] == number])
    plural = "crosses" if name == "cross" else name + ending
    return "count_of", str(number), {"things": plural}


def _exists(shapes: Sequence[Shape], rng: random.Random) -> Draft:
    """A shape that is there, or one that is not; of those half share a colour or a shape."""
    there = {(s.color, s.shape) for s in shapes}
    color, shape = rng.choice(sorted(there))
    if yes := rng.random() < 0.5:
        return "exists", yes_no(yes), {"thing": with_article(f"{color} {shape}")}
    near = rng.random() < 0.5
    colors, kinds = {c for c, _ in there}, {s for _, s in there}
    missing = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in there]
    close = [(c, s) for c, s in missing if (c == color) != (s == shape)]
    far = [(c, s) for c, s in missing if c not in colors and s not in kinds]
    color, shape = rng.choice((close if near else far) or missing)
    return "exists", yes_no(yes), {"thing": with_article(f"{color} {shape}")}


def _third(at: float, side: int, names: tuple[str, str, str]) -> str | None:
    """Which third of `side` holds `at`; None too near to a border between two."""
    near = any(abs(at - border * side / 3) < side / 24 for border in (1, 2))
    return None if near else names[min(2, int(3 * at // side))]


def _place_of(shape: Shape, size: Size) -> str | None:
    """The cell of a 3 x 3 grid that holds its centre, such as "top left"."""
    row = _third(shape.y, size[0], ("top", "", "bottom"))
    column = _third(shape.x, size[1], ("left", "", "right"))
    return None if row is None or column is None else f"{row} {column}".strip() or "center"


def _largest(shapes: Sequence[Shape]) -> Shape | None:
    """The largest, if 1.5 times as wide as all others: a wide star covers less than a circle."""
    *rest, largest = sorted(shapes, key=lambda s: s.size)
    return largest if all(largest.size >= 1.5 * s.size for s in rest) else None


def caption(facts: Facts, rng: random.Random) -> str:
    """One true sentence."""
    shapes = _shapes(facts)
    names = [s.name for s in rng.sample(shapes, min(len(shapes), 4))]
    listed = ", ".join(names[:-1]) + " and " + names[-1] if names[1:] else names[0]
    many = f"{len(shapes)} shapes, among them " if len(shapes) > 4 else ""
    return f"{many}{listed} on {with_article(_BACKGROUNDS[facts['background']])} background"
