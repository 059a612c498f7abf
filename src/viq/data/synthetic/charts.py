"""Draw charts: vertical and horizontal bars, lines, scatter, pie, with axes, labels and legend.

Marks are drawn at twice the size and shrunk (soft edges); text is drawn afterwards at true size.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from viq.data.synthetic.canvas import (
    RGB,
    SyntheticImage,
    any_colour,
    blend,
    canvas,
    distance,
    fit_text,
    ink_and_paper,
    line_height,
    pick_font,
    text_width,
    write,
)
from viq.data.synthetic.pages import WORDS

_PALETTES: tuple[tuple[RGB, ...], ...] = (
    ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75)),
    ((76, 114, 176), (221, 132, 82), (85, 168, 104), (196, 78, 82), (129, 114, 179), (80, 70, 60)),
    ((38, 70, 83), (42, 157, 143), (233, 196, 106), (244, 162, 97), (231, 111, 81), (90, 90, 160)),
    ((230, 57, 70), (69, 123, 157), (168, 218, 220), (255, 183, 3), (29, 90, 87), (131, 56, 236)),
)
_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000)  # between ticks


class Chart:
    """A canvas at twice the size, the plot box, and the text still to be drawn on top."""

    def __init__(self, size: tuple[int, int], rng: random.Random, system_fonts: bool) -> None:
        self.height, self.width = size
        self.rng, self.path = rng, pick_font(rng, system_fonts)
        self.ink, self.paper = ink_and_paper(rng, dark_share=0.2)
        self.image, self.pen = canvas((2 * self.height, 2 * self.width), self.paper)
        self.small = max(8, min(20, round(min(size) / rng.uniform(18, 26))))
        self.labelled = min(size) >= 64  # below, labels would leave no room for the marks
        self.texts: list[tuple[float, float, str, int, float]] = []
        self.facts: dict[str, Any] = {"title": "", "labelled": self.labelled}
        self.box = self._layout()
        self.colours = self._palette()

    def _layout(self) -> tuple[int, int, int, int]:
        """Draw the title; the plot box x0, y0, x1, y1 that remains, in px."""
        rng, small = self.rng, self.small
        if not self.labelled:
            return 2, 2, self.width - 2, self.height - 2
        top = small
        if rng.random() < 0.85:
            big = round(small * rng.uniform(1.1, 1.5))
            words = " ".join(rng.choices(WORDS, k=rng.randint(1, 4))).capitalize()
            text = fit_text(words, self.path, big, self.width - 8)
            self.facts["title"] = text
            self.text(self.width / 2, 3, text, align=0.5, size=big)
            top += round(big * 1.3)
        return 3 * small + 2, top, self.width - round(1.4 * small), self.height - round(1.8 * small)

    def _palette(self) -> list[RGB]:
        rng = self.rng
        mixed = [blend(any_colour(rng), self.ink, 0.2) for _ in range(6)]
        palette = [c for c in rng.choice((*_PALETTES, mixed)) if distance(c, self.paper) > 80]
        palette = palette if len(palette) > 3 else [c for c in _PALETTES[0] if c != self.paper]
        rng.shuffle(palette)
        return palette

    def text(self, x: float, y: float, text: str, *, align: float = 0.0, size: int = 0) -> None:
        """Keep `text` for the last step; `align`: which part of it lies at x, 0 left .. 1 right."""
        if self.labelled and text:
            self.texts.append((x, y, text, size or self.small, align))

    def wide(self, text: str) -> float:
        """Width in px of a label."""
        return text_width(text, self.path, self.small)

    def rectangle(self, box: tuple[int, int, int, int], fill: RGB) -> None:
        """Fill x0, y0, x1, y1 in px, x1 and y1 excluded."""
        x0, y0, x1, y1 = (2 * v for v in box)
        if x1 > x0 and y1 > y0:
            self.pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: RGB, width: int = 2) -> None:
        """A line through `points` in px; `width` is in half pixels."""
        self.pen.line([(2 * x, 2 * y) for x, y in points], fill=fill, width=width, joint="curve")

    def dot(self, x: float, y: float, radius: float, fill: RGB) -> None:
        """A disc; all in px."""
        x, y, r = 2 * x, 2 * y, 2 * radius
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def finish(self) -> Image.Image:
        """The chart at its true size, text on top; `facts` then list what is wholly inside."""
        image = self.image.reduce(2)
        self.facts["texts"] = []
        for x, y, text, size, align in self.texts:
            wide, tall = text_width(text, self.path, size), line_height(self.path, size)
            left, top = round(x - align * wide), round(y)
            write(image, (left, top), text, self.path, size, self.ink)
            if 0 <= left <= self.width - wide and 0 <= top <= self.height - tall:
                self.facts["texts"].append(text)
        return image

    def names(self, count: int, room: float, numbered: bool = True) -> list[str]:
        """`count` different labels, at most `room` px each; letters where words do not fit."""
        names: list[str]
        style = self.rng.choice(("words", "letters", "years", "months")[: 4 if numbered else 2])
        if style == "years":
            first = self.rng.randint(1980, 2020)
            names = [str(first + i) for i in range(count)]
        elif style == "months":
            names = list("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()[:count])
        else:
            names = [w.capitalize() for w in self.rng.sample(sorted(set(WORDS)), count)]
        if style == "letters" or max(map(self.wide, names)) > room:
            return list("ABCDEFGHIJKLMNOP"[:count])
        return names

    def scale(self, largest: float, *, vertical: bool) -> float:
        """Draw a value axis from 0 with ticks and grid; returns px per unit."""
        x0, y0, x1, y1 = self.box
        length = y1 - y0 if vertical else x1 - x0
        # A tick about each 3 lines of text, never a step that leaves the largest value outside.
        most = max(1, min(8, int(length / (3 * self.small))))
        step = next((s for s in _STEPS if s * most >= largest), math.ceil(largest / most))
        ticks = math.ceil(largest / step)
        unit = length / (ticks * step)
        grid = blend(self.paper, self.ink, 0.15) if self.rng.random() < 0.65 else None
        for value in range(0, ticks * step + 1, step):
            at = y1 - value * unit if vertical else x0 + value * unit
            ends = [(x0, at), (x1, at)] if vertical else [(at, y0), (at, y1)]
            if grid:
                self.line(ends, grid)
            if vertical:
                self.line([(x0 - 3, at), (x0, at)], self.ink)
                self.text(x0 - 5, at - 0.62 * self.small, str(value), align=1.0)
            else:
                self.line([(at, y1), (at, y1 + 3)], self.ink)
                self.text(at, y1 + 3, str(value), align=0.5)
        self.facts["axis_max"] = ticks * step
        return unit

    def axes(self) -> None:
        """The two axis lines, or at times a whole frame."""
        x0, y0, x1, y1 = self.box
        frame = [(x0, y0), (x0, y1), (x1, y1)]
        if self.rng.random() < 0.25:
            frame += [(x1, y0), (x0, y0)]
        self.line(frame, self.ink, 2)


def _values(rng: random.Random, count: int) -> list[int]:
    largest = rng.choice((9, 20, 50, 100, 100, 250, 900))
    return [rng.randint(max(1, largest // 10), largest) for _ in range(count)]


def _bars(chart: Chart, vertical: bool) -> None:
    rng = chart.rng
    if not vertical and chart.labelled:  # names stand left of the axis and need more room there
        x0, y0, x1, y1 = chart.box
        chart.box = (max(x0, chart.width // 4), y0, x1, y1)
    x0, y0, x1, y1 = chart.box
    span = x1 - x0 if vertical else y1 - y0
    count = rng.randint(2, max(2, min(9, span // 12)))
    slot = span / count
    names = chart.names(count, slot - 3 if vertical else x0 - 8)
    values = _values(rng, count)
    unit = chart.scale(max(values), vertical=vertical)
    thick = max(1, round(slot * rng.uniform(0.5, 0.9)))
    one = rng.random() < 0.6
    colours = [chart.colours[0 if one else i % len(chart.colours)] for i in range(count)]
    boxes, shown = [], vertical and rng.random() < 0.4 and chart.wide("000") < slot
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        start = round((x0 if vertical else y0) + (i + 0.5) * slot - thick / 2)
        long = round(value * unit)
        end = start + thick
        box = (start, y1 - long, end, y1) if vertical else (x0, start, x0 + long, end)
        chart.rectangle(box, colours[i])
        boxes.append(list(box))
        middle = start + thick / 2
        if vertical:
            chart.text(middle, y1 + 3, name, align=0.5)
            if shown:
                chart.text(middle, y1 - long - 1.2 * chart.small, str(value), align=0.5)
        else:
            chart.text(x0 - 5, middle - 0.62 * chart.small, name, align=1.0)
    chart.axes()
    chart.facts |= {"categories": names, "values": values, "boxes": boxes, "px_per_unit": unit}
    chart.facts |= {"colors": [list(c) for c in colours], "shown": shown and chart.labelled}


def _lines(chart: Chart) -> None:
    rng = chart.rng
    series = rng.randint(1, 3)
    keys = chart.names(series, chart.width * 0.2, numbered=False)
    x0, y0, x1, y1 = chart.box
    if series > 1 and chart.labelled:  # beside the plot, where it hides no mark
        room = round(max(map(chart.wide, keys)) + 1.2 * chart.small)
        _legend(chart, keys, x1 - room + 8, y0)
        x1 -= room
        chart.box = (x0, y0, x1, y1)
    count = rng.randint(3, max(3, min(14, (x1 - x0) // 10)))
    first, step = rng.choice(((0, 1), (1, 1), (0, 5), (0, 10), (2000, 1)))
    xs = [first + i * step for i in range(count)]
    values = [_walk(rng, count) for _ in range(series)]
    unit = chart.scale(max(map(max, values)), vertical=True)
    gap = (x1 - x0 - 8) / (count - 1)
    every = max(1, math.ceil(chart.wide(f"{xs[-1]}  ") / gap))  # skip labels that would touch
    for i in range(0, count, every):
        chart.text(x0 + 4 + i * gap, y1 + 3, str(xs[i]), align=0.5)
    chart.axes()
    width, dots = rng.choice((2, 3, 4, 6)), rng.random() < 0.5
    for k, row in enumerate(values):
        points = [(x0 + 4 + i * gap, y1 - v * unit) for i, v in enumerate(row)]
        chart.line(points, chart.colours[k], width)
        for x, y in points if dots else ():
            chart.dot(x, y, 0.5 + width * 0.75, chart.colours[k])
    chart.facts |= {"x": xs, "series": keys, "values": values, "px_per_unit": unit}
    chart.facts["colors"] = [list(c) for c in chart.colours[:series]]


def _walk(rng: random.Random, count: int) -> list[int]:
    top = rng.choice((20, 50, 100))
    value, row = rng.uniform(0.2, 0.8) * top, []
    for _ in range(count):
        value = min(top, max(0, value + rng.gauss(0, top / 7)))
        row.append(round(value))
    row[-1] = max(1, row[-1])  # an axis from 0 to 0 could not be drawn
    return row


def _scatter(chart: Chart) -> None:
    rng = chart.rng
    x0, y0, x1, y1 = chart.box
    count, slope = rng.randint(5, 60), rng.uniform(-1, 1)
    xs = [rng.randint(0, 100) for _ in range(count)]
    noise = rng.uniform(3, 25)
    ys = [min(100, max(0, round(50 + slope * (x - 50) + rng.gauss(0, noise)))) for x in xs]
    chart.scale(100, vertical=False)
    unit = chart.scale(100, vertical=True)
    chart.axes()
    radius = rng.uniform(1.5, max(2.0, min(x1 - x0, y1 - y0) / 45))
    for x, y in zip(xs, ys, strict=True):
        chart.dot(x0 + x * (x1 - x0) / 100, y1 - y * unit, radius, chart.colours[0])
    chart.facts |= {"x": xs, "values": ys, "px_per_unit": unit}
    chart.facts["colors"] = [list(chart.colours[0])]


def _pie(chart: Chart) -> None:
    rng = chart.rng
    top = chart.box[1]
    count = rng.randint(2, min(6, len(chart.colours)))
    parts = [rng.uniform(1, 4) for _ in range(count)]
    values = [max(1, round(100 * part / sum(parts))) for part in parts]
    values[0] += 100 - sum(values)  # percentages that add up
    names = chart.names(count, chart.width * 0.25)
    space = chart.width * (0.68 if chart.labelled else 1.0)
    radius = max(4, min(space, chart.height - top - 4) / 2 - 3)
    x, y = space / 2, top + (chart.height - top - 4) / 2
    start = rng.choice((-90.0, rng.uniform(0, 360)))
    edge = chart.paper if rng.random() < 0.5 else None
    box = (2 * (x - radius), 2 * (y - radius), 2 * (x + radius), 2 * (y + radius))
    angle = start
    for colour, value in zip(chart.colours, values, strict=False):
        chart.pen.pieslice(box, angle, angle + value * 3.6, fill=colour, outline=edge, width=2)
        angle += value * 3.6
    donut = rng.random() < 0.3
    if donut:
        chart.dot(x, y, radius * 0.5, chart.paper)
    _legend(chart, [f"{n} {v}%" for n, v in zip(names, values, strict=True)], space + 4, top)
    chart.facts |= {"categories": names, "values": values, "donut": donut}
    chart.facts |= {"center": [x, y], "radius": radius, "start_degrees": start}
    chart.facts["colors"] = [list(c) for c in chart.colours[:count]]


def _legend(chart: Chart, keys: list[str], x: float, y: float) -> None:
    small = chart.small
    for k, key in enumerate(keys if chart.labelled else ()):
        top = round(y + k * small * 1.4)
        side = round(small * 0.7)
        box = (round(x), top + 3, round(x) + side, top + 3 + side)
        chart.rectangle(box, chart.colours[k])
        chart.text(x + side + 3, top, fit_text(key, chart.path, small, chart.width - x - side - 4))


_MARKS: dict[str, Callable[[Chart], None]] = {
    "bar": lambda chart: _bars(chart, True),
    "barh": lambda chart: _bars(chart, False),
    "line": _lines,
    "scatter": _scatter,
    "pie": _pie,
}


def draw_chart(size: tuple[int, int], rng: random.Random, system_fonts: bool) -> SyntheticImage:
    """A chart. Facts: `mark`, `title` and `texts` (drawn words), `values`, `colors`, and by mark:

    bar, barh: `categories`, `boxes` (px), `shown` (values stand above the bars);
    line: `x`, `series`, `values` one row per series; scatter: `x`;
    pie: `categories`, `values` in percent, `center`, `radius` (px), `start_degrees` clockwise from
    3 o'clock. `labelled` False: too small, no text at all; `px_per_unit`: scale.
    """
    chart = Chart(size, rng, system_fonts)
    mark = rng.choice(tuple(_MARKS))
    _MARKS[mark](chart)
    return SyntheticImage(image=chart.finish(), kind="chart", facts={"mark": mark, **chart.facts})
