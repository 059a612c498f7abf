"""Reports of small made-up runs: the numbers in them, and that nothing comes from outside."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import viq
from viq.core.types import ViqError
from viq.models.tokenizer.fsq import FSQ
from viq.report import charts
from viq.report.run_page import make_report
from viq.report.runs import read_run
from viq.report.sheets import picture_grid
from viq.train.monitor import Journal, code_use, count_codes


def use(spread: float) -> dict:
    fsq = FSQ((8, 8, 5))
    z = spread * torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    return code_use(count_codes(fsq.indices(z), fsq), fsq)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Alignment is done, FSQ has come to step 30 of 100 and was killed, decoding has not begun."""
    folder = tmp_path / "my <run>"
    align, fsq = Journal(folder / "align"), Journal(folder / "fsq")
    for step in range(10, 210, 10):
        align.log({"stage": "align", "step": step, "steps": 200, "loss": 400 / step,
                   "loss/text": 2 + 1 / step, "answer_accuracy": step / 400, "learning_rate": 1e-4,
                   "tokens_per_second": 52331.0, "seconds": 6.0})  # fmt: skip
    (folder / "align" / "model").mkdir()
    (folder / "align" / "model" / "config.json").write_text("{}")
    for step in (10, 20, 30):
        fsq.log({"stage": "fsq", "step": step, "steps": 100, "loss": 0.5, "psnr": 20 + step / 10,
                 "gradient_norm": float("nan"), "seconds": 2.0})  # fmt: skip
    fsq.codes(10, use(1.0))
    fsq.codes(30, use(0.02))
    picture = Image.new("RGB", (32, 16), "red")
    picture_grid([picture], [picture], fsq.grid_path(20))
    fsq.grid_path(30).write_bytes(b"half a picture")
    for number in range(12):
        fsq.skip(f"photo-{number}", "too <small>")
    with (folder / "fsq" / "log.jsonl").open("a") as log:
        log.write('{"stage": "fsq", "step": 4')
    recipe = {"seed": 7, "stages": [{"name": name} for name in ("align", "fsq", "decoder")]}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def drawings(page: str) -> dict[str, ElementTree.Element]:
    """The SVG elements by title; fails where one is not well-formed."""
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]
    return {svg.attrib["aria-label"]: svg for svg in found}


def texts(drawing: ElementTree.Element) -> list[str | None]:
    return [element.text for element in drawing.iter("text")]


def test_page(run: Path, tmp_path: Path) -> None:
    result = make_report(run, tmp_path / "report.html")
    align, fsq, decoder = (result["stages"][name] for name in ("align", "fsq", "decoder"))
    json.dumps(result, allow_nan=False)
    assert (align["state"], align["step"], align["seconds"]) == ("finished", 200, 120.0)
    assert align["last"] == {
        "loss": 2.0,
        "loss/text": 2.005,
        "answer_accuracy": 50.0,
        "learning_rate": 1e-4,
        "tokens_per_second": 52331.0,
    }
    assert fsq["state"] == "unfinished, 30%"
    assert fsq["last"] == {"loss": 0.5, "psnr": 23.0}  # without a number that is none
    assert fsq["skipped"] == 12
    assert len(fsq["warnings"]) == 1
    assert (decoder["state"], decoder["step"]) == ("not begun", 0)

    page = (tmp_path / "report.html").read_text()
    assert "<h1>Training run my &lt;run&gt;</h1>" in page
    assert '<tr><th scope="row">Loss: text</th><td>2.005</td><td>–</td><td>–</td></tr>' in page
    assert "<td>2 min 0 s</td><td>6 s</td><td>–</td>" in page
    assert "<td>–</td><td>14 s</td><td>–</td>" in page  # left
    assert "Step 30: code use collapses: dimension 0 has 100.0% of its codes on level 4" in page
    assert "12 samples were skipped; the first:" in page
    assert "photo-9: too &lt;small&gt;" in page and "photo-10" not in page
    assert "&#34;seed&#34;: 7" in page
    assert "Pictures at step 20" in page
    (picture,) = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (48, 56)


def test_page_asks_for_nothing(run: Path, tmp_path: Path) -> None:
    make_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert set(re.findall(r'(?:src|href)="([^"]{5})', page)) == {"data:"}


