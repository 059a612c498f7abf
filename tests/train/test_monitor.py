"""Log, code use, picture grids and bar: exact numbers, and what an interrupted run leaves."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from viq.core.types import ViqError
from viq.metrics.codebook import collapse_warning, crowded_levels, even_perplexity
from viq.metrics.run_log import clock, read_lines
from viq.models.tokenizer.fsq import FSQ
from viq.report.sheets import picture_grid
from viq.train.monitor import Bar, Journal, code_use, count_codes


def use_of(z: torch.Tensor, fsq: FSQ) -> dict:
    return code_use(count_codes(fsq.indices(z), fsq), fsq)


def spread(count: int, fsq: FSQ) -> torch.Tensor:
    """Values that use all levels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, len(fsq.levels), generator=generator)


def test_code_use_by_hand() -> None:
    fsq = FSQ((2, 3))  # id = level of dimension 0 + 2 x level of dimension 1
    counts = count_codes(torch.tensor([[0, 1], [4, 4]]), fsq)
    assert counts.tolist() == [1, 1, 0, 0, 2, 0]
    assert code_use(counts, fsq) == {
        "codes": 4,
        "codebook": 6,
        "used": 3,
        "share": 0.5,
        "entropy_bits": 1.5,
        "perplexity": pytest.approx(2**1.5),
        "levels": [[3, 1], [2, 0, 2]],
    }
    with pytest.raises(ViqError, match="counts of 6"):
        code_use(torch.tensor([0, 1, 4, 4]), fsq)


def test_even_perplexity() -> None:
    assert even_perplexity(1, 64000) == pytest.approx(1)
    assert even_perplexity(2, 4) == pytest.approx(1.75)  # 1 + 3/4
    assert even_perplexity(10**9, 64000) == pytest.approx(64000)


def test_healthy_codes_do_not_warn() -> None:
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    assert collapse_warning(use_of(spread(2000, fsq), fsq)) is None


def test_a_dimension_on_one_level_warns() -> None:
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    z = spread(2000, fsq)
    z[:, 4] = 0
    record = use_of(z, fsq)
    assert crowded_levels(record) == [(4, 2, 1.0)]
    assert collapse_warning(record) == (
        "code use collapses: dimension 4 has 100.0% of its codes on level 2"
    )
    z[:101, 4] = 9  # 5.05% elsewhere
    assert collapse_warning(use_of(z, fsq)) is None


def test_few_codes_in_all_dimensions_warn() -> None:
    """Every dimension looks well spread, but only eight codes occur."""
    fsq = FSQ((8, 8, 8))
    ids = torch.arange(8).repeat(500) * (1 + 8 + 64)
    record = code_use(count_codes(ids, fsq), fsq)
    assert crowded_levels(record) == []
    even = 512 * (1 - (1 - 1 / 512) ** 4000)
    assert collapse_warning(record) == (
        f"code use collapses: perplexity 8.0 is {8 / even:.1%} of the 512 of even use"
    )


def test_a_plain_picture_does_not_warn() -> None:
    fsq = FSQ((8, 8))
    assert collapse_warning(code_use(count_codes(torch.zeros(999).long(), fsq), fsq)) is None
    assert collapse_warning(code_use(count_codes(torch.zeros(1000).long(), fsq), fsq))


# Pictures


