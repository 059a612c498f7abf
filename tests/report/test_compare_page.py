"""The page and the table of a comparison: the numbers in them, and that nothing is asked for."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from test_demo import Page

from viq.core.types import ViqError
from viq.report.charts import WIDTH, Dots, Line, Words, text_width, to_image, to_svg
from viq.report.compare_page import charts, require_page, section, write_page
from viq.report.compare_table import headings_and_cells, left_out, notes
from viq.report.rate_chart import Series, rate_chart

EVIL = "</svg><script>\"'&{{ 7*7 }}"


def row(name: str, bpp: float, psnr: float, **changes: Any) -> dict[str, Any]:
    made = {
        "name": name, "kind": "codec", "series": name, "licence": None, "note": "", "images": 2,
        "over": 0, "size": [32, 48], "bpp": bpp, "bpp_entropy": None, "psnr": psnr, "ssim": 0.5,
        "ms_ssim": None, "lpips": None, "efficientnet_distance": None, "blockiness": 1.25,
        "efficientnet_frechet": None, "text_accuracy": None, "encode_s": 0.0421, "decode_s": 0.011,
        "peak_mib": None,
    }  # fmt: skip
    return made | changes


def result(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made = {
        "rows": list(rows), "left_out": [], "images": [{}, {}], "failed": [], "text": None,
        "settings": {
            "crop": None, "bytes_of": None, "perceptual": None, "missing": [], "viq": "9.9",
            "pillow": "8.8",
        },
        "machine": {"cpu": "A Processor", "torch_threads": 3, "torch": "7.7"},
    }  # fmt: skip
    return made | changes


def test_the_table_has_the_figures_that_some_row_has() -> None:
    ours = row("ours", 0.25, 24.567, bpp_entropy=0.1, size=None, images=1, text_accuracy=0.987)
    found = result(ours, row("jpeg", 0.24, 26, over=2, note="old"))
    found["left_out"] = [{"name": "qlip:x", "reason": "qlip:x: no such folder"}]
    found["text"] = {"against": "transcript", "original": 0.75}
    headings, lines = headings_and_cells(found)
    cells = dict(zip(headings, lines[0], strict=True))
    assert cells == {
        "": "ours", "pictures": "1", "size, px": "several", "bits a pixel": "0.250",
        "entropy coded": "0.100", "PSNR, dB": "24.57", "SSIM": "0.500", "blockiness, 16 px": "1.25",
        "text": "98.7%", "encode, ms": "42.1", "decode, ms": "11.0",
    }  # fmt: skip
    assert lines[1][2] == "48x32" and lines[1][4] == "-"
    assert lines[2][:2] == ["qlip:x", "left out"] and len(lines[2]) == len(headings)
    assert left_out(found) == [("qlip:x", "no such folder")]
    told = "\n".join(notes(found))
    assert "jpeg: old" in told and "jpeg: 2 of 2 files take more" in told
    assert "ours: made 1 of 2 pictures" in told and "of the originals 75.0%" in told


def test_a_page_shows_the_comparison_and_asks_for_nothing(tmp_path: Path) -> None:
    image = tiny.picture(0, 300, 400)
    small = image.resize((64, 64))
    figures = {"size": [300, 400], "quality": None, "psnr": None, "bits": 800, "bpp": 1.5,
               "ssim": 0.25}  # fmt: skip
    other = figures | {"size": [64, 64], "quality": 7, "psnr": 20.123}
    parts = [(EVIL, image, image.copy(), figures), ("webp", small, small.copy(), other)]
    found = result(row(EVIL, 1.5, 30), failed=[{"key": EVIL, "reason": EVIL}])
    found["left_out"] = [{"name": EVIL, "reason": EVIL}]
    out = tmp_path / "page.html"
    write_page(out, found, [section(f"photos/{EVIL}", image, parts)], EVIL)
    text = out.read_text()
    page = Page(text)  # which fails where tags do not nest
    assert "<script" not in text and "default-src 'none'" in text
    assert "A Processor" in page.words and "webp, quality 7" in page.words
    assert "exact copy" in page.words and "PSNR 20.12 dB" in page.words
    sources = [image["src"] or "" for image in page.of("img")]
    assert len(sources) == 6 and all(uri.startswith("data:image/webp") for uri in sources)
    assert len(page.of("svg")) == 2  # PSNR and SSIM; no row has the other figures
    sizes = [(image["width"], image["height"]) for image in page.of("img")]
    assert sizes == [("400", "300"), ("192", "192")] * 2 + [("384", "384"), ("64", "64")]


def test_a_page_replaces_its_own_kind_alone(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    require_page(out, overwrite=False)
    write_page(out, result(row("jpeg", 0.2, 26)), [], "viq compare")
    require_page(out, overwrite=False)
    out.write_text("mine")
    with pytest.raises(ViqError, match="exists"):
        require_page(out, overwrite=False)
    require_page(out, overwrite=True)
    with pytest.raises(ViqError, match="give NAME.html"):
        require_page(tmp_path / "page.png", overwrite=True)


def test_the_plot_has_its_points_where_they_belong() -> None:
    codec = Series("jpeg", [(2.0, 30.0), (0.5, 20.0), (1.0, 25.0)])
    ours = Series("ours", [(1.0, 25.0)], entropy=0.5)
    drawing = rate_chart([codec, ours], "PSNR, dB")
    (line,) = [i for i in drawing.items if isinstance(i, Line) and i.width > 1 and not i.dashed]
    (x0, y0), (x1, y1), (x2, y2) = line.points
    assert x1 - x0 == pytest.approx(x2 - x1)  # a logarithmic axis
    assert y0 - y1 == pytest.approx(y1 - y2) and y0 > y2  # more is higher
    (dashed,) = [item for item in drawing.items if isinstance(item, Line) and item.dashed]
    assert dashed.points == [(pytest.approx(x0), y1), (pytest.approx(x1), y1)]
    big = [item for item in drawing.items if isinstance(item, Dots) and item.width == 8]
    assert list(big[0].points) == [(pytest.approx(x1), y1)]
    assert to_image(drawing, 1).size == (WIDTH, 270) and to_svg(drawing).startswith("<svg")


def test_names_of_points_at_one_place_do_not_lie_over_each_other() -> None:
    series = [Series(name, [(0.25, 30 + n / 100)]) for n, name in enumerate("abcdef")]
    drawing = rate_chart([*series, Series("far", [(3.0, 20.0)])], "SSIM")
    words = {i.text: i for i in drawing.items if isinstance(i, Words)}
    heights = sorted(words[name].y for name in "abcdef")
    assert all(b - a >= 12.9 for a, b in zip(heights, heights[1:], strict=False))
    (long,) = [
        item.text
        for item in rate_chart([Series("qlip:/a/long/way/to/some/folder", [(1, 2)])], "PSNR").items
        if isinstance(item, Words) and "qlip" in item.text
    ]
    assert long == "qlip:/a/long…some/folder"


def test_names_of_curves_stand_behind_their_ends() -> None:
    """Where no line can run through them."""
    drawing = rate_chart(
        [Series(name, [(0.1, 20 + n), (1.0, 30 + n / 9)]) for n, name in enumerate(("a", "viq-b"))],
        "PSNR, dB",
    )
    curves = [i for i in drawing.items if isinstance(i, Line) and i.width > 1]
    ends = [max(x for x, _ in line.points) for line in curves]
    words = {i.text: i for i in drawing.items if isinstance(i, Words)}
    for name in ("a", "viq-b"):
        assert words[name].anchor == "start" and words[name].x > max(ends)
        assert words[name].x + text_width(name, words[name].size) < drawing.width
    assert abs(words["a"].y - words["viq-b"].y) >= 12.9


@pytest.mark.parametrize("rate", [0.1, 0.25, 1.0])
def test_one_point_alone_is_a_plot(rate: float) -> None:
    (drawing, *_) = charts(result(row("jpeg", rate, 26)))
    for item in drawing.items:
        for x, y in getattr(item, "points", []):
            assert 0 <= x <= drawing.width and 0 <= y <= drawing.height


def test_a_picture_of_one_pixel_has_a_section() -> None:
    dot = Image.new("RGB", (1, 1))
    assert len(section("dot.png", dot, [])["parts"]) == 1
