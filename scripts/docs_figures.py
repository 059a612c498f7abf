"""Charts and drawings of the documentation: `python scripts/docs_figures.py` writes docs/figures.

Charts show the tables of the pages that they stand on, and are read from them, so a figure that is
changed in a table needs this script once more; a test says so. All are painted as reports are
(`viq.report.charts`). The files carry colours for light and dark; on the site they take those of
the page.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from viq.bench.gpu.cells import read_results
from viq.bench.gpu.tables import by_part
from viq.bench.gpu.tables import charts as gpu_charts
from viq.bench.growth_tables import UNITS
from viq.bench.growth_tables import chart as growth_chart
from viq.recipes.registry import RECIPES
from viq.report.ablation_page import differences
from viq.report.charts import (
    Box,
    Chart,
    Line,
    Words,
    labels,
    text_width,
    ticks,
    to_svg,
)
from viq.report.rate_chart import Series, rate_chart
from viq.report.standing import colours, rules, standing

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs/figures"
_TITLE = 14  # px
_WIDTH = 560
Row = tuple[str, list[tuple[float, float]]]  # a name, and a value and half of its interval each


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, chart in figures().items():
        (FOLDER / f"{name}.svg").write_text(chart)
    print(f"wrote {len(figures())} files into {FOLDER}")


def figures() -> dict[str, str]:
    """Every file of docs/figures, by name."""
    made = {
        "rates": rates(),
        "reading": reading(),
        "answers": answers(),
        "probes": probes(),
        "drawing": drawing(),
        "way": way(),
        "packing": packing(),
        "stages": stages(),
        **growth(),
        **on_a_gpu(),
        "ablations": ablations(),
    }
    return {name: standing(to_svg(chart)) for name, chart in made.items()}


# Charts of tables


def rates() -> Chart:
    """Quality over bits a pixel, of the rows that are means of all pictures."""
    rows = table("results.md", "Variable rate")
    most = max(row["pictures"] for row in rows)
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["pictures"] == most:
            name = row[""].partition("@")[0]
            points.setdefault(name, []).append(
                (number(row["bits a pixel"])[0], number(row["PSNR, dB"])[0])
            )
    return rate_chart([Series(name, each) for name, each in points.items()], "PSNR on Kodak, dB")


def reading() -> Chart:
    """How fast samples come out of stores of codes, beside other libraries."""
    rows = table("results.md", "Reading")
    heads = ("in order", "at random")
    listed = [(plain(row[""]), [number(row[head]) for head in heads]) for row in rows]
    return bars("Samples a second", heads, listed)


def answers() -> Chart:
    """What the bundled language model answers right, beside the same without the image."""
    rows = table("mllm.md", "What the small models know", 2)
    heads = ("right", "other images", "before")
    listed = [(next(iter(row.values())), [number(row[head]) for head in heads]) for row in rows]
    return bars("Right answers of viq-transform-chat, %", heads, listed)


def probes() -> Chart:
    """What can be read from the codes of each way of training."""
    rows = table("training.md", "What alignment and the other choices give, at equal budget")
    head = "colour of the shape (12)"
    listed = [(row["codes of"], [number(row[head])]) for row in rows]
    return bars("Colours of a shape that a linear probe names, %", ("right",), listed)


def drawing() -> Chart:
    """The losses of a model that draws, on what it is trained on and on other pictures."""
    rows = table("generation.md", "On codes of viq-transform", 1)
    series = [
        Series(name, [(number(row["steps"])[0], number(row[name])[0]) for row in rows])
        for name in ("training", "held out")
    ]
    return rate_chart(series, "Loss of a patch, nats", across="steps")


def on_a_gpu() -> dict[str, Chart]:
    """What `scripts/gpu_day.py` measured."""
    return gpu_charts(by_part(read_results(ROOT / "docs/gpu")))


def growth() -> dict[str, Chart]:
    """What `viq bench growth` measured, a chart a section."""
    found = json.loads((ROOT / "docs/growth.json").read_text())
    return {f"growth-{name}": growth_chart(name, found[name]) for name in UNITS if name in found}


def table(page: str, heading: str, place: int = 0) -> list[dict[str, str]]:
    """The rows of a table below a heading, the first unless told otherwise, by their columns."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise SystemExit(f"docs/{page}: no heading {heading!r}, whose table a chart shows")
    tables = re.findall(r"(?:^\|.*\|\n)+", found[1] + "\n", re.MULTILINE)
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in tables[place].strip().splitlines()
    )
    return [dict(zip(head, row, strict=True)) for row in rows]


def number(cell: str) -> tuple[float, float]:
    """A value, and the half of its interval: "95.9 ± 3.8", "**54.3**", "36,150 (1.5)"."""
    value, _, half = plain(cell).replace(",", "").partition("±")
    return float(value.split("(")[0] or "nan"), float(half or 0)


