"""Quality over bits a pixel, of codecs and tokenizers; and what else has a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from viq.report.charts import (
    WIDTH,
    Chart,
    Dots,
    Line,
    Words,
    labels,
    log_ticks,
    short,
    text_width,
    ticks,
)

_HEIGHT, _TOP, _RIGHT, _BOTTOM = 270, 34, 14, 40  # px; the left side is as wide as its labels
_LABEL = 11.5  # px, size of text
_LINE = 13  # px from one label to the next
_INKS = ("curve", "orange", "green", "violet", "warn", "ink", "soft")  # in turn

_LONG = 24  # characters of a name

Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """The points of one codec or tokenizer.

    Attributes:
        points: bits a pixel, more than 0, and quality; at least one. A line joins those of several.
            Whatever else a chart has across and upwards.
        entropy: the bits a pixel of its only point after entropy coding, if it has some.
    """

    name: str
    points: Sequence[tuple[float, float]]
    entropy: float | None = None


def rate_chart(
    series: Sequence[Series],
    title: str,
    *,
    across: str = "bits a pixel",
    both_logarithmic: bool = False,
) -> Chart:
    """A plot of at least one series; bits a pixel, or what `across` says, on a logarithmic axis.

    A dashed line leads from a tokenizer's plain bits to those after entropy coding.

    Args:
        both_logarithmic: values upwards, too; all above 0.
    """
    drawing = Chart(WIDTH, _HEIGHT, title)
    place = _axes(drawing, series, across, both_logarithmic)
    names: list[tuple[float, float, str, str]] = []
    for number, one in enumerate(series):
        ink = _INKS[number % len(_INKS)]
        points = sorted(one.points)
        dots = [place(*point) for point in points]
        if len(dots) > 1:
            drawing.items.append(Line(dots, ink, 1.5))
        if one.entropy is not None:
            end = place(one.entropy, points[0][1])
            drawing.items += [Line([end, dots[0]], ink, 1.5, dashed=True), Dots([end], ink, 4)]
        drawing.items.append(Dots(dots, ink, 5 if len(dots) > 1 else 8))
        x, y = dots[-1]
        # Lines that end at the right edge have their names above them.
        names.append((x, y - _LINE if both_logarithmic else y, one.name, ink))
    drawing.items += _apart(names, drawing.height - _BOTTOM)
    drawing.items.append(Words(0, 16, title, "ink", 14))
    return drawing


def _axes(drawing: Chart, series: Sequence[Series], name: str, both_logarithmic: bool) -> Place:
    """Draw both axes; gives the place in px of bits a pixel and quality."""
    rates = [rate for one in series for rate, _ in one.points]
    rates += [one.entropy for one in series if one.entropy is not None]
    values = [value for one in series for _, value in one.points]
    x_ticks = log_ticks(min(rates), max(rates))
    y_ticks = (log_ticks if both_logarithmic else ticks)(min(values), max(values))
    scale = math.log if both_logarithmic else float
    if len(x_ticks) < 2:  # all at one round number
        x_ticks = [x_ticks[0] / 2, x_ticks[0], x_ticks[0] * 2]
    y_labels = labels(y_ticks)
    left = 10 + max(text_width(label, _LABEL) for label in y_labels)
    # Beside the plot is room for the names of curves, which would lie on lines within it.
    names = [12 + text_width(_short(one.name), _LABEL) for one in series if len(one.points) > 1]
    right, bottom = drawing.width - max([_RIGHT, *names]), drawing.height - _BOTTOM
    low, high = math.log(x_ticks[0]), math.log(x_ticks[-1])
    least, most = scale(y_ticks[0]), scale(y_ticks[-1])

    def place(rate: float, value: float) -> tuple[float, float]:
        across = left + (math.log(rate) - low) / (high - low) * (right - left)
        up = (scale(value) - least) / (most - least) * (bottom - _TOP)
        return across, bottom - up

    for tick, label in zip(y_ticks, y_labels, strict=True):
        height = place(x_ticks[0], tick)[1]
        drawing.items += [
            Line([(left, height), (right, height)], "line"),
            Words(left - 6, height + 4, label, anchor="end"),
        ]
    for tick in x_ticks:
        across = place(tick, y_ticks[0])[0]
        drawing.items += [
            Line([(across, bottom), (across, bottom + 4)], "soft"),
            Words(across, bottom + 17, short(tick), anchor="middle"),
        ]
    drawing.items.append(Line([(left, bottom), (right, bottom)], "soft"))
    drawing.items.append(Words(right, bottom + 33, name, anchor="end"))
    return place


def _apart(names: Sequence[tuple[float, float, str, str]], bottom: float) -> list[Words]:
    """Names beside their points, none over another or below the plot."""
    placed: list[tuple[float, float, float]] = []  # left, right, y
    words = []
    for x, y, full, ink in sorted(names, key=lambda item: item[1]):
        name = _short(full)
        width = text_width(name, _LABEL)
        fits = x + 9 + width <= WIDTH
        left = x + 9 if fits else x - 9 - width
        near = [line for begin, end, line in placed if left < end and begin < left + width]
        lines = [y + 4, *(other + step for other in near for step in (-_LINE, _LINE))]
        free = (
            line
            for line in sorted(lines, key=lambda line: abs(line - y - 4))
            if _TOP <= line <= bottom and all(abs(line - other) >= _LINE for other in near)
        )
        line = next(free, y + 4)
        placed.append((left, left + width, line))
        anchor = "start" if fits else "end"
        words.append(Words(left if fits else x - 9, line, name, ink, anchor=anchor))
    return words


def _short(name: str) -> str:
    """A name without its middle, if it is long."""
    return name if len(name) <= _LONG else f"{name[: _LONG // 2]}…{name[1 - _LONG // 2 :]}"
