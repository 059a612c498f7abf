"""Questions and captions about fields of colour."""

import random
from collections.abc import Iterator, Sequence

from viq.data.synthetic.canvas import SyntheticImage, distance
from viq.data.synthetic.questions.base import Draft, Facts
from viq.data.synthetic.shapes import COLOURS

PROMPTS: dict[str, tuple[str, ...]] = {
    "field_kind": ("what pattern is this?", "name the pattern."),
    "field_color": ("which color is it?", "what is the main color?"),
    "field_angle": ("how do the stripes run?", "which way do the stripes run?"),
}

_FIELDS = {
    "linear": "a linear gradient", "radial": "a radial gradient", "clouds": "clouds of color",
    "stripes": "colored stripes", "checkerboard": "a checkerboard", "zone plate": "a zone plate",
    "blobs": "soft blobs", "leaves": "overlapping leaves",
}  # fmt: skip


def ask(drawing: SyntheticImage, rng: random.Random) -> Iterator[Draft]:
    """All that can be asked, in a fixed order."""
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


def caption(facts: Facts, rng: random.Random) -> str:
    """One true sentence."""
    names = [_FIELDS[name] for name in facts["pattern"].split("+")]
    rng.shuffle(names)
    return " blended with ".join(names)