def plain(cell: str) -> str:
    return cell.replace("**", "").replace("`", "").strip()


def bars(title: str, series: Sequence[str], rows: Sequence[Row]) -> Chart:
    """A bar for each value, a group for each row; a line across the end shows the interval."""
    inks = ("curve", "points", "soft")
    bar, gap, top = (15 if len(series) == 1 else 11), 9, 34 if len(series) == 1 else 56
    bottom = top + len(rows) * (bar * len(series) + gap)
    drawing = Chart(_WIDTH, bottom + 26, title)
    drawing.items.append(Words(0, 16, title, "ink", _TITLE))
    left = 10 + max(text_width(name, 12) for name, _ in rows)
    fine = any(value % 1 for _, each in rows for value, _ in each if value == value)
    most = 100.0 if title.endswith("%") else math.inf
    values = [min(most, value + half) for _, each in rows for value, half in each if value == value]
    marks = ticks(0, max(values), 5)
    right = _WIDTH - 62

    def across(value: float) -> float:
        return left + value / marks[-1] * (right - left)

    for mark, label in zip(marks, labels(marks), strict=True):
        drawing.items += [
            Line([(across(mark), top - 6), (across(mark), bottom)], "line"),
            Words(across(mark), bottom + 17, label, anchor="middle"),
        ]
    at = 0.0
    for place, name in enumerate(series if len(series) > 1 else ()):
        drawing.items += [Box(at, 28, 11, 11, inks[place]), Words(at + 16, 38, name)]
        at += text_width(name, 11.5) + 40
    y = float(top)
    for name, each in rows:
        middle = y + bar * len(each) / 2
        drawing.items.append(Words(left - 8, middle + 4, name, "ink", 12, "end"))
        for place, (value, half) in enumerate(each):
            if value == value:
                drawing.items.append(Box(left, y, across(value) - left, bar - 2, inks[place]))
                ends = [across(max(0, value - half)), across(min(most, value + half))]
                if half:
                    line = [(ends[0], y + bar / 2 - 1), (ends[1], y + bar / 2 - 1)]
                    drawing.items.append(Line(line, "ink"))
                shown = f"{value:,.1f}" if fine else f"{value:,.0f}"
                drawing.items.append(Words(ends[1] + 6, y + bar - 3, shown, size=10.5))
            y += bar
        y += gap
    return drawing


# Drawings


def way() -> Chart:
    """What becomes of an image, and which folder of the code does it."""
    steps = (
        ("files, tables, tars, JSON, data sets, URLs", "data/sources"),
        ("row: key, images, other columns", "image/open"),
        ("upright RGB, (H, W, 3) uint8", "image/patches"),
        ("packed patches, (T, 768)", "models/tokenizer/encoder"),
        ("tokens, (T, C)", "models/tokenizer/quantizer"),
        ("codes, (rows, cols, 4) uint16", "core/codes, store, codec"),
        (".viq file, or store of Parquet files", "store/dataset, tokenizer/embedder"),
        ("features, (T, C)", ""),
    )
    box, step, tall, left = 290, 62, 32, 30
    drawing = Chart(_WIDTH, step * len(steps) + tall + 40, "The way of an image")
    for place, (words, by) in enumerate(steps):
        y = place * step + 4.0
        _node(drawing, left, y, box, tall, words, place == 5)
        if by:
            _arrow(drawing, (left + box / 2, y + tall), (left + box / 2, y + step))
            drawing.items.append(Words(left + box / 2 + 14, y + tall + 20, by))
    y = len(steps) * step + 4.0
    above = y - step + tall
    for x, wide, words, by in (
        (6.0, 150, "picture", "models/tokenizer/decoder"),
        (250.0, 230, "words of a language model", "models/language, mllm"),
    ):
        _node(drawing, x, y, wide, tall, words, False)
        foot = max(left + 30, min(left + box - 30, x + wide / 2))
        _arrow(drawing, (foot, above), (foot, y))
        drawing.items.append(Words(foot + 14, above + 20, by))
    level = 5 * step + 4 + tall / 2
    _node(drawing, 430, level - tall / 2, 126, tall, "sentence", False)
    _arrow(drawing, (430, level), (left + box, level))
    drawing.items.append(Words(_WIDTH - 4, level + tall / 2 + 16, "mllm/generation", anchor="end"))
    return drawing


