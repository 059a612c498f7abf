"""Draw simple shapes in named colours on plain and busy backgrounds.

A shape is never hidden: its centre lies outside the enclosing circle of each other shape.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from viq.data.synthetic.canvas import RGB, SyntheticImage, any_colour, blend, distance

COLOURS: dict[str, RGB] = {
    "red": (214, 39, 40),
    "green": (34, 139, 34),
    "blue": (31, 80, 200),
    "yellow": (250, 218, 40),
    "orange": (250, 130, 20),
    "purple": (128, 30, 160),
    "pink": (250, 130, 190),
    "cyan": (30, 200, 215),
    "brown": (120, 72, 30),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
}
Outline = list[tuple[float, float]]  # (x, y) around the origin
_CLEAR = 100.0  # least colour distance from shape to background; below it edges get hard to see


def _corners(count: int, radius: float, turn: float, inner: float = 1.0) -> Outline:
    """Points around the origin; with `inner` < 1 each second one is pulled in, as in a star."""
    steps = count if inner == 1.0 else 2 * count
    points = []
    for i in range(steps):
        angle = turn - math.pi / 2 + 2 * math.pi * i / steps
        reach = radius * (inner if i % 2 and inner < 1 else 1.0)
        points.append((reach * math.cos(angle), reach * math.sin(angle)))
    return points


def _ellipse(radius: float, turn: float) -> Outline:
    cos, sin = math.cos(turn), math.sin(turn)
    ring = _corners(48, radius, 0.0)
    return [(x * cos - 0.55 * y * sin, x * sin + 0.55 * y * cos) for x, y in ring]


def _cross(radius: float, turn: float) -> Outline:
    long, thin = radius * 0.945, radius * 0.33
    arm = [(-thin, -long), (thin, -long), (thin, -thin)]
    points = [p for k in range(4) for p in (_quarter(q, k) for q in arm)]
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _quarter(point: tuple[float, float], turns: int) -> tuple[float, float]:
    x, y = point
    for _ in range(turns):
        x, y = -y, x
    return x, y


# Outline around the origin from (radius of the enclosing circle, turn in radians).
_OUTLINES: dict[str, Callable[[float, float], Outline]] = {
    "circle": lambda r, turn: _corners(64, r, turn),
    "square": lambda r, turn: _corners(4, r, turn + math.pi / 4),
    "triangle": lambda r, turn: _corners(3, r, turn),
    "star": lambda r, turn: _corners(5, r, turn, 0.45),
    "hexagon": lambda r, turn: _corners(6, r, turn),
    "ellipse": _ellipse,
    "ring": lambda r, turn: _corners(64, r, turn),
    "cross": _cross,
}
SHAPES = tuple(_OUTLINES)


def shape_mask(shape: str, radius: int, turn: float) -> Image.Image:
    """Antialiased coverage, side 2 * radius + 1: the centre is the middle of the middle pixel."""
    scale = 4 if radius < 48 else 2  # small shapes need the finer edge; big ones would be slow
    side = 2 * radius + 1
    mask = Image.new("L", (side * scale, side * scale))
    pen, middle = ImageDraw.Draw(mask), (side * scale - 1) / 2
    points = _OUTLINES[shape](radius * scale, turn)
    pen.polygon([(x + middle, y + middle) for x, y in points], fill=255)
    if shape == "ring":
        hole = radius * scale * 0.55
        pen.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
    return mask.reduce(scale)


def _background(size: tuple[int, int], rng: random.Random) -> tuple[str, Image.Image, list[RGB]]:
    """Pattern name, picture, and the colours a shape must differ from."""
    height, width = size
    base = any_colour(rng)
    base = blend(base, rng.choice(((255, 255, 255), (10, 10, 20), base)), 0.6)
    other = blend(base, any_colour(rng), rng.uniform(0.15, 0.4))
    name = rng.choice(("flat", "gradient", "stripes", "chequer", "noise"))
    if name == "flat":
        return name, Image.new("RGB", (width, height), base), [base]
    if name == "noise":
        numbers = np.random.default_rng(rng.getrandbits(64))
        grain = numbers.integers(0, 49, (height, width, 3), dtype=np.uint8)
        floor = np.clip(np.asarray(base) - 24, 0, 207).astype(np.uint8)  # floor + 48 still fits
        return name, Image.fromarray(grain + floor), [base]
    angle = rng.uniform(0, math.pi)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    along = columns * cos + rows * sin
    if name == "gradient":
        share = (along - along.min()) / max(1.0, float(np.ptp(along)))
    else:
        cell = rng.randint(4, max(5, min(height, width) // 5))
        share = np.floor(along / cell).astype(np.int16) & 1
        if name == "chequer":
            across = rows * cos - columns * sin
            share = share ^ (np.floor(across / cell).astype(np.int16) & 1)
    mask = Image.fromarray((share * 255).astype(np.uint8))
    image = Image.new("RGB", (width, height), base)
    image.paste(other, (0, 0), mask)
    return name, image, [base, other, blend(base, other, 0.5)]


def _place(
    size: tuple[int, int],
    rng: random.Random,
    taken: list[tuple[int, int, int]],
    radii: tuple[int, int],
) -> tuple[int, int, int] | None:
    """A free (x, y, radius) wholly inside the picture, or None after a few tries."""
    height, width = size
    for _ in range(12):
        r = rng.randint(*radii)
        x, y = rng.randint(r, width - 1 - r), rng.randint(r, height - 1 - r)
        if all(math.hypot(x - a, y - b) > max(r, c) + 0.25 * min(r, c) + 1 for a, b, c in taken):
            return x, y, r
    return None


def draw_shapes(size: tuple[int, int], rng: random.Random, system_fonts: bool) -> SyntheticImage:
    """1 to 12 shapes. Facts: `background`, and `shapes` from back to front, each with `shape`,
    `color`, centre pixel `x` and `y`, and `size`, the diameter of its enclosing circle in px."""
    del system_fonts  # no text here
    short = min(size)
    radii = max(4, short // 24), max(5, short // 4)
    pattern, image, avoid = _background(size, rng)
    shapes = _scatter(image, avoid, rng, (1, 2, 3, 4, 5, 6, 8, 12), radii, distinct=False)
    return SyntheticImage(
        image=image, kind="shapes", facts={"background": pattern, "shapes": shapes}
    )


def draw_scene(size: tuple[int, int], rng: random.Random, system_fonts: bool) -> SyntheticImage:
    """1 to 4 big shapes, no two alike in both shape and colour; facts as in `draw_shapes`.

    Diameters are 1/4 to 1/2 of the short side: large enough for small models to tell apart.
    """
    del system_fonts  # no text here
    short = min(size)
    radii = max(2, math.ceil(short / 8)), max(3, short // 4)
    pattern, image, avoid = _background(size, rng)
    shapes = _scatter(image, avoid, rng, (1, 2, 3, 4), radii, distinct=True)
    return SyntheticImage(
        image=image, kind="scene", facts={"background": pattern, "shapes": shapes}
    )


def draw_plain(
    size: tuple[int, int], rng: random.Random, kind: str = "plain", counts: tuple[int, ...] = (1, 2)
) -> SyntheticImage:
    """Big shapes on paper or on black, no two alike in both shape and colour; facts as above.

    Diameters are a third to half of the short side: what a coarse decoder still shows clearly.

    Args:
        kind: of the picture.
        counts: how many shapes there may be, each as likely; fewer where there is no room.
    """
    short = min(size)
    radii = max(3, math.ceil(short / 6)), max(4, short // 4)
    ground = COLOURS[rng.choice(("white", "black"))]
    image = Image.new("RGB", (size[1], size[0]), ground)
    facts = _scatter(image, [ground], rng, counts, radii, distinct=True)
    return SyntheticImage(image=image, kind=kind, facts={"background": "flat", "shapes": facts})


def _scatter(
    image: Image.Image,
    avoid: Sequence[RGB],
    rng: random.Random,
    counts: tuple[int, ...],
    radii: tuple[int, int],
    *,
    distinct: bool,
) -> list[dict[str, Any]]:
    """Draw one of `counts` shapes into the picture, fewer where there is no room; their facts."""
    size = (image.height, image.width)
    names = [n for n, c in COLOURS.items() if min(distance(c, a) for a in avoid) > _CLEAR]
    taken: list[tuple[int, int, int]] = []
    shapes: list[dict[str, Any]] = []
    for _ in range(rng.choice(counts)):
        spot = _place(size, rng, taken, radii)
        if spot is None:
            break
        x, y, r = spot
        shape = rng.choice(SHAPES)
        # Neighbours of one colour would melt into one shape.
        near = {
            s["color"]
            for s, (a, b, c) in zip(shapes, taken, strict=True)
            if math.hypot(x - a, y - b) < r + c + 2 or (distinct and s["shape"] == shape)
        }
        taken.append(spot)
        free = [n for n in names if n not in near] or names or ["black"]
        colour = rng.choice(free)
        turn = rng.choice((0.0, rng.uniform(0, 2 * math.pi)))
        image.paste(COLOURS[colour], (x - r, y - r), shape_mask(shape, r, turn))
        shapes.append({"shape": shape, "color": colour, "x": x, "y": y, "size": 2 * r})
    return shapes
