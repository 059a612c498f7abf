"""What the command line shows: tables, and dictionaries as lines or as JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viq.core.untrusted import printable

if TYPE_CHECKING:
    from viq.jobs.summary import Summary

_NAME = 16  # columns of a terminal that a name has at least
_ANY_WIDTH = 1_000_000  # where there is no terminal, no row is folded
SCHEMA_VERSION = 1  # of what --json prints; docs/cli.md says what it promises
_PROBE_FACTS = ("classes", "pictures")  # of a probe, beside its answers


def versioned(values: dict[str, Any]) -> dict[str, Any]:
    """A result as scripts get it: with the version of its schema in front."""
    return {"schema_version": SCHEMA_VERSION, **values}


def show_json(values: dict[str, Any]) -> None:
    """One JSON object on one line of stdout: the only way in which a command prints JSON."""
    print(json.dumps(versioned(values)))


def show_report(report: Summary, as_json: bool) -> None:
    values = report.as_dict()
    if as_json:
        show_json(values)
    else:
        if report.images:  # none if all was done before
            print(
                f"{values['images']} images, {values['megapixels']:.2f} megapixels, "
                f"{values['codes']:,} codes, {values['bytes']:,} bytes "
                f"(1/{values['ratio']:g} of RGB), {values['seconds']:.1f} s, "
                f"{values['megapixels_per_second']:.2f} megapixels/s"
            )
        if report.store:
            show_store(report.store)
        if len(report.outputs) <= 4:
            for output in report.outputs:
                line(f"wrote {output}")
        else:
            print(f"wrote {len(report.outputs)} files")
    if report.failures:
        show_failures(report.failures)


def show_store(store: dict[str, Any]) -> None:
    if store["missing"]:
        print(f"{store['missing']} of {store['shards']} shards are still to come from other ranks")
    else:
        print(f"the store is complete: {store['images']:,} images in {store['shards']:,} shards, "
              f"{store['bytes']:,} bytes")  # fmt: skip


def show_failures(failures: list[dict[str, Any]]) -> None:
    for failure in failures[:20]:
        print(f"viq: failed: {printable(failure['reason'])}", file=sys.stderr)
    if len(failures) > 20:
        print(f"viq: and {len(failures) - 20} more failed", file=sys.stderr)


def line(text: str) -> None:
    """One line on stdout, whatever names the text holds."""
    print(printable(text))


def show(values: dict[str, Any], as_json: bool, indent: str = "") -> None:
    """A dictionary as aligned lines, or as one JSON object."""
    if as_json:
        show_json(values)
        return
    width = max(map(len, values), default=0)
    for key, value in values.items():
        if isinstance(value, dict):
            line(f"{indent}{key}:")
            show(value, False, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], str) and len(value) > 1:
            line(f"{indent}{key}:")
            for item in value:
                line(f"{indent}  {item}")
        else:
            line(f"{indent}{key:<{width}}  {value}")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout: names at the left, folded to fit a terminal; figures flush right, whole.

    In a pipe or a file each row is one line, whatever its width.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[printable(cell) for cell in row] for row in (headings, *rows)]
    terminal = sys.stdout.isatty()
    narrowest = 3 * (len(headings) - 1)  # between the columns
    drawn = Table(box=box.SIMPLE if terminal else None, pad_edge=False, show_edge=False)
    for place, column in enumerate(zip(*cells, strict=True)):
        least = min(max(map(cell_len, column)), _ANY_WIDTH if place else _NAME)
        narrowest += least
        drawn.add_column(
            Text(column[0]), justify="right" if place else "left", no_wrap=bool(place),
            overflow="fold", min_width=least,
        )  # fmt: skip
    for row in cells[1:]:
        drawn.add_row(*map(Text, row))  # a Text has no markup
    text = StringIO()
    # Figures are never cut: what is still too wide is broken by the terminal.
    width = max(shutil.get_terminal_size().columns, narrowest) if terminal else _ANY_WIDTH
    Console(file=text, width=width, color_system=None, legacy_windows=False).print(drawn)
    for written in text.getvalue().rstrip("\n").split("\n"):
        print(written.rstrip())


def show_reconstruction(result: dict[str, Any]) -> None:
    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    def cells(image: dict[str, Any]) -> Iterator[str]:
        yield Path(image["key"]).name
        yield f"{image['height']}x{image['width']}"
        yield number(image["bpp"])
        for found in (image, *(image["codecs"][name] for name in codecs)):
            yield number(found["psnr"] if found else None)
            yield number(found["ssim"] if found else None, 3)

    codecs = result["settings"]["codecs"]
    beside = [heading for name in codecs for heading in (f"{name} PSNR", "SSIM")]
    table(
        ["image", "size", "bpp", "PSNR", "SSIM", *beside], map(list, map(cells, result["images"]))
    )
    totals = result["totals"]
    figures = {
        "bits per pixel": ("bpp", 3), "PSNR, dB": ("psnr", 2), "SSIM": ("ssim", 3),
        "MS-SSIM": ("ms_ssim", 3), "blockiness": ("blockiness", 2),
        "EfficientNet distance": ("efficientnet_distance", 3),
    }  # fmt: skip
    shown = {title: key for title, key in figures.items() if key[0] in totals}
    rows = [(f"ours, mean of {totals['images']}", totals)]
    for name in codecs:
        codec = totals["codecs"][name]
        rows.append((f"{name}, same bytes, {codec['fits']} fit", codec))
        if codec["fits"] != totals["images"]:
            rows.append((f"ours on those {codec['fits']}", codec["ours"]))
    print()
    table(
        ["", *shown],
        ([title, *(number(means.get(k), d) for k, d in shown.values())] for title, means in rows),
    )
    if "efficientnet_frechet" in totals:
        print(f"EfficientNet-Frechet distance: {number(totals['efficientnet_frechet'])}")
    use = result["code_use"]
    if use:
        print(f"code use: {use['used']:,} of {use['codebook']:,} codes hit, perplexity "
              f"{use['perplexity']:,.0f}, {use['entropy_bits']:.2f} bits a code")  # fmt: skip


def show_record(record: dict[str, Any]) -> None:
    """One line of progress on stderr."""
    text = "  ".join(f"{name} {value}" for name, value in record.items())
    print(printable(text), file=sys.stderr)


def show_quality(result: dict[str, Any]) -> None:
    """Codes beside other features: answers in percent, steps a second, memory."""
    kinds = result["kinds"]
    print("mean over seeds ± half-width of the 95% interval")
    measured = {
        kind: (found["answers"]["all"], found["steps_per_second"], found["peak_mib"])
        for kind, found in kinds.items()
    }
    table(
        ["", "right answers, %", "steps/s", "peak memory, MiB"],
        (
            [kind, *(f"{cell['mean']:.2f} ± {cell['half_width']:.2f}" for cell in cells)]
            for kind, cells in measured.items()
        ),
    )
    print("\nright answers by kind of question, %, and points that codes have more or less")
    asked = [name for name in sorted(kinds["codes"]["answers"]) if name in result["questions"]]
    table(
        ["", "questions", *kinds, *(f"codes - {kind}" for kind in result["differences"])],
        (
            [
                name,
                f"{result['questions'][name]:,}",
                *(f"{found['answers'][name]['mean']:.1f}" for found in kinds.values()),
                *(
                    f"{found[name]['mean']:+.1f} ± {found[name]['half_width']:.1f}"
                    for found in result["differences"].values()
                ),
            ]
            for name in asked
        ),
    )


def show_understanding(result: dict[str, Any]) -> None:
    """Accuracy of answers by source of the pictures, then of linear probes, in percent."""
    questions, candidates = result["questions"], result["candidates"]
    groups = ["all", *sorted(name for name in questions if name != "all")]
    print("Right answers, %, mean over seeds and half-width of the 95% interval")
    rows = [["questions", *(f"{questions[name]:,}" for name in groups)]]
    for name, found in candidates.items():
        cells = (found["answers"][group] for group in groups)
        rows.append([name, *(f"{cell['mean']:.1f} ± {cell['half_width']:.1f}" for cell in cells)])
    table(["", *groups], rows)
    probes = sorted({name for found in candidates.values() for name in found["probes"]})
    print("\nLinear probes of the mean feature, %")
    first = next(iter(candidates.values()))["probes"]
    rows = [[fact, *(f"{first[probe][fact]:,}" for probe in probes)] for fact in _PROBE_FACTS]
    rows.append(["most frequent", *(f"{first[probe]['chance']:.1f}" for probe in probes)])
    for name, found in candidates.items():
        rows.append([name, *(f"{found['probes'][probe]['accuracy']:.1f}" for probe in probes)])
    table(["", *probes], rows)


def show_towers(result: dict[str, Any]) -> None:
    """Right answers by tower and source of the pictures, then names of photos, in percent."""
    rows = {
        f"{name} ({kind})": found
        for name, kinds in result["towers"].items()
        for kind, found in kinds.items()
    }
    print("Right answers, %, mean over seeds and half-width of the 95% interval")
    blind = result["blind"]
    groups = ["all", *sorted(g for g in blind["answers"] if g != "all" and "/" not in g)]
    table(
        ["", "tokens a picture", *groups],
        (
            [name, str(found.get("tokens", "")), *_intervals(found["answers"], groups)]
            for name, found in {**rows, "blind": blind}.items()
        ),
    )
    if photos := result["photos"]:
        print(f"\nNames of {photos['held_out']:,} held-out photos, %, ± half of the 95% interval")
        forms = [(kind, form) for kind in ("linear", "knn") for form in ("plain", "whitened")]
        table(
            ["", *(f"{kind}, {form}" for kind, form in forms)],
            (
                [name, *(_share(found[kind][form]) for kind, form in forms)]
                for name, found in rows.items()
            ),
        )
        print(f"most frequent of {photos['names']:,} names: {photos['chance']:.1f}")
    for name, licence in result["licences"].items():
        line(f"licence of the weights of {name}: {licence}")


def _intervals(answers: dict[str, Any], groups: Sequence[str]) -> Iterator[str]:
    for group in groups:
        yield f"{answers[group]['mean']:.1f} ± {answers[group]['half_width']:.1f}"


def _share(found: dict[str, float]) -> str:
    return f"{found['percent']:.1f} ± {found['interval']:.1f}"
