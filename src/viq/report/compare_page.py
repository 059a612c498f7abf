"""A comparison of tokenizers and codecs as one HTML file: table, plots, pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from viq.core.files import write_atomically
from viq.core.outputs import is_marked, marked, require_free
from viq.core.types import ViqError
from viq.report.charts import Chart, to_svg
from viq.report.compare_table import DISTANCES, headings_and_cells, left_out, notes
from viq.report.gallery_common import most_detailed, shown
from viq.report.page import Picture, render
from viq.report.rate_chart import Series, rate_chart

_JOB = "compare"  # whose files these are
_BOX = (576, 384)  # px that a whole picture is shown in
_PLOTS = {
    "psnr": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM",
    **{key: f"{name}, less is better" for key, name in DISTANCES.items()},
    "text_accuracy": "text, share of characters right",
}  # fmt: skip

# A method on one picture: its name, what it saw, what came back, its figures.
Part = tuple[str, Image.Image, Image.Image, dict[str, Any]]


def require_page(out: Path, overwrite: bool) -> None:
    """Refuse, before any work, a place for the page. Raises `ViqError`."""
    if out.suffix != ".html":
        raise ViqError(f"-o {out}: give NAME.html")
    require_free(out, overwrite=overwrite or is_marked(out, _JOB))


def write_page(
    out: Path, result: dict[str, Any], sections: Sequence[dict[str, Any]], command: str
) -> None:
    """Write the page of a comparison, whole or not at all.

    Args:
        result: of `viq.eval.compare.run.compare`.
        sections: of `section`, one a picture.
        command: shown as the way to make this page again.
    """
    headings, lines = headings_and_cells(result)
    rows = len(result["rows"])
    page = render(
        "compare.html", title="Tokenizers and codecs on the same pictures", about=_about(result),
        command=command, headings=headings, lines=lines[:rows], left_out=left_out(result),
        notes=notes(result), sections=sections, failed=result["failed"],
        charts=[Markup(to_svg(chart)) for chart in charts(result)],  # nosec B704
    )  # fmt: skip
    write_atomically(out, marked(page.encode(), _JOB))


def charts(result: dict[str, Any]) -> list[Chart]:
    """A plot over bits a pixel of each figure that a row has."""
    distance = result["settings"]["perceptual"]
    keys = [key for key in _PLOTS if key not in DISTANCES or key == distance]
    drawn = []
    for key in keys:
        series = _series(result["rows"], key)
        if series:
            drawn.append(rate_chart(series, _PLOTS[key]))
    return drawn


def section(key: str, image: Image.Image, parts: Sequence[Part]) -> dict[str, Any]:
    """One picture's part of the page, as its template takes it.

    A method that sees another picture than `image` gets a detail of its own, as the place of the
    same things is another.
    """
    pairs = [_pair(image, image)]
    pairs += [_pair(seen, restored) for _, seen, restored, _ in parts]
    captions = [["original", f"{image.width:,} × {image.height:,} px", "24 bits a pixel"]]
    captions += [_caption(name, figures) for name, _, _, figures in parts]
    return {
        "name": Path(key).name or key,
        "parts": [
            {"whole": Picture.of(whole), "detail": Picture.of(detail), "caption": caption}
            for (whole, detail), caption in zip(pairs, captions, strict=True)
        ],
    }


def _pair(seen: Image.Image, restored: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The whole picture, scaled, and its detail at 1:1; marked in an original."""
    both = shown({"detail": most_detailed(seen)}, [seen, restored], _BOX)
    pair = both[0] if restored is seen else both[1]
    assert pair is not None  # only a picture that is None has none
    return pair


def _caption(name: str, figures: dict[str, Any]) -> list[str]:
    height, width = figures["size"]
    quality, decibels = figures["quality"], figures["psnr"]
    return [
        name if quality is None else f"{name}, quality {quality}",
        f"{width:,} × {height:,} px, {round(figures['bits'] / 8):,} bytes",
        f"{figures['bpp']:.3f} bits a pixel",
        "exact copy" if decibels is None else f"PSNR {decibels:.2f} dB",
        f"SSIM {figures['ssim']:.3f}",
    ]


def _series(rows: Sequence[dict[str, Any]], key: str) -> list[Series]:
    points: dict[str, list[tuple[float, float]]] = {}
    entropy: dict[str, float | None] = {}
    for row in rows:
        if row.get(key) is not None:
            points.setdefault(row["series"], []).append((row["bpp"], row[key]))
            entropy[row["series"]] = row["bpp_entropy"]
    return [Series(name, found, entropy[name]) for name, found in points.items()]


def _about(result: dict[str, Any]) -> list[str]:
    settings, machine = result["settings"], result["machine"]
    crop = settings["crop"]
    count = len(result["images"])
    pictures = f"{count:,} picture{'s' if count != 1 else ''}"
    cut = f"central squares of {crop} px" if crop else "whole"
    return [
        f"{pictures}, {cut}. Each reconstruction is compared with what its method sees, at the "
        "size beside its name.",
        f"Measured on {machine['cpu']}, threads of PyTorch: {machine['torch_threads']}. ViQ "
        f"{settings['viq']}, PyTorch {machine['torch']}, Pillow {settings['pillow']}.",
    ]