def test_drawings_of_the_page(run: Path, tmp_path: Path) -> None:
    make_report(run, tmp_path / "report.html")
    found = drawings((tmp_path / "report.html").read_text())
    assert {"Loss, weighted sum", "Loss: text", "Answers right", "Learning rate", "Speed", "PSNR",
            "Codebook hit", "Perplexity", "Entropy", "Dimension 0", "Dimension 2"} == (
        set(found) - {"Dimension 1"}
    )  # fmt: skip
    assert texts(found["Answers right"])[-2:] == ["Answers right", "50 %"]
    assert texts(found["Speed"])[-1] == "52.33k tokens/s"
    assert {"22.0", "23.0", "0", "10", "20", "30", "step"} <= set(texts(found["PSNR"]))
    boxes = list(found["Dimension 2"].iter("rect"))
    assert len(boxes) == 5
    assert [box.attrib["class"] for box in boxes].count("fill-warn") == 1
    assert "most 100.0%" in texts(found["Dimension 2"])


def test_texts_do_not_overlap(run: Path, tmp_path: Path) -> None:
    make_report(run, tmp_path / "report.html")
    for title, drawing in drawings((tmp_path / "report.html").read_text()).items():
        boxes = []
        for text in drawing.iter("text"):
            size, x, y = (float(text.attrib[key]) for key in ("font-size", "x", "y"))
            width = charts.text_width(text.text or "", size)
            left = x - {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]] * width
            assert left >= -1 and left + width <= float(drawing.attrib["width"]) + 1, title
            boxes.append((left, y - 0.8 * size, left + width, y))
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert not any(
                left < r and x < right and top < b and y < bottom for x, y, r, b in boxes[:i]
            ), title


def test_sheet(run: Path, tmp_path: Path) -> None:
    assert make_report(run, tmp_path / "a.png") | {"report": ""} == (
        make_report(run, tmp_path / "a.html") | {"report": ""}
    )
    with Image.open(tmp_path / "a.png") as sheet:
        colours = {colour for _, colour in sheet.getcolors(1 << 24) or []}
        assert sheet.width == 2106
    assert (23, 105, 138) in colours  # curves
    assert (179, 38, 30) in colours  # the warning
    assert (255, 0, 0) in colours  # the grid


def test_a_stage_that_trained_a_tower_is_finished(run: Path) -> None:
    (run / "fsq" / "tower").mkdir()
    (run / "fsq" / "tower" / "config.json").write_text("{}")
    assert [s.state for s in read_run(run).stages] == ["finished", "finished", "not begun"]


def test_a_folder_of_one_stage(run: Path) -> None:
    assert [stage.name for stage in read_run(run / "fsq").stages] == ["fsq"]


def test_order_without_a_recipe(run: Path) -> None:
    """A recipe that was cut short is as good as none; the order is that of beginning."""
    (run / "recipe.json").write_text('{"stages": [')
    found = read_run(run)
    assert found.recipe is None
    assert {stage.name for stage in found.stages} == {"align", "fsq"}


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_runs_with_nothing_yet(tmp_path: Path, suffix: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "recipe.json").write_text("{}")
    assert make_report(empty, tmp_path / f"a.{suffix}")["stages"] == {}
    stage = empty / "align"
    stage.mkdir()
    (stage / "log.jsonl").write_text('{"stage": "al')
    (stage / "codes.jsonl").write_text('{"step": 1, "codes": 0}\n{"step": 2, "levels": 3}\n')
    (stage / "skipped.jsonl").write_text('{"key": "a", "reason": "torn \\ud800"}\n')
    report = make_report(empty, tmp_path / f"a.{suffix}")["stages"]["align"]
    assert (report["state"], report["last"], report["skipped"]) == ("not begun", {}, 1)


def test_one_line_of_log(tmp_path: Path) -> None:
    Journal(tmp_path / "run" / "fsq").log({"step": 1, "loss": 0.0})
    make_report(tmp_path / "run", tmp_path / "a.html")
    loss = drawings((tmp_path / "a.html").read_text())["Loss, weighted sum"]
    assert {"-1.0", "1.0", "0"} <= set(texts(loss))


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="no such folder"):
        make_report(tmp_path / "no", tmp_path / "a.html")
    (tmp_path / "photos").mkdir()
    with pytest.raises(ViqError, match="not a run: no recipe.json"):
        make_report(tmp_path, tmp_path / "a.html")
    with pytest.raises(ViqError, match="an .html or a .png"):
        make_report(tmp_path, tmp_path / "a.pdf")
    assert not (tmp_path / "a.html").exists()


