"""Small charts, laid out once and drawn as SVG or with Pillow.

A chart is a `Chart`: lines, dots, boxes and words at places in px. Both painters get the same
items, so a page and a picture of it cannot differ. Colours are names: the page gives them values
for light and dark, `INKS` those of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from viq.report.text import font, plain, width_of

INKS = {
    "ink": "#1a1a1a", "soft": "#5f5f5f", "line": "#e3e3df", "curve": "#17698a",
    "points": "#9cc3d3", "warn": "#b3261e", "paper": "#fdfdfb",
    "green": "#3b7d3a", "violet": "#7d4aa0", "orange": "#b0640d",
}  # fmt: skip
WIDTH, HEIGHT = 420, 220
_TOP, _RIGHT, _BOTTOM = 34, 20, 40  # px around the plot; the left side is as wide as its labels
_TITLE, _LABEL = 14, 11.5  # px, sizes of text
_KEEP = 400  # points of a curve that are drawn; more would only make the file larger
_HEAVY = 6  # an axis is logarithmic if the largest value is this many medians away


@dataclass(frozen=True)
class Line:
    points: Sequence[tuple[float, float]]
    ink: str
    width: float = 1
    dashed: bool = False


@dataclass(frozen=True)
class Dots:
    points: Sequence[tuple[float, float]]
    ink: str
    width: float = 3


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    ink: str


@dataclass(frozen=True)
class Words:
    x: float
    y: float  # of the line the letters stand on
    text: str
    ink: str = "soft"
    size: float = _LABEL
    anchor: str = "start"  # start, middle or end


@dataclass
class Chart:
    width: float
    height: float
    title: str
    items: list[Line | Dots | Box | Words] = field(default_factory=list)


# Charts


def curve(
    steps: Sequence[float],
    values: Sequence[float],
    title: str,
    unit: str = "",
    *,
    smooth: bool = True,
    even: Sequence[float] | None = None,
) -> Chart:
    """Values over steps: points, and a smoothed line through them.

    Args:
        steps, values: at least one of each, all finite, steps in order.
        smooth: False draws the values themselves, of what has no noise.
        even: values to compare with, as a dashed line.
    """
    x, y = np.asarray(steps, float), np.asarray(values, float)
    drawing = Chart(WIDTH, HEIGHT, title)
    every = y if even is None else np.concatenate([y, even])
    heavy = y.min() > 0 and y.max() > _HEAVY * np.median(y)
    y_ticks = log_ticks(every.min(), every.max()) if heavy else ticks(every.min(), every.max())
    y_labels = labels(y_ticks)
    left = 10 + max(text_width(label, _LABEL) for label in y_labels)
    x_ticks = ticks(0, max(1, x[-1]), 5, whole=True)
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    scale = np.log if heavy else np.asarray
    low, high = scale(y_ticks[0]), scale(y_ticks[-1])

    def place(xs: np.ndarray, ys: np.ndarray) -> list[tuple[float, float]]:
        across = left + xs / max(1, x[-1]) * (right - left)
        down = bottom - (scale(ys) - low) / (high - low) * (bottom - _TOP)
        return list(zip(across.tolist(), down.tolist(), strict=True))

    for tick, label in zip(y_ticks, y_labels, strict=True):
        ((_, height),) = place(np.zeros(1), np.array([tick]))
        drawing.items += [
            Line([(left, height), (right, height)], "line"),
            Words(left - 6, height + 4, label, anchor="end"),
        ]
    for tick, label in zip(x_ticks, labels(x_ticks), strict=True):
        if tick <= x[-1]:
            ((across, _),) = place(np.array([tick]), np.array([y_ticks[0]]))
            drawing.items += [
                Line([(across, bottom), (across, bottom + 4)], "soft"),
                Words(across, bottom + 17, label, anchor="middle"),
            ]
    drawing.items.append(Line([(left, bottom), (right, bottom)], "soft"))
    drawing.items.append(Words(right, bottom + 33, "step", anchor="end"))
    if smooth or len(x) == 1:
        kept = sample(y, _KEEP)
        drawing.items.append(Dots(place(x[kept], y[kept]), "points" if len(x) > 1 else "curve"))
    if even is not None:
        dashed = place(x, np.asarray(even, float))
        drawing.items.append(Line(dashed, "soft", dashed=True))
    kept = np.unique(np.linspace(0, len(x) - 1, _KEEP).round().astype(int))
    line = smoothed(y, kept) if smooth else y[kept]
    drawing.items.append(Line(place(x[kept], line), "curve", 2))
    drawing.items += _heading(title, unit, short(y[-1]))
    return drawing


def bars(counts: Sequence[int], title: str, crowded: int | None = None) -> Chart:
    """Shares of the levels of one FSQ dimension; a dashed line shows even use.

    Args:
        crowded: the level to show as a warning.
    """
    width, height, top, bottom = 132, 128, 44, 106
    drawing = Chart(width, height, title)
    shares = np.asarray(counts, float) / max(1, sum(counts))
    peak = max(shares.max(), 1 / len(counts))
    each = width / len(counts)
    for level, share in enumerate(shares.tolist()):
        tall = share / peak * (bottom - top)
        ink = "warn" if level == crowded else "curve"
        drawing.items.append(Box(level * each + 1, bottom - tall, each - 2, tall, ink))
        number = Words((level + 0.5) * each, bottom + 14, str(level), size=10, anchor="middle")
        drawing.items.append(number)
    even = bottom - (bottom - top) / len(counts) / peak
    drawing.items += [
        Line([(0, bottom), (width, bottom)], "soft"),
        Line([(0, even), (width, even)], "ink", dashed=True),
        Words(0, 14, title, "ink", 12.5),
        Words(0, 30, f"most {shares.max():.1%}", "soft" if crowded is None else "warn"),
    ]
    return drawing


def _heading(title: str, unit: str, last: str) -> list[Line | Dots | Box | Words]:
    value = f"{last} {unit}".strip()
    space = WIDTH - text_width(value, _TITLE) - 16
    while len(title) > 1 and text_width(title, _TITLE) > space:
        title = title[:-2].rstrip() + "…"
    return [Words(0, 16, title, "ink", _TITLE), Words(WIDTH, 16, value, "curve", _TITLE, "end")]


# Numbers

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def smoothed(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Means around some places, with weights of a bell curve.

    Its deviation is a fortieth of the run, and less at the begin, where curves fall fast.
    """
    means = []
    for place in places:
        sigma = min(len(values) / 40, 1 + place / 4)
        near = slice(max(0, place - math.ceil(3 * sigma)), place + math.ceil(3 * sigma) + 1)
        away = np.arange(len(values))[near] - place
        means.append(np.average(values[near], weights=np.exp(-0.5 * (away / sigma) ** 2)))
    return np.array(means)


