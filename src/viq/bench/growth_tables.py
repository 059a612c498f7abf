"""The result of `viq.bench.growth.run` as plain text and as charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from viq.bench.encode_tables import table
from viq.report.charts import Chart, short
from viq.report.rate_chart import Series, rate_chart

# Of each section: what is counted, its unit, and by how much seconds are multiplied to be read.
UNITS = {
    "pixels": ("megapixels", "seconds a megapixel", 1.0),
    "samples": ("samples", "microseconds a sample", 1e6),
    "tokens": ("tokens", "microseconds a token", 1e6),
}


def as_text(result: dict[str, Any]) -> str:
    """The result of `run` as text."""
    about = result["machine"]
    lines = [
        f"{result['model']}; seconds of processors, medians; peak of a fresh process",
        f"{about['cpu']}, {about['cores']} cores, {about['torch_threads']} torch threads; "
        f"{about['os']}, Python {about['python']}, torch {about['torch']}",
    ]
    for name in UNITS:
        if name in result:
            lines += ["", *_section(name, result[name])]
    return "\n".join(lines)


def _section(name: str, section: dict[str, Any]) -> list[str]:
    counted, unit, scale = UNITS[name]
    sizes = [f"{row['size']:,g}" if row["size"] < 1e6 else f"{row['size']:,}" for row in
             next(iter(section.values()))]  # fmt: skip
    times: list[Sequence[str]] = [(f"{unit}, of {counted}", *sizes, "power")]
    peaks: list[Sequence[str]] = [(f"peak MiB, of {counted}", *sizes)]
    for job, rows in section.items():
        costs = (short(scale * row["median_s"] / row["size"]) for row in rows)
        times.append((job, *costs, f"{power(rows):.2f}"))
        memory = (f"{row['peak_mib']:,.0f}" if row["peak_mib"] else "unknown" for row in rows)
        peaks.append((job, *memory))
    return [*table(times), *table(peaks)]


def power(rows: Sequence[dict[str, Any]]) -> float:
    """p where time grows as size^p, between the two largest sizes: 1 is linear."""
    if len(rows) < 2:
        return math.nan
    a, b = rows[-2:]
    return math.log(b["median_s"] / a["median_s"]) / math.log(b["size"] / a["size"])


def chart(name: str, section: dict[str, Any]) -> Chart:
    """Time a unit over the number of units, a line for each job: level is linear."""
    counted, unit, scale = UNITS[name]
    series = [
        Series(job, [(row["size"], scale * row["median_s"] / row["size"]) for row in rows])
        for job, rows in section.items()
    ]
    return rate_chart(series, unit, across=counted, both_logarithmic=True)