def test_the_log_of_the_bundled_model(tmp_path: Path) -> None:
    """All stages in one file, the first ones in an older form."""
    import viq

    log = Path(viq.__file__).parent / "bundled" / "viq-tiny" / "training-log.jsonl"
    for line in log.read_text().splitlines(keepends=True):
        stage = tmp_path / "run" / json.loads(line)["stage"]
        stage.mkdir(parents=True, exist_ok=True)
        with (stage / "log.jsonl").open("a") as file:
            file.write(line)
    report = make_report(tmp_path / "run", tmp_path / "a.html")
    last = {name: stage["last"].get("psnr") for name, stage in report["stages"].items()}
    assert list(last)[:3] == ["0-teacher", "0-detail-proximal", "0-detail-fsq"]
    assert last["0-detail-proximal"] == 22.758985 and last["3-decoder"] == 23.4353


# Charts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0", "0.25", "0.50", "0.75", "1.00"]),
        (0.09, 0.26, ["0.05", "0.10", "0.15", "0.20", "0.25", "0.30"]),
        (-3, 17, ["-5", "0", "5", "10", "15", "20"]),
        (0, 2e-4, ["0", "0.5e-4", "1.0e-4", "1.5e-4", "2.0e-4"]),
        (0, 184e3, ["0", "50k", "100k", "150k", "200k"]),
        (3, 3, ["1", "2", "3", "4", "5"]),
        (22.001, 22.003, ["22.0010", "22.0015", "22.0020", "22.0025", "22.0030"]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[str]) -> None:
    assert charts.labels(charts.ticks(low, high)) == expected


def test_logarithmic_ticks() -> None:
    assert charts.labels(charts.log_ticks(0.9, 12.5)) == ["0.5", "1", "2", "5", "10", "20"]
    assert charts.labels(charts.log_ticks(0.01, 900)) == ["0.01", "0.1", "1", "10", "100", "1,000"]


def test_numbers_are_short() -> None:
    numbers = [0, 0.1428, 22.6, 1848.2, 12500, 3.2e6, 5e-5, -1.234e-5]
    assert [charts.short(number) for number in numbers] == [
        "0", "0.1428", "22.6", "1,848", "12.5k", "3.2M", "5e-5", "-1.23e-5",
    ]  # fmt: skip


def test_smoothing_keeps_lines_and_removes_noise() -> None:
    places = np.arange(400)
    line = charts.smoothed(np.full(400, 3.0), places)
    assert np.allclose(line, 3)
    noise = np.random.default_rng(0).standard_normal(400)
    assert charts.smoothed(noise, places)[50:].std() < 0.25
    assert charts.smoothed(np.array([1.0]), np.array([0])) == [1.0]


def test_thinning_keeps_peaks() -> None:
    values = np.zeros(10000)
    values[[1234, 7777]] = 5, -5
    kept = charts.sample(values, 300)
    assert len(kept) <= 300 and {1234, 7777} <= set(kept.tolist())


def test_logs_of_old_runs_show_what_their_terms_were(tmp_path: Path) -> None:
    """The bundled model's own log: roots were called `reconstruction`, and `mse` in the decoder."""
    log = Path(viq.__file__).parent / "bundled" / "viq-tiny" / "training-log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        Journal(tmp_path / "run" / line["stage"]).log(line)
    new = {"stage": "new", "step": 1, "steps": 1, "loss/rmse": 0.5, "loss/mse": 0.25}
    Journal(tmp_path / "run" / "new").log(new)
    result = make_report(tmp_path / "run", tmp_path / "report.html")["stages"]
    for stage, old in (("2-2-fsq", "loss/reconstruction"), ("3-decoder", "loss/mse")):
        last = [line for line in lines if line["stage"] == stage][-1]
        assert result[stage]["last"]["loss/rmse"] == last[old]
        assert old not in result[stage]["last"]
        assert result[stage]["last"]["loss"] == last["loss"]
    assert result["new"]["last"] == {"loss/rmse": 0.5, "loss/mse": 0.25}
    page = (tmp_path / "report.html").read_text()
    assert "Loss: rmse" in page and "Loss: reconstruction" not in page