def sample(values: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` values: most evenly spaced, the others the peaks and dips."""
    if len(values) <= most:
        return np.arange(len(values))
    even = np.linspace(0, len(values) - 1, most * 3 // 4).round().astype(int)
    parts = np.array_split(np.arange(len(values)), most // 8)
    ends = [part[find(values[part])] for part in parts for find in (np.argmin, np.argmax)]
    return np.union1d(even, ends)


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers, equally far apart, from `low` or below to `high` or above."""
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # a flat line stands in the middle
        pad = abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    if whole:
        step = max(1.0, 2 * power if step == 2.5 * power and power < 10 else step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers around two positive values: 1, 2, 5, 10, or powers of ten if those are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    below = max(mark for mark in marks if mark <= low)
    above = min(mark for mark in marks if mark >= high)
    tight = [mark for mark in marks if below <= mark <= above]
    if len(tight) <= 7:
        return tight
    stride = math.ceil((last - first) / 6)
    return [10.0**power for power in range(first, last + stride, stride)]


def labels(marks: Sequence[float]) -> list[str]:
    """Ticks as short text, all in one style: 0.02, 1,500, 15k, 0.5e-4."""
    apart, top = np.diff(marks), max(map(abs, marks))
    if max(apart) > 1.5 * min(apart):  # logarithmic
        return [short(mark) for mark in marks]
    scale, letter = next(unit for unit in _UNITS if top >= 10 * unit[0] or unit[0] == 1)
    if top < 1e-2:
        power = math.floor(math.log10(top))
        scale, letter = 10.0**power, f"e{power}"
    step = min(apart) / scale
    digits = next(d for d in range(12) if abs(step - round(step, d)) < 1e-3 * step)
    return [f"{mark / scale:,.{digits}f}{letter}" if mark else "0" for mark in marks]


def short(value: float) -> str:
    """Four digits of a number that a person reads: 0.1428, 22.6, 1,848, 12.5k, 5e-5."""
    size = abs(value)
    if size >= 1e4:
        scale, letter = next(unit for unit in _UNITS if size >= unit[0])
        return f"{value / scale:.4g}{letter}"
    if size and size < 1e-2:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


# Painters


def to_svg(drawing: Chart) -> str:
    """An <svg> element to stand in a page; classes name the inks."""
    width, height = f"{drawing.width:g}", f"{drawing.height:g}"
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="{escape(drawing.title)}">'
    ]
    for item in drawing.items:
        match item:
            case Line():
                dash = ' stroke-dasharray="4 3"' if item.dashed else ""
                path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in item.points)
                parts.append(
                    f'<path class="stroke-{item.ink}" stroke-width="{item.width:g}"{dash}'
                    f' d="{path}"/>'
                )
            case Dots():  # lines without length, whose round ends are the dots
                path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in item.points)
                parts.append(
                    f'<path class="stroke-{item.ink}" stroke-width="{item.width:g}" d="{path}"/>'
                )
            case Box():
                parts.append(
                    f'<rect class="fill-{item.ink}" x="{item.x:.1f}" y="{item.y:.1f}"'
                    f' width="{item.width:.1f}" height="{item.height:.1f}"/>'
                )
            case Words():
                parts.append(
                    f'<text class="fill-{item.ink}" x="{item.x:.1f}" y="{item.y:.1f}"'
                    f' font-size="{item.size:g}" text-anchor="{item.anchor}">'
                    f"{escape(item.text)}</text>"
                )
    return "".join([*parts, "</svg>"])


def to_image(drawing: Chart, scale: float) -> Image.Image:
    """The drawing on paper, `scale` times as large; painted at twice that, for smooth edges."""
    fine = 2 * scale
    size = (round(drawing.width * scale) * 2, round(drawing.height * scale) * 2)
    image = Image.new("RGB", size, INKS["paper"])
    draw = ImageDraw.Draw(image)
    for item in drawing.items:
        ink = INKS[item.ink]
        match item:
            case Line():
                for piece in _dashes(item.points) if item.dashed else [item.points]:
                    points = [(x * fine, y * fine) for x, y in piece]
                    draw.line(points, ink, max(1, round(item.width * fine)), joint="curve")
            case Dots():
                reach = item.width / 2
                for x, y in item.points:
                    corners = (x - reach, y - reach, x + reach, y + reach)
                    draw.ellipse([corner * fine for corner in corners], ink)
            case Box():
                corners = (item.x, item.y, item.x + item.width, item.y + item.height)
                draw.rectangle([corner * fine for corner in corners], ink)
            case Words():
                anchor = {"start": "ls", "middle": "ms", "end": "rs"}[item.anchor]
                place = (item.x * fine, item.y * fine)
                draw.text(place, plain(item.text), ink, font(item.size * fine), anchor=anchor)
    return image.reduce(2)


def _dashes(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """A path cut into dashes of 4 px with 3 px between, as in the SVG."""
    xy = np.asarray(points)
    along = np.concatenate([[0.0], np.hypot(*np.diff(xy, axis=0).T).cumsum()])
    pieces = []
    for begin in np.arange(0, along[-1], 7):
        places = np.array([begin, min(begin + 4, along[-1])])
        pieces.append([(np.interp(p, along, xy[:, 0]), np.interp(p, along, xy[:, 1]))
                       for p in places])  # fmt: skip
    return pieces


def text_width(text: str, size: float) -> float:
    """In px; fonts of pages are up to a tenth wider than the one that is measured."""
    return 1.1 * width_of(text, size)
