"""The speed table of `viq.bench.mllm`: as text beside the paper's figures, and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from viq.bench.encode_tables import table
from viq.core.types import ViqError
from viq.report.charts import Box, Chart, Line, Words, labels, ticks

# Seconds of the paper: codes, and SigLIP2-g in the loop (8 GPUs, up to 768 px, packed).
PAPER: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("0.5b", "4k"): {"forward": (0.61, 2.08), "step": (1.45, 2.88)},
    ("0.5b", "16k"): {"forward": (2.72, 12.94), "step": (4.44, 14.56)},
    ("1.5b", "4k"): {"forward": (0.67, 2.15), "step": (1.70, 3.15)},
    ("1.5b", "16k"): {"forward": (3.13, 13.38), "step": (5.89, 16.08)},
    ("3b", "4k"): {"forward": (0.95, 2.47), "step": (2.64, 4.11)},
    ("3b", "16k"): {"forward": (3.79, 14.00), "step": (8.58, 18.81)},
    ("7b", "4k"): {"forward": (1.68, 3.15), "step": (4.73, 6.14)},
    ("7b", "16k"): {"forward": (5.47, 15.67), "step": (14.37, 24.62)},
}
_NAMES = {"text": "text alone", "codes": "codes", "so400m": "so400m online", "g": "g online"}
_INKS = {"text": "line", "codes": "curve", "so400m": "points", "g": "soft"}


def as_text(result: dict[str, Any]) -> str:
    """The result of `run` as text."""
    about, work = result["machine"], result["work"]
    scale = work["scale"]
    lines = [
        f"{about['gpu'] if result['device'] == 'cuda' else about['cpu']}, {result['dtype']}, "
        f"torch {about['torch']}, transformers {about['transformers']}, {about['os']}, "
        f"{about['torch_threads']} threads; medians of {result['repeats']} interleaved runs",
        f"images up to {work['side']}x{work['side']} px, each with {work['text']} tokens of text, "
        f"{work['answer']} of them scored; packed; gradient checkpointing "
        f"{'on' if work['checkpointing'] else 'off'}; nothing compiled; towers frozen",
    ]
    if result["scaled"]:
        lines.append(
            f"SCALED DOWN: widths 1/{scale['width']}, depths 1/{scale['depth']}, tokens "
            f"1/{scale['length']}, image sides 1/{scale['side']}: only ratios can be compared"
        )
    whole = [cell for cell in result["cells"] if "skipped" not in cell]
    for kind in ("forward", "step"):
        lines += ["", f"Seconds, {kind}" + (" pass" if kind == "forward" else " of training")]
        lines += table([_heads(whole), *(_row(cell, kind) for cell in whole)])
    lines += ["", "Extraction of the codes of one sequence, and peak memory of a step"]
    lines += table([_EXTRACTION, *(_extraction(cell) for cell in whole)])
    for cell in result["cells"]:
        if "skipped" in cell:
            lines.append(f"  {cell['llm']} {cell['length']}: {cell['skipped']}")
    lines += ["", "saved: 1 - codes / tower. limit: codes / text alone - 1. break-even: epochs "
              "after which extraction has paid for itself."]  # fmt: skip
    return "\n".join(lines)


def saving(cell: dict[str, Any], kind: str, tower: str = "g") -> float | None:
    """Share of the time that codes save against a tower in the loop."""
    times = cell[kind]
    if not {"codes", tower} <= times.keys():
        return None
    return 1 - times["codes"]["median_s"] / times[tower]["median_s"]


def over_limit(cell: dict[str, Any], kind: str) -> float | None:
    """How much longer codes take than plain text of the same length."""
    times = cell[kind]
    if not {"codes", "text"} <= times.keys():
        return None
    return times["codes"]["median_s"] / times["text"]["median_s"] - 1


def break_even(cell: dict[str, Any], tower: str = "g") -> dict[str, float | None]:
    """Epochs after which extraction has paid for itself, by its dtype; None: never."""
    times = cell["step"]
    if not {"codes", tower} <= times.keys():
        return {}
    gained = times[tower]["median_s"] - times["codes"]["median_s"]
    return {
        dtype: spent / gained if gained > 0 else None for dtype, spent in cell["extraction"].items()
    }


def merged(old: dict[str, Any], new: dict[str, Any], where: str) -> dict[str, Any]:
    """Both results as one, so that a table can be measured in pieces; new cells replace old ones.

    Raises:
        ViqError: they were measured on different machines or in different ways.
    """
    differing = sorted(
        key for key in new.keys() | old.keys() if key != "cells" and old.get(key) != new.get(key)
    )
    if differing:
        raise ViqError(
            f"{where}: was measured otherwise ({', '.join(differing)} differ): write another file"
        )
    cells = {(cell["llm"], cell["length"]): cell for cell in [*old["cells"], *new["cells"]]}
    order = list(PAPER)

    def place(key: tuple[str, str]) -> tuple[int, tuple[str, str]]:
        return (order.index(key) if key in order else len(order)), key

    return {**new, "cells": [cells[key] for key in sorted(cells, key=place)]}


def chart(result: dict[str, Any]) -> Chart:
    """Seconds of a step, a group of bars a cell; the part of the forward pass in front."""
    cells = [cell for cell in result["cells"] if "skipped" not in cell]
    if not cells:
        raise ViqError("nothing was measured: there is no chart to draw")
    longest = max(spent["median_s"] for cell in cells for spent in cell["step"].values())
    ways = list(cells[0]["step"])
    bar, left, top = 13, 70, 62
    group = bar * len(ways) + 12
    drawing = Chart(720, top + group * len(cells) + 40, "Seconds a training step")
    marks = ticks(0, longest)
    right, bottom = drawing.width - 150, top + group * len(cells)  # room for what codes save

    def across(seconds: float) -> float:
        return left + seconds / marks[-1] * (right - left)

    note = " (scaled down: compare ratios only)" if result["scaled"] else ""
    drawing.items.append(Words(0, 16, drawing.title + note, "ink", 14))
    at = 0.0
    for way in ways:
        drawing.items += [Box(at, 30, 11, 11, _INKS[way]), Words(at + 16, 40, _NAMES[way])]
        at += 130
    for mark, label in zip(marks, labels(marks), strict=True):
        drawing.items += [
            Line([(across(mark), top - 6), (across(mark), bottom)], "line"),
            Words(across(mark), bottom + 16, label, anchor="middle"),
        ]
    for number, cell in enumerate(cells):
        y = top + number * group
        drawing.items.append(
            Words(left - 8, y + group / 2, f"{cell['llm']} {cell['length']}", "ink", anchor="end")
        )
        for way in ways:
            spent = cell["step"][way]["median_s"]
            drawing.items.append(Box(left, y, across(spent) - left, bar - 2, _INKS[way]))
            value = f"{spent:.3g}"
            if way in ("so400m", "g") and (saved := saving(cell, "step", way)) is not None:
                value += f"  codes save {saved:.0%}"
            drawing.items.append(Words(across(spent) + 5, y + bar - 3, value))
            y += bar
    machine = result["machine"]
    name = machine["gpu"] if result["device"] == "cuda" else machine["cpu"]
    drawing.items.append(Words(0, bottom + 34, f"{name}, {result['dtype']}, torch "
                               f"{machine['torch']}"))  # fmt: skip
    return drawing


def _heads(cells: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    ways = list(cells[0]["step"]) if cells else []
    return ("", *(_NAMES[way] for way in ways), "limit", "saved (so400m)", "saved (g)", "paper",
            "paper saved")  # fmt: skip


def _row(cell: dict[str, Any], kind: str) -> tuple[str, ...]:
    seconds = [f"{spent['median_s']:.3g}" for spent in cell[kind].values()]
    over = over_limit(cell, kind)
    saved = [saving(cell, kind, tower) for tower in ("so400m", "g")]
    paper = PAPER.get((cell["llm"], cell["length"]), {}).get(kind)
    theirs = [f"{paper[0]:g}/{paper[1]:g}", f"{1 - paper[0] / paper[1]:.0%}"] if paper else ["", ""]
    return (
        f"{cell['llm']} {cell['length']}",
        *seconds,
        "" if over is None else f"{over:+.1%}",
        *("" if share is None else f"{share:.0%}" for share in saved),
        *theirs,
    )


_EXTRACTION = ("", "images", "patches", "seconds", "break-even g", "so400m", "peak MiB")


def _extraction(cell: dict[str, Any]) -> tuple[str, ...]:
    epochs = [
        ", ".join("never" if e is None else f"{e:.1f}" for e in break_even(cell, tower).values())
        for tower in ("g", "so400m")
    ]
    seconds = ", ".join(f"{spent:.3g} {dtype}" for dtype, spent in cell["extraction"].items())
    peaks = [f"{way} {peak:,.0f}" for way, peak in cell["peak_mib"].items() if peak is not None]
    return (
        f"{cell['llm']} {cell['length']}",
        str(cell["images"]),
        str(cell["patches"]),
        seconds,
        *epochs,
        ", ".join(peaks) or "CUDA only",
    )
