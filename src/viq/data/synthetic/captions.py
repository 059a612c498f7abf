"""Sentences that say exactly what is on a synthetic picture, and whether a picture keeps them.

    pair = CaptionedShapes("train", size=(96, 96)).pair(7)
    pair.caption                       # "a red circle left of a blue square"
    satisfies(pair.caption, pair.shapes, (96, 96))

One or two shapes stand apart on a plain ground; of two, the sentence names the side on which the
first clearly lies. The same facts come from the drawing, or from a detector of shapes
(`viq.eval.generation.shapes`), so a synthetic picture is judged by the words it was asked for.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from viq.core.types import Size, ViqError
from viq.data.synthetic.shapes import COLOURS, SHAPES, draw_plain

SIDES = ("left of", "right of", "above", "below")
_APART = 0.1  # of the picture: least distance of centres that makes a side
_GAP = 3  # px between two shapes, so that they are two
_THING = rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_SENTENCE = re.compile(rf"{_THING}(?: ({'|'.join(SIDES)}) {_THING})?")
_TRIES = 1000


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One coloured shape; centre and diameter of its enclosing circle in px."""

    color: str
    shape: str
    x: float
    y: float
    size: float

    @property
    def name(self) -> str:
        """As in a sentence, with its article."""
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.color} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A picture, its sentence and its facts."""

    image: Image.Image
    caption: str
    shapes: tuple[Shape, ...]


class CaptionedShapes:
    """Endless pictures by number; training and held-out ones are never the same drawing."""

    def __init__(self, split: Literal["train", "held-out"], size: Size, seed: int = 0) -> None:
        self.size = size
        self._odd, self._seed = int(split == "held-out"), seed

    def pair(self, number: int) -> Captioned:
        """The picture of that number."""
        first = _TRIES * (2 * (number + self._seed * 2**32) + self._odd)
        for tried in range(first, first + _TRIES):
            rng = random.Random(f"{self.size} {tried}")
            drawing = draw_plain(self.size, rng)
            shapes = tuple(Shape(**facts) for facts in drawing.facts["shapes"])
            if _is_simple(shapes, self.size):
                caption = _caption(shapes, self.size, rng)
                return Captioned(image=drawing.image, caption=caption, shapes=shapes)
        raise AssertionError(f"no simple scene of {self.size} in {_TRIES}")


def satisfies(caption: str, shapes: Sequence[Shape], size: Size) -> bool:
    """Whether a picture with these shapes, and no others, is what the sentence says.

    Raises:
        ViqError: not a sentence of this kind.
    """
    match = _SENTENCE.fullmatch(caption)
    if match is None:
        raise ViqError(
            f"{caption!r}: cannot be checked; write 'a red circle left of a blue square', with "
            f"colors {', '.join(COLOURS)}, shapes {', '.join(SHAPES)} and {', '.join(SIDES)}"
        )
    *first, side, color, shape = match.groups()
    wanted = [tuple(first)] if side is None else [tuple(first), (color, shape)]
    found = [(s.color, s.shape) for s in shapes]
    if sorted(found) != sorted(wanted):
        return False
    if side is None:
        return True
    orders = [shapes] if found == wanted else []
    orders += [shapes[::-1]] if found[::-1] == wanted else []
    return any(side in sides(a, b, size) for a, b in orders)


def sides(a: Shape, b: Shape, size: Size) -> list[str]:
    """On which sides of `b` shape `a` clearly lies."""
    right, down = (a.x - b.x) / size[1], (a.y - b.y) / size[0]
    across = [SIDES[right > 0]] if abs(right) > _APART else []
    return across + ([SIDES[2 + (down > 0)]] if abs(down) > _APART else [])


def _is_simple(shapes: Sequence[Shape], size: Size) -> bool:
    if len(shapes) == 1:
        return True
    if len(shapes) != 2 or shapes[0].name == shapes[1].name:
        return False
    a, b = shapes
    gap = math.hypot(a.x - b.x, a.y - b.y) - (a.size + b.size) / 2
    return gap >= _GAP and bool(sides(a, b, size))


def _caption(shapes: Sequence[Shape], size: Size, rng: random.Random) -> str:
    if len(shapes) == 1:
        return shapes[0].name
    a, b = rng.sample(shapes, 2)
    return f"{a.name} {rng.choice(sides(a, b, size))} {b.name}"
