"""Draw colour fields: gradients, clouds, waves, zone plates, blobs, overlapping leaves.

They teach a tokenizer smooth areas, all frequencies and angles, and (leaves) the statistics of
natural scenes: flat pieces of every size that hide one another.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from viq.data.synthetic.canvas import SyntheticImage, any_colour, blend

Field = NDArray[np.floating[Any]]  # (height, width), values 0..1
Facts = dict[str, Any]


def _axes(size: tuple[int, int], angle: float) -> tuple[Field, Field]:
    """Rotated coordinates in px, along and across `angle`, zero in the middle."""
    y = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(size[0] / 2)
    x = np.arange(size[1], dtype=np.float32)[None, :] - np.float32(size[1] / 2)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _unit(field: Field) -> Field:
    low, high = field.min(), field.max()
    return (field - low) / max(float(high - low), 1e-6)


def _period(size: tuple[int, int], rng: random.Random) -> float:
    # Log-uniform from 3 px, just above the sampling limit, to half the picture.
    return 3.0 * (max(size) / 6) ** rng.random()


def _linear(size: tuple[int, int], rng: random.Random) -> tuple[Field, Facts]:
    angle = rng.uniform(0, 2 * math.pi)
    return _unit(_axes(size, angle)[0]), {"angle": angle}


def _radial(size: tuple[int, int], rng: random.Random) -> tuple[Field, Facts]:
    x, y = rng.uniform(-0.5, 0.5) * size[1], rng.uniform(-0.5, 0.5) * size[0]
    along, across = _axes(size, 0.0)
    return _unit(np.hypot(along - np.float32(x), across - np.float32(y))), {"x": x, "y": y}


def _clouds(size: tuple[int, int], rng: random.Random) -> tuple[Field, Facts]:
    numbers = np.random.default_rng(rng.getrandbits(64))
    cells, octaves = rng.randint(2, 8), rng.randint(1, 5)
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        side = min(cells * 2**octave, *size)
        grid = Image.fromarray(numbers.random((side, side), dtype=np.float32) * 0.5**octave)
        total += np.asarray(grid.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return _unit(total), {"cells": cells, "octaves": octaves}


def _stripes(size: tuple[int, int], rng: random.Random) -> tuple[Field, Facts]:
    angle, period = rng.uniform(0, math.pi), _period(size, rng)
    wave = np.sin(_axes(size, angle)[0] * np.float32(2 * math.pi / period))
    hard = rng.random() < 0.5
    return _edge(wave, period, hard), {"angle": angle, "period": period, "hard": hard}


def _checkerboard(size: tuple[int, int], rng: random.Random) -> tuple[Field, Facts]:
    angle, period = rng.choice((0.0, rng.uniform(0, math.pi))), max(4.0, _period(size, rng))
    along, across = _axes(size, angle)
    turn = np.float32(2 * math.pi / period)
    a = _edge(np.sin(along * turn + np.float32(0.5)), period, True)
    b = _edge(np.sin(across * turn + np.float32(0.5)), period, True)
    return a + b - 2 * a * b, {"angle": angle, "period": period}


def _edge(wave: Field, period: float, hard: bool) -> Field:
    """A wave -1..1 as 0..1; hard ones get edges about one pixel wide, so they do not alias."""
    steep = max(1.0, period / math.pi) if hard else 1.0
    return np.clip(wave * np.float32(0.5 * steep) + np.float32(0.5), 0, 1)


def _zone_plate(size: tuple[int, int], rng: random.Random) -> tuple[Field, Facts]:
    along, across = _axes(size, 0.0)
    # Local period at distance r is pi / (rate * r): about 2.5 px at the far corner at most.
    rate = math.pi / (2.5 * math.hypot(*size)) * 2 * rng.uniform(0.2, 1.0)
    wave = np.cos((along * along + across * across) * np.float32(rate))
    return wave * np.float32(0.5) + np.float32(0.5), {"rate": rate}


def _blobs(size: tuple[int, int], rng: random.Random) -> tuple[Field, Facts]:
    total, blobs = np.zeros(size, np.float32), []
    for _ in range(rng.randint(2, 8)):
        y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        spread = rng.uniform(0.04, 0.25) * min(size)
        tall = np.exp(-(((np.arange(size[0], dtype=np.float32) - y) / spread) ** 2) / 2)
        wide = np.exp(-(((np.arange(size[1], dtype=np.float32) - x) / spread) ** 2) / 2)
        total += np.outer(tall, wide)  # a round Gaussian is a product of two lines: fast
        blobs.append([x, y, spread])
    return np.clip(total, 0, 1), {"blobs": blobs}


_FIELDS: dict[str, Callable[[tuple[int, int], random.Random], tuple[Field, Facts]]] = {
    "linear": _linear,
    "radial": _radial,
    "clouds": _clouds,
    "stripes": _stripes,
    "checkerboard": _checkerboard,
    "zone plate": _zone_plate,
    "blobs": _blobs,
}


def _paint(field: Field, rng: random.Random) -> tuple[Image.Image, list[list[int]]]:
    """The field in 2 to 4 colours, blended in equal steps."""
    colours = [any_colour(rng) for _ in range(rng.choice((2, 2, 3, 4)))]
    stops = np.linspace(0, 255, len(colours))
    parts = zip(*colours, strict=True)
    table = [np.interp(np.arange(256), stops, part) for part in parts]
    image = Image.fromarray((field * 255).astype(np.uint8))
    bands = [image.point(np.round(part).astype(int).tolist()) for part in table]
    return Image.merge("RGB", bands), [list(c) for c in colours]


def _leaves(size: tuple[int, int], rng: random.Random) -> Image.Image:
    height, width = 2 * size[0], 2 * size[1]  # drawn at twice the size, then shrunk: soft edges
    image = Image.new("RGB", (width, height), any_colour(rng))
    pen, mood = ImageDraw.Draw(image), any_colour(rng)
    largest = min(height, width) / 3
    for i in range(160):
        # Sizes fall along the drawing order, as a power law, so that big ones do not bury all.
        radius = max(3.0, largest * ((160 - i) / 160) ** 2 * rng.uniform(0.4, 1.0))
        x, y, colour = rng.uniform(0, width), rng.uniform(0, height), any_colour(rng)
        box = (x - radius, y - radius * 0.8, x + radius, y + radius * 0.8)
        colour = blend(colour, mood, 0.4)
        if i % 3:
            pen.ellipse(box, fill=colour)
        else:
            turn = rng.uniform(0, math.pi)
            angles = (turn, turn + 1.3, turn + 3.0, turn + 4.6)
            points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
            pen.polygon(points, fill=colour)
    return image.reduce(2)


def draw_gradient(size: tuple[int, int], rng: random.Random, system_fonts: bool) -> SyntheticImage:
    """A colour field. Facts: `pattern`, its parameters (px, radians) and its `colors` in order.

    Two fields are blended at times (`pattern` then joins both names with "+", no parameters).
    """
    del system_fonts  # no text here
    if rng.random() < 0.15:
        return SyntheticImage(
            image=_leaves(size, rng), kind="gradient", facts={"pattern": "leaves"}
        )
    name = rng.choice(tuple(_FIELDS))
    field, facts = _FIELDS[name](size, rng)
    image, colours = _paint(field, rng)
    if rng.random() < 0.8:
        return SyntheticImage(
            image=image, kind="gradient", facts={"pattern": name, **facts, "colors": colours}
        )
    second = rng.choice(("linear", "radial", "clouds", "blobs"))
    over, _ = _paint(_FIELDS[second](size, rng)[0], rng)
    image = Image.blend(image, over, rng.uniform(0.3, 0.7))
    return SyntheticImage(image=image, kind="gradient", facts={"pattern": f"{name}+{second}"})
