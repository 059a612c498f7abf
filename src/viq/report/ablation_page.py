"""The page of ablations: verdicts, the plot of paired differences, and every measure by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from viq.report.charts import Chart, Dots, Line, Words, labels, text_width, ticks, to_svg
from viq.report.standing import standing

_WIDTH, _ROW, _TOP, _BOTTOM = 720, 26, 34, 34  # px
_SIZE = 11.5  # px, of text
_INKS = {"confirmed": "green", "contradicted": "warn"}  # of verdicts; others are soft
_NAMES = {
    "understanding": "understanding", "probe_names": "names, linear probe",
    "reader": "reader, mean", "place_and_count": "place and count",
    "looked": "place and count, fresh reader",
    "kodak_db": "Kodak crops, dB, linear map", "perplexity": "perplexity of codes",
    "used": "codes used",
}  # fmt: skip


def chart_svg(claims: Sequence[Mapping[str, Any]]) -> str:
    """`differences` as a file of its own."""
    return standing(to_svg(differences(claims)))


def differences(claims: Sequence[Mapping[str, Any]]) -> Chart:
    """Paired differences with their intervals, one row a claim, colours by verdict."""
    drawing = Chart(_WIDTH, _TOP + _ROW * max(1, len(claims)) + _BOTTOM, "Paired differences")
    drawing.items.append(Words(0, 16, "Paired differences and 95% intervals", "ink", 14))
    if not claims:
        return drawing
    ends = [(c["mean"] - c["half_width"], c["mean"] + c["half_width"]) for c in claims]
    margins = [-(c["margin"] or 0.0) for c in claims]
    marks = ticks(min(0.0, *(low for low, _ in ends), *margins), max(0.0, *(h for _, h in ends)))
    left = 10 + max(text_width(_row_name(claim), _SIZE) for claim in claims)
    right, bottom = _WIDTH - 14, drawing.height - _BOTTOM

    def across(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    for mark, label in zip(marks, labels(marks), strict=True):
        ink = "soft" if mark == 0 else "line"
        drawing.items.append(Line([(across(mark), _TOP), (across(mark), bottom)], ink))
        drawing.items.append(Words(across(mark), bottom + 16, label, anchor="middle"))
    for row, (claim, (low, high)) in enumerate(zip(claims, ends, strict=True)):
        y, ink = _TOP + (row + 0.5) * _ROW, _INKS.get(claim["verdict"], "curve")
        drawing.items.append(Words(0, y + 4, _row_name(claim), "ink"))
        if claim["margin"]:
            at = across(-claim["margin"])
            drawing.items.append(Line([(at, y - 9), (at, y + 9)], "soft", dashed=True))
        drawing.items += [
            Line([(across(low), y), (across(high), y)], ink, 2),
            Dots([(across(seed), y + 7) for seed in claim["seeds"]], "points", 3),
            Dots([(across(claim["mean"]), y)], ink, 8),
        ]
    unit = "points of percent; dB for the measure of pixels; dashed: the margin"
    drawing.items.append(Words(right, bottom + 31, unit, anchor="end"))
    return drawing


def _row_name(claim: Mapping[str, Any]) -> str:
    unit = " (dB)" if claim["outcome"] == "kodak_db" else ""
    return f"{claim['claim']}{unit}"


def page(result: Mapping[str, Any], chart: str) -> str:
    """Markdown.

    Args:
        chart: address of the plot.
    """
    seeds = result["seeds"]
    lines = [
        "# Ablations", "",
        f"Recipe `{result['settings']['name']}`, {seeds} seeds, torch {result['torch']}.", "",
        f"![Paired differences and their intervals]({chart})", "",
        *_claims(result["claims"]), "",
    ]  # fmt: skip
    if result["not_run"]:
        lines += [f"Not run: {', '.join(result['not_run'])}.", ""]
    lines += _table("arm", result["arms"])
    if result["features"]:
        lines += ["", *_table("reader sees", result["features"])]
    return "\n".join(lines) + "\n"


def _claims(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| claim | measure | difference, 95% interval | seeds | verdict |",
        "|---|---|---|---|---|",
    ]
    for claim in claims:
        low = claim["mean"] - claim["half_width"]
        high = claim["mean"] + claim["half_width"]
        rows.append(
            f"| {claim['claim']} | {_NAMES.get(claim['outcome'], claim['outcome'])} "
            f"| {claim['mean']:+.2f} ({low:+.2f} to {high:+.2f}) | {len(claim['seeds'])} "
            f"| {claim['verdict']} |"
        )
    return rows


def _table(first: str, arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Means and half widths: measures downwards, arms across."""
    outcomes = list(dict.fromkeys(o for measures in arms.values() for o in measures))
    rows = [f"| {first} | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for outcome in outcomes:
        cells = [_cell(measures.get(outcome)) for measures in arms.values()]
        rows.append(f"| {_NAMES.get(outcome, outcome)} | " + " | ".join(cells) + " |")
    return rows


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    digits = 0 if found["mean"] >= 100 else 2 if found["half_width"] < 0.1 else 1
    return f"{found['mean']:.{digits}f} ± {found['half_width']:.{digits}f}"
