"""A report of a training run, to look at: one HTML file, or one PNG.

    make_report(Path("runs/tiny"), Path("report.html"))

The page asks for nothing outside itself: curves are SVG, pictures are data URIs, there is no
script. The PNG shows the same, without the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from viq.core.files import write_atomically
from viq.core.names import hashed
from viq.core.outputs import is_marked, marked, require_free
from viq.core.types import ViqError
from viq.image.open import ImageError, open_image
from viq.metrics.run_log import clock
from viq.report.charts import INKS, WIDTH, Chart, Words, short, text_width, to_image, to_svg
from viq.report.gallery_common import encoded
from viq.report.page import Picture, render
from viq.report.runs import Run, Stage, in_order, read_run, words
from viq.report.text import wrapped

_REASONS = 10  # of skipped samples, the first ones
_NONE = "–"
CURVES = (
    "Points are lines of the log and the curve is their smoothed course; the number is the last "
    "line's."
)
_DASHED = "Dashed: what even use of the codebook would give for as many codes."


def make_report(run: Path, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write the report of a run folder, finished or not, to `out`: .html, or .png.

    Args:
        overwrite: replace what is there even if it is no report of this run.

    Returns:
        run, report (the paths), and stages: by name, state, step, steps, seconds, last (value of
        each measure, in the unit of the report), warnings, skipped (how many).

    Raises:
        ViqError: not a run folder, another suffix, or `out` is there and no report of this run.
    """
    if out.suffix.lower() not in (".html", ".png"):
        raise ViqError(f"{out}: a report is an .html or a .png file; name it report.html")
    found = read_run(run)
    job = f"report of {hashed(found.name)}"
    if not is_marked(out, job):
        require_free(out, overwrite=overwrite)
    page = out.suffix.lower() == ".html"
    data = _page(found).encode(errors="replace") if page else encoded(_sheet(found), "PNG")
    write_atomically(out, marked(data, job))  # where nothing is, or our own report
    return {
        "run": str(run),
        "report": str(out),
        "stages": {
            stage.name: {
                "state": stage.state,
                "step": stage.step,
                "steps": stage.steps,
                "seconds": round(stage.seconds, 2),
                "last": {key: stage.last(key) for key in stage.measures},
                "warnings": stage.warnings,
                "skipped": len(stage.skipped),
            }
            for stage in found.stages
        },
    }


# Words that page and sheet share


def table(run: Run) -> list[list[str]]:
    """A column for each stage, a row for each fact; the first row and column are headings."""
    stages = run.stages
    rows = [
        ["", *(stage.name for stage in stages)],
        ["State", *(stage.state for stage in stages)],
        ["Steps", *(_steps(stage) for stage in stages)],
        ["Time", *(clock(stage.seconds) if stage.log else _NONE for stage in stages)],
    ]
    left = [stage.seconds_left for stage in stages]
    if any(left):
        rows.append(["Time left, about", *(clock(time) if time else _NONE for time in left)])
    for key in in_order(chain.from_iterable(stage.measures for stage in stages)):
        title, unit = words(key)
        last = [stage.last(key) for stage in stages]
        cells = [_NONE if value is None else short(value) for value in last]
        rows.append([f"{title}, {unit}" if unit else title, *cells])
    if any(stage.skipped for stage in stages):
        rows.append(["Skipped samples", *(f"{len(stage.skipped):,}" for stage in stages)])
    return rows


def _steps(stage: Stage) -> str:
    if not stage.log:
        return _NONE
    return f"{stage.step:,} of {stage.steps:,}" if stage.steps else f"{stage.step:,}"


def _code_facts(stage: Stage) -> str:
    newest = stage.codes[-1]
    levels = " × ".join(str(len(counts)) for counts in newest["levels"])
    used = round(newest["share"] * newest["codebook"])
    return (
        f"Levels {levels}. At step {newest['step']:,}, {newest['codes']:,} codes were seen: they "
        f"hit {used:,} of {newest['codebook']:,}. {_DASHED}"
    )


def _skipped(stage: Stage) -> list[str]:
    """How many samples were skipped, and why the first ones were."""
    if not stage.skipped:
        return []
    count, first = len(stage.skipped), stage.skipped[:_REASONS]
    head = "One sample was skipped" if count == 1 else f"{count:,} samples were skipped"
    head += "; the first:" if count > len(first) else ":"
    return [head, *(f"{record.get('key')}: {record.get('reason')}" for record in first)]


def newest_grid(stage: Stage) -> tuple[int, Image.Image] | None:
    """Step and picture of the newest sheet of originals above reconstructions that is whole."""
    for step, path in reversed(stage.grids):
        try:
            return step, open_image(path)
        except ImageError:  # damaged, or copied half: an older one will do
            continue
    return None


# HTML


