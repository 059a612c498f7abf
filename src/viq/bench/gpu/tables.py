"""Results of a day with a GPU as tables and plots for docs/speed.md, beside the paper's figures.

files = write_page(Path("gpu-day"), train_small())  # page.md, and pictures beside it
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from viq.bench.gpu.cells import RESULTS, read_results
from viq.bench.mllm_tables import PAPER, chart, over_limit, saving
from viq.bench.mllm_work import LANGUAGES
from viq.core.files import write_atomically
from viq.core.types import ViqError
from viq.report.charts import Box, Chart, Line, Words, curve, labels, ticks, to_svg
from viq.train.tokenizer.recipe import TokenizerRecipe

_KINDS = ("forward", "step")
_NAMES = {"text": "text alone", "codes": "codes", "g": "g online", "so400m": "so400m online"}
Results = dict[str, dict[str, dict[str, Any]]]  # by part and cell


def write_page(folder: Path, recipe: TokenizerRecipe) -> list[Path]:
    """Write `page.md` and its pictures beside the results, and the trained tokenizer, if there is
    one; gives the files.

    Args:
        recipe: that it was trained by.

    Raises:
        ViqError: the folder has no results.
    """
    results = by_part(read_results(folder))
    if not results:
        raise ViqError(f"{folder}: has no {RESULTS}: measure first, with --out {folder}")
    pictures = {f"{name}.svg": drawn for name, drawn in charts(results).items()}
    for name, drawn in pictures.items():
        write_atomically(folder / name, to_svg(drawn).encode())
    text = as_markdown(results, sorted(pictures))
    write_atomically(folder / "page.md", text.encode())
    made = [folder / "page.md", *(folder / name for name in sorted(pictures))]
    if (folder / "decoder-0.safetensors").is_file() and not _machine(results).get("tiny"):
        from viq.bench.gpu.train_cells import assemble

        assemble(folder, recipe).save_pretrained(folder / "viq-small")
        made.append(folder / "viq-small")
    return made


def by_part(lines: Iterable[dict[str, Any]]) -> Results:
    """Cells by part and name; the last line of a cell counts."""
    results: Results = {}
    for line in lines:
        results.setdefault(line["part"], {})[line["cell"]] = line
    return results


def as_markdown(results: Results, pictures: Sequence[str] = ()) -> str:
    """The tables, a section a part."""
    about = _machine(results)
    lines = [
        f"{about.get('gpu') or about.get('cpu')}, {about.get('cores')} CPU cores, "
        f"torch {about.get('torch')}, transformers {about.get('transformers')}, "
        f"Python {about.get('python')}"
    ]
    if about.get("tiny"):
        lines.append("\n**Tiny shapes: a trial of the command, no figures.**")
    for part, title, show in (
        ("parity", "The same codes on a GPU", _parity),
        ("mllm", "Steps on codes, with a tower in the loop, and on text alone", _mllm),
        ("encode", "Encoding at the shape of SigLIP2-g", _encode),
        ("chat", "A model that answers, trained on this GPU", _chat),
        ("draw", "A model that draws, trained on this GPU", _draw),
        ("train", "A larger decoder, trained on this GPU", _train),
    ):
        if part in results:
            lines += ["", f"## {title}", "", *show(results[part])]
    missing = [
        f"- {part}, {cell}: {line.get('failed') or line['skipped']}"
        for part, cells in results.items()
        for cell, line in cells.items()
        if "failed" in line or "skipped" in line
    ]
    if missing:
        lines += ["", "## Not measured", "", *missing]
    lines += ["", *(f"![{name.removesuffix('.svg')}]({name})" for name in pictures)]
    return "\n".join(lines).rstrip() + "\n"


def charts(results: Results) -> dict[str, Chart]:
    """What there are figures for: seconds of steps, tokens a second, the curve of training."""
    drawn: dict[str, Chart] = {}
    table = _mllm_result(results)
    if table["cells"]:
        drawn["gpu-mllm"] = chart(table)
    rates = {
        f"{title.split(',')[0]}: {name}": rate["patches_per_s"] / 1e3
        for title, section in _encode_sections(results.get("encode", {}))
        for name, rate in section["rates"].items()
    }
    if rates:
        drawn["gpu-encode"] = _bars(rates, "Thousand patches a second, SigLIP2-g")
    steps = _steps(results.get("train", {}))
    if len(steps) > 1:
        drawn["gpu-train"] = curve(
            [each["step"] for each in steps], [each["psnr"] for each in steps],
            "PSNR of training batches", "dB",
        )  # fmt: skip
    return drawn


# Sections


def _parity(cells: dict[str, dict[str, Any]]) -> list[str]:
    golden: list[tuple[str, ...]] = [("", "trunk", "z", "pooled", "features", "codes that differ")]
    errors: list[tuple[str, ...]] = [("", "way", "out", "dq", "dk", "dv")]
    codes: list[tuple[str, ...]] = [
        ("", "differ from the CPU in fp32", "packed from alone", "order", "run again")
    ]
    for name, line in _measured(cells):
        if name.startswith("golden"):
            parts = ("trunk", "z", "pooled", "features")
            found = (f"{line['errors'][part]:.1e}" for part in parts)
            golden.append((name, *found, f"{line['flips']} of {line['codes']}"))
        elif name.startswith("attention"):
            for way, values in line["errors"].items():
                found = (f"{values[part]:.1e}" for part in ("out", "dq", "dk", "dv"))
                errors.append((f"{name}, {line['dtype']}", way, *found))
        else:
            kinds = ("to_cpu", "packed", "order", "again")
            codes.append((name, *(f"{line['rates'][kind]:.3%}" for kind in kinds)))
    notes = (
        "Largest difference over the largest value, against numbers of the official code:",
        "Attention against float64:",
        "Codes of the pictures that come with the package:",
    )
    lines: list[str] = []
    for note, rows in zip(notes, (golden, errors, codes), strict=True):
        if len(rows) > 1:
            lines += [note, "", *_pipes(rows), ""]
    return lines[:-1]


def _mllm(cells: dict[str, dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    joined = _joined(cells)
    for compiled in (False, True):
        for kind in _KINDS:
            heads = ("above text", "saved (g)", "paper saved (g)", "peak GiB, codes and g")
            rows: list[tuple[str, ...]] = [("", *_NAMES.values(), *heads)]
            for (llm, length, how), cell in joined.items():
                if how == compiled and kind in cell:
                    rows.append((f"{llm} {length}", *_mllm_row(cell, kind)))
            if len(rows) > 1:
                name = "forward pass" if kind == "forward" else "step of training"
                lines += [f"Seconds, {name}, {'compiled' if compiled else 'eager'}:", ""]
                lines += [*_pipes(rows), ""]
    extraction = cells.get("extraction of codes", {})
    for length, spent in extraction.get("spent", {}).items():
        seconds = ", ".join(f"{value:.3g} s in {dtype}" for dtype, value in spent.items())
        lines.append(f"Codes of a {length} sequence ({extraction['patches'][length]} patches): "
                     f"{seconds}.")  # fmt: skip
    return lines


def _mllm_row(cell: dict[str, Any], kind: str) -> tuple[str, ...]:
    times = cell[kind]
    over, saved = over_limit(cell, kind), saving(cell, kind)
    paper = PAPER.get((cell["llm"], cell["length"]), {}).get(kind)
    peaks = cell.get(f"{kind}_peak_mib", {})
    return (
        *(f"{times[way]['median_s']:.4g}" if way in times else "" for way in _NAMES),
        "" if over is None else f"{over:+.1%}",
        "" if saved is None else f"{saved:.0%}",
        "" if paper is None else f"{1 - paper[0] / paper[1]:.0%}",
        ", ".join(f"{peaks[way] / 1024:.1f}" for way in ("codes", "g") if way in peaks),
    )


def _encode(cells: dict[str, dict[str, Any]]) -> list[str]:
    peak = cells.get("peak", {}).get("products", {}).get("square", {}).get("tflops")
    lines = []
    if peak:
        lines += [f"Peak of a large product: {peak:.0f} TFLOP/s.", ""]
    lines += _block(cells)
    for name, section in _encode_sections(cells):
        rows = [("", "patches/s", "TFLOP/s", "of the peak", "seconds", "times the first")]
        first = next(iter(section["times"].values()))["median_s"]
        for way, spent in section["times"].items():
            rate, seconds = section["rates"][way], spent["median_s"]
            share = f"{rate['tflops'] / peak:.0%}" if peak else ""
            rows.append((way, f"{rate['patches_per_s']:,.0f}", f"{rate['tflops']:.4g}", share,
                         f"{seconds:.4g}", f"{seconds / first:.2f}"))  # fmt: skip
        lines += [f"{name} ({section['images']} images, {section['patches']:,} patches):", "",
                  *_pipes(rows), ""]  # fmt: skip
    return lines[:-1]


def _block(cells: dict[str, dict[str, Any]]) -> list[str]:
    """What a block of the trunk is made of."""
    found = cells.get("block", {})
    if "times" not in found:
        return []
    rows: list[tuple[str, ...]] = [("part of a block of the trunk", "ms", "TFLOP/s")]
    for name, spent in found["times"].items():
        rate = found["tflops"].get(name)
        rows.append((name, f"{1e3 * spent['median_s']:.3g}", "" if rate is None else f"{rate:.0f}"))
    return [*_pipes(rows), ""]


def _chat(cells: dict[str, dict[str, Any]]) -> list[str]:
    line = cells.get("answers", {})
    return [_language(line, "conversations", "tokens")]


def _draw(cells: dict[str, dict[str, Any]]) -> list[str]:
    line = cells.get("drawing", {})
    return [_language(line, "pictures", "samples")]


def _language(line: dict[str, Any], kept: str, unit: str) -> str:
    """What a language model was trained on, and how fast."""
    if "trained_s" not in line:
        return "Not trained."
    count = line["samples" if kept == "conversations" else "pictures"]
    return (
        f"{line['parameters'] / 1e6:.1f}M parameters, {line['steps']:,} steps in "
        f"{line['trained_s']:.0f} s after {line['prepared_s']:.0f} s to begin, on {count:,} "
        f"{kept}; {line[f'{unit}_per_s']:,.0f} {unit} a second."
    )


def _train(cells: dict[str, dict[str, Any]]) -> list[str]:
    line = cells.get("small", {})
    if "psnr_db" not in line:
        return ["Not trained."]
    dB = line["psnr_db"]
    return [
        f"{line['parameters'] / 1e6:.1f}M parameters, {line['steps']:,} steps in "
        f"{line['trained_s']:.0f} s after {line['prepared_s']:.0f} s for {line['pictures']:,} "
        f"pictures and their codes; {line['patches_per_s']:,.0f} patches/s. Held-out pictures: "
        f"{dB['base']:.2f} dB with the bundled decoder, {dB['small']:.2f} dB with this one."
    ]


# Gathering


def _machine(results: Results) -> dict[str, Any]:
    return results.get("machine", {}).get("machine", {})


def _measured(cells: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, line) for name, line in cells.items()
            if "failed" not in line and "skipped" not in line]  # fmt: skip


def _joined(cells: dict[str, dict[str, Any]]) -> dict[tuple[str, str, bool], dict[str, Any]]:
    """Cells of forward pass and step under one key: language model, length, compiled."""
    joined: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for name, line in _measured(cells):
        if "llm" in line:
            key = (line["llm"], line["length"], name.endswith("compiled"))
            joined[key] = {**joined.get(key, {}), **line}
    order = list(LANGUAGES)
    return dict(
        sorted(joined.items(), key=lambda one: (order.index(one[0][0]), len(one[0][1]), one[0][1]))
    )


def _mllm_result(results: Results) -> dict[str, Any]:
    """Eager cells with a step, as `viq.bench.mllm_tables.chart` takes them; all have the same
    ways."""
    cells = results.get("mllm", {})
    whole = [cell for (_, _, compiled), cell in _joined(cells).items()
             if not compiled and "step" in cell]  # fmt: skip
    ways = [way for way in _NAMES if all(way in cell["step"] for cell in whole)]
    about = _machine(results)
    return {
        "machine": about,
        "device": about.get("device", "cpu"),
        "dtype": cells.get("setting", {}).get("dtype", ""),
        "scaled": bool(about.get("tiny")),
        "cells": [{**c, "step": {way: c["step"][way] for way in ways}} for c in whole],
    }


def _encode_sections(cells: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Title and figures: trunk, codes, and both compiled."""
    found = []
    done = dict(_measured(cells))
    compiled = done.get("compiled", {})
    for title, section in (
        ("Trunk", done.get("trunk")),
        ("Trunk, compiled", compiled.get("trunk")),
        ("Patches to codes", done.get("codes")),
        ("Patches to codes, compiled", compiled.get("codes")),
        ("Patches to codes, float32", done.get("float32")),
    ):
        if section:
            found.append((title, section))
    return found


def _steps(cells: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for name, line in cells.items() if name.startswith("step ") and "psnr" in line]


def _pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as a table of Markdown; the first row holds the headings."""
    head, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *rest]


def _bars(values: dict[str, float], title: str) -> Chart:
    """A bar a name, from left to right."""
    bar, left, top = 22, 320, 34
    marks = ticks(0, max(values.values()))
    drawing = Chart(720, top + bar * len(values) + 28, title)
    right, bottom = drawing.width - 60, top + bar * len(values)

    def across(value: float) -> float:
        return left + value / marks[-1] * (right - left)

    drawing.items.append(Words(0, 16, title, "ink", 14))
    for mark, label in zip(marks, labels(marks), strict=True):
        drawing.items += [
            Line([(across(mark), top - 4), (across(mark), bottom)], "line"),
            Words(across(mark), bottom + 16, label, anchor="middle"),
        ]
    for number, (name, value) in enumerate(values.items()):
        y = top + number * bar
        ink = "curve" if ": viq" in name else "points"
        drawing.items += [
            Words(left - 8, y + 14, name, "ink", anchor="end"),
            Box(left, y + 3, across(value) - left, bar - 8, ink),
            Words(across(value) + 5, y + 14, f"{value:.4g}"),
        ]
    return drawing