def test_grid_of_any_sizes(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (40, 30), "red"), np.full((50, 20, 3), (0, 0, 255), np.uint8)
    path = tmp_path / "grids" / "step-000010.png"
    picture_grid([red, blue], [blue, red], path)
    with Image.open(path) as grid:
        # Columns of 40 and 40 px, rows of 50 and 50 px, 8 px around; originals stand on one line.
        assert grid.size == (104, 124)
        assert grid.getpixel((8, 28)) == grid.getpixel((47, 57)) == (255, 0, 0)
        assert grid.getpixel((8, 66)) == grid.getpixel((27, 115)) == (0, 0, 255)
        assert grid.getpixel((56, 8)) == (0, 0, 255)
        assert grid.getpixel((56, 66)) == (255, 0, 0)
        assert grid.getpixel((8, 27)) == grid.getpixel((28, 66)) == (255, 255, 255)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_grid_breaks_rows_and_shrinks(tmp_path: Path) -> None:
    wide = Image.new("RGB", (1000, 500))
    picture_grid([wide] * 7, [wide] * 7, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as grid:
        assert grid.size == (8 + 6 * 264, 2 * (2 * 128 + 24))
    with pytest.raises(ValueError, match="at least one pair"):
        picture_grid([], [], tmp_path / "b.png")


# The log


def test_log_is_cut_where_training_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in (10, 20, 30):
        journal.log({"stage": "fsq", "step": step, "loss": 1 / step})
    (tmp_path / "codes.jsonl").write_text('{"step": 20}\n{"step": 40}\n')
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"stage": "fsq", "st')
    journal.cut(20)
    assert [record["step"] for record in read_lines(tmp_path / "log.jsonl")] == [10, 20]
    assert (tmp_path / "codes.jsonl").read_text() == '{"step": 20}\n'
    journal.log({"stage": "fsq", "step": 30})
    assert (tmp_path / "log.jsonl").read_text().splitlines()[-1] == '{"stage": "fsq", "step": 30}'
    journal.cut(0)
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_lines_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == []
    path.write_bytes(b'{"step": 1}\n[]\n\xff\n\n{"step": 2}\n{"step": 3}')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


def test_codes_warn(tmp_path: Path) -> None:
    said: list[str] = []
    fsq = FSQ((8, 8))
    journal = Journal(tmp_path, warn=said.append)
    journal.codes(1200, code_use(count_codes(torch.zeros(2000).long(), fsq), fsq))
    assert said[0].startswith("step 1,200: code use collapses: dimension 0 has 100.0%")
    assert read_lines(tmp_path / "codes.jsonl")[0]["step"] == 1200


def test_a_bad_sample_is_written_once(tmp_path: Path) -> None:
    Journal(tmp_path).skip("a.jpg", "torn")
    journal = Journal(tmp_path)
    journal.skip("a.jpg", "torn")
    journal.skip("b.jpg", "empty")
    journal.cut(0)  # they are no steps
    assert [record["key"] for record in read_lines(tmp_path / "skipped.jsonl")] == [
        "a.jpg", "b.jpg",
    ]  # fmt: skip


# The bar


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Bar("fsq", 200, start=100, log_every=50, stream=stream) as bar:
        for step in range(101, 201):
            bar.update(step, {"loss": 0.5, "tokens_per_second": 1800.4} if step == 150 else None)
        bar.print_line("a line")
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[:3] for line in lines[:2]] == [
        ["fsq 150/200", "loss 0.5000", "1,800 tokens/s"],
        ["fsq 200/200", "loss 0.5000", "1,800 tokens/s"],
    ]
    assert lines[0].endswith(" left") and lines[1].endswith("0 s left")
    assert lines[2:] == ["a line"]


def test_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Bar("fsq", 200, stream=stream) as bar:
        bar.update(200, {"loss": 0.25, "psnr": 22.5})
        bar.print_line("above [it]")
    assert "above [it]" in stream.getvalue()
    assert "200/200" in stream.getvalue()


def test_a_hidden_bar_is_silent() -> None:
    stream = io.StringIO()
    with Bar("fsq", 10, hidden=True, stream=stream) as bar:
        bar.update(10, {"loss": 1.0})
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (90, "1 min 30 s"), (3600, "1 h 0 min"), (2e5, "2 d 7 h")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_records_are_json_numbers(tmp_path: Path) -> None:
    """What is written can be read by others: no NaN from codes that are all equal."""
    fsq = FSQ((8, 8))
    record = code_use(count_codes(torch.zeros(5).long(), fsq), fsq)
    assert math.isclose(record["perplexity"], 1)
    json.dumps(record, allow_nan=False)