def _page(run: Run) -> str:
    return render(
        "run.html", title=f"Training run {run.name}", table=table(run),
        stages=[section(stage) for stage in run.stages], about_curves=CURVES,
        recipe=None if run.recipe is None else json.dumps(run.recipe, indent=2),
    )  # fmt: skip


def section(stage: Stage) -> dict[str, Any]:
    """A stage as the template takes it."""
    step, grid = newest_grid(stage) or (0, None)
    return {
        "name": stage.name,
        "warnings": stage.warnings,
        "begun": bool(stage.log),
        "curves": _svg(stage.curves()),
        "code_facts": _code_facts(stage) if stage.codes else None,
        "code_curves": _svg(stage.code_curves()),
        "level_bars": _svg(stage.level_bars()),
        "grid_step": f"{step:,}",
        "grid": Picture.of(grid) if grid is not None else None,
        "skipped": _skipped(stage),
    }


def _svg(drawings: list[Chart]) -> list[Markup]:
    # `to_svg` has escaped the words.
    return [Markup(to_svg(drawing)) for drawing in drawings]  # nosec B704


# PNG

_SCALE = 1.5  # px of the picture for one of a chart: text is read without zooming
_MARGIN, _GAP = 40, 32
_FULL = 3 * WIDTH + 2 * _GAP
_SLACK = 1.1  # letters are a little wider at some sizes than at the one that is measured


def _sheet(run: Run) -> Image.Image:
    rows: list[Image.Image] = [_lines([f"Training run {run.name}"], "ink", 28)]
    rows.append(_drawn_table(table(run)) if run.stages else _lines(["No stage has begun."]))
    for stage in run.stages:
        rows += [_rule(), _lines([stage.name], "ink", 22)]
        if stage.warnings:
            rows.append(_lines(stage.warnings, "warn"))
        rows += [_lines([CURVES])] if stage.log else [_lines(["Nothing is in the log yet."])]
        rows += _in_rows(stage.curves())
        if stage.codes:
            rows += [_lines(["Use of the codebook"], "ink", 17), _lines([_code_facts(stage)])]
            rows += _in_rows(stage.code_curves()) + _in_rows(stage.level_bars())
        if newest := newest_grid(stage):
            step, grid = newest
            grid.thumbnail((round(_FULL * _SCALE), grid.height), Image.Resampling.LANCZOS)
            rows += [_lines([f"Pictures at step {step:,}: originals above what their codes give "
                             "back"], "ink", 17), grid]  # fmt: skip
        if skipped := _skipped(stage):
            rows.append(_lines(skipped))
    margin, gap = round(_MARGIN * _SCALE), round(18 * _SCALE)
    width = max(row.width for row in rows) + 2 * margin
    height = sum(row.height + gap for row in rows) - gap + 2 * margin
    sheet, top = Image.new("RGB", (width, height), INKS["paper"]), margin
    for row in rows:
        sheet.paste(row, (margin, top))
        top += row.height + gap
    return sheet


def _in_rows(drawings: list[Chart]) -> list[Image.Image]:
    """Drawings of one size side by side, as many as the sheet is wide."""
    if not drawings:
        return []
    width, height = drawings[0].width, drawings[0].height
    many = int((_FULL + _GAP) // (width + _GAP))
    rows = []
    for start in range(0, len(drawings), many):
        size = (round(_FULL * _SCALE), round(height * _SCALE))
        row = Image.new("RGB", size, INKS["paper"])
        for place, drawing in enumerate(drawings[start : start + many]):
            row.paste(to_image(drawing, _SCALE), (round(place * (width + _GAP) * _SCALE), 0))
        rows.append(row)
    return rows


def _lines(texts: Sequence[str], ink: str = "soft", size: float = 13) -> Image.Image:
    """Text in lines that are broken between words."""
    lines = [line for text in texts for line in wrapped(text, size, _FULL / _SLACK)]
    items = [Words(0, size * (1.4 * i + 1), line, ink, size) for i, line in enumerate(lines)]
    return to_image(Chart(_FULL, 1.4 * size * len(lines), "", list(items)), _SCALE)


def _rule() -> Image.Image:
    return Image.new("RGB", (round(_FULL * _SCALE), 2), INKS["line"])


def _drawn_table(rows: list[list[str]]) -> Image.Image:
    size, tall = 14, 24
    widths = [max(text_width(cell, size) for cell in column) for column in zip(*rows, strict=True)]
    items = []
    for i, row in enumerate(rows):
        across = 0.0
        for j, (cell, width) in enumerate(zip(row, widths, strict=True)):
            across += width + (36 if j else 0)
            ink, place = ("ink", (across, "end")) if j else ("soft", (0, "start"))
            items.append(Words(place[0], i * tall + 16, cell, ink, size, place[1]))
    whole = sum(widths) + 36 * len(widths)
    return to_image(Chart(max(_FULL, whole), len(rows) * tall, "", items), _SCALE)
