"""What the command line shows: tables, and dictionaries as lines or as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viq.core.untrusted import printable

if TYPE_CHECKING:
    from viq.jobs.summary import Report


def show_report(report: Report, as_json: bool) -> None:
    values = report.as_dict()
    if as_json:
        print(json.dumps(values))
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
        print(json.dumps(values))
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


def show_reconstruction(result: dict[str, Any]) -> None:
    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    codecs = result["settings"]["codecs"]
    print(f"{'image':<32}{'size':>11}{'bpp':>7}{'PSNR':>8}{'SSIM':>7}",
          *(f"{name + ' PSNR':>11}{'SSIM':>7}" for name in codecs), sep="")  # fmt: skip
    for image in result["images"]:
        cells = [image["codecs"][name] for name in codecs]
        print(
            f"{printable(Path(image['key']).name)[-31:]:<32}{image['height']:>6}x{image['width']:<4}"
            f"{number(image['bpp']):>7}{number(image['psnr']):>8}{number(image['ssim'], 3):>7}",
            *(
                f"{number(cell and cell['psnr']):>11}{number(cell and cell['ssim'], 3):>7}"
                for cell in cells
            ),
            sep="",
        )
    totals = result["totals"]
    print(f"mean of {totals['images']}: {number(totals['psnr'])} dB, SSIM "
          f"{number(totals['ssim'], 3)}, {number(totals['bpp'], 3)} bits per pixel")  # fmt: skip
    for name in codecs:
        codec = totals["codecs"][name]
        print(
            f"{name} at the same bytes: {number(codec['psnr'])} dB, SSIM {number(codec['ssim'], 3)}"
            f" on the {codec['fits']} images that fit; there ours: "
            f"{number(codec['ours']['psnr'])} dB, SSIM {number(codec['ours']['ssim'], 3)}"
        )
    use = result["code_use"]
    if use:
        print(f"code use: {use['used']:,} of {use['codebook']:,} codes hit, perplexity "
              f"{use['perplexity']:,.0f}, {use['entropy_bits']:.2f} bits a code")  # fmt: skip


def show_record(record: dict[str, Any]) -> None:
    """One line of progress on stderr."""
    text = "  ".join(f"{name} {value}" for name, value in record.items())
    print(printable(text), file=sys.stderr)


def show_quality(result: dict[str, Any]) -> None:
    """Codes beside continuous features: answers in percent, steps a second, memory."""
    print("mean over seeds ± half-width of the 95% interval")
    print(f"{'':<14}{'right answers, %':>20}{'steps/s':>18}{'peak memory, MiB':>20}")
    for kind, found in result["kinds"].items():
        cells = found["answers"]["all"], found["steps_per_second"], found["peak_mib"]
        numbers = [f"{cell['mean']:.2f} ± {cell['half_width']:.2f}" for cell in cells]
        print(f"{kind:<14}{numbers[0]:>20}{numbers[1]:>18}{numbers[2]:>20}")
    groups = sorted(result["kinds"]["codes"]["answers"].keys() - {"all"})
    print("\nright answers by source of the pictures, %")
    for kind, found in result["kinds"].items():
        cells = [f"{g} {found['answers'][g]['mean']:.1f}" for g in groups if "/" not in g]
        print(f"{kind:<14}{', '.join(cells)}")


def show_understanding(result: dict[str, Any]) -> None:
    """Accuracy of answers by source of the pictures, then of linear probes, in percent."""
    questions = result["questions"]
    groups = ["all", *sorted(name for name in questions if name != "all")]
    print("Right answers, %, mean over seeds and half-width of the 95% interval")
    print(f"{'':<44}", *(f"{name[:17]:>18}" for name in groups), sep="")
    print(f"{'questions':<44}", *(f"{questions[name]:>18,}" for name in groups), sep="")
    for name, found in result["candidates"].items():
        cells = [found["answers"][group] for group in groups]
        print(f"{name[-43:]:<44}",
              *(f"{cell['mean']:>10.1f} ± {cell['half_width']:<5.1f}" for cell in cells),
              sep="")  # fmt: skip
    probes = sorted({name for found in result["candidates"].values() for name in found["probes"]})
    print("\nLinear probes of the mean feature, %")
    for probe in probes:
        cells = {n: f["probes"][probe] for n, f in result["candidates"].items()}
        first = next(iter(cells.values()))
        print(f"{probe} ({first['classes']} answers, {first['pictures']} pictures, "
              f"most frequent {first['chance']:.1f})")  # fmt: skip
        for name, cell in cells.items():
            print(f"  {name[-43:]:<44}{cell['accuracy']:>6.1f}")