def packing() -> Chart:
    """Images of several sizes as one sequence, and who attends to whom."""
    drawing = Chart(_WIDTH, 346, "Packing: images of any size in one sequence")
    drawing.items.append(Words(0, 16, drawing.title, "ink", _TITLE))
    grids, inks, cell = ((3, 4), (2, 5), (4, 2)), ("curve", "orange", "green"), 17
    x = 0.0
    for (rows, cols), ink in zip(grids, inks, strict=True):
        for row in range(rows):
            for col in range(cols):
                drawing.items.append(Box(x + col * cell, 34 + row * cell, cell - 2, cell - 2, ink))
        text = f"{rows} x {cols} patches"
        drawing.items.append(Words(x, 34 + rows * cell + 13, text))
        x += max(cols * cell, text_width(text, 11.5)) + 34
    total, wide, y = sum(rows * cols for rows, cols in grids), 12, 152
    drawing.items.append(Words(0, y - 8, f"one sequence of {total} patches, row after row"))
    matrix, small = 192.0, 4.6
    drawing.items.append(Words(0, matrix, "attention: each patch looks at those of its own image"))
    drawing.items.append(Box(0, matrix + 10, total * small, total * small, "line"))
    begin = 0
    for (rows, cols), ink in zip(grids, inks, strict=True):
        count = rows * cols
        for place in range(begin, begin + count):
            drawing.items.append(Box(place * wide, y, wide - 2, wide - 2, ink))
        at = begin * small
        drawing.items.append(Box(at, matrix + 10 + at, count * small, count * small, ink))
        begin += count
    notes = (
        "The square has a row and a column for each patch.",
        "Grey is never computed: there is no padding,",
        "and no image sees another.",
    )
    for line, words in enumerate(notes):
        drawing.items.append(Words(total * small + 22, matrix + 40 + 18 * line, words))
    return drawing


def stages() -> Chart:
    """Which part of a tokenizer learns in which stage of the recipe `tiny`."""
    parts = {
        "teacher": lambda stage: stage.kind == "tower",
        "encoder": lambda stage: "encoder" in stage.parts,
        "quantizer": lambda stage: "quantizer" in stage.parts,
        "pooled token": lambda stage: "distill" in stage.loop.losses,
        "language model": lambda stage: "text" in stage.loop.losses,
        "pixel decoder": lambda stage: "decoder" in stage.parts,
    }
    listed, left, top, step, tall = RECIPES["tiny"]().stages, 118, 96, 53, 26
    drawing = Chart(_WIDTH, top + tall * len(parts) + 34, "What learns in each stage")
    drawing.items.append(Words(0, 16, drawing.title, "ink", _TITLE))
    for place, stage in enumerate(listed):
        x = left + place * step
        number, *words = re.findall(r"^\d+(?:-\d+|[a-z])?|[^-]+", stage.name)
        for line, word in enumerate((number, *words)):
            drawing.items.append(Words(x, top - 50 + 14 * line, word, "ink", 10.5))
        drawing.items.append(Words(x, top + tall * len(parts) + 18, f"{stage.loop.steps:,}"))
    drawing.items.append(Words(0, top + tall * len(parts) + 18, "steps of tiny"))
    for row, (name, learns) in enumerate(parts.items()):
        y = top + row * tall
        drawing.items.append(Words(0, y + 16, name, "ink", 12))
        for place, stage in enumerate(listed):
            ink = "curve" if learns(stage) else "line"
            drawing.items.append(Box(left + place * step, y, step - 5, tall - 5, ink))
    return drawing


def _node(
    drawing: Chart, x: float, y: float, wide: float, tall: float, words: str, strong: bool
) -> None:
    corners = [(x, y), (x + wide, y), (x + wide, y + tall), (x, y + tall), (x, y)]
    drawing.items += [
        Box(x, y, wide, tall, "line"),
        Line(corners, "curve" if strong else "soft", 2 if strong else 1),
        Words(x + wide / 2, y + tall / 2 + 4.5, words, "ink", 13, "middle"),
    ]


def _arrow(drawing: Chart, begin: tuple[float, float], end: tuple[float, float]) -> None:
    (x, y), across = end, end[0] - begin[0]
    head = (
        [(x + 7, y - 4), end, (x + 7, y + 4)] if across else [(x - 4, y - 7), end, (x + 4, y - 7)]
    )
    drawing.items += [Line([begin, end], "soft", 1.5), Line(head, "soft", 1.5)]


def ablations() -> Chart:
    """Paired differences of the runs whose results are docs/ablations.json."""
    return differences(json.loads((ROOT / "docs/ablations.json").read_text())["claims"])


# Files


def inside(file: str) -> str:
    """The text of such a file as an element of a page of the site; `page_style` has its colours."""
    svg = re.sub(r"<style>.*?</style>", "", file.strip(), flags=re.DOTALL)
    return f'<div class="chart">{svg}</div>'


def page_style() -> str:
    """Rules for the charts of a page that is light or dark as its reader has chosen (furo)."""
    light, dark = colours()
    return (
        f".chart{{{light}overflow-x:auto;margin:1.5rem 0}}"
        f'body[data-theme="dark"] .chart{{{dark}}}'
        f'@media (prefers-color-scheme:dark){{body:not([data-theme="light"]) .chart{{{dark}}}}}'
        ".chart svg{min-width:26rem;max-width:100%;height:auto}"
        f"{rules('.chart ')}"
    )


if __name__ == "__main__":
    main()
