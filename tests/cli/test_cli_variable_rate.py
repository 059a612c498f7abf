"""`viq encode --bpp`, `--psnr` and `--nbytes`, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import one_line, run, run_json
from refined import pictures, plain_tokenizer, refined_tokenizer

from viq.store.folder import read_single


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    refined_tokenizer().save_pretrained(folder / "refined")
    plain_tokenizer().save_pretrained(folder / "plain")
    return folder


def test_from_picture_to_picture(model: Path, tmp_path: Path) -> None:
    pictures(1)[0].save(tmp_path / "a.png")
    out = tmp_path / "2.viq"
    for number, rate in enumerate((["--bpp", "0.4"], ["--psnr", "22"], ["--nbytes", "700"])):
        out = tmp_path / f"{number}.viq"
        run("encode", tmp_path / "a.png", "-o", out, "--model", model / "refined", *rate)
        assert read_single(out).counts is not None
        told = run_json("info", out)
        assert told["codes_per_patch"]["least"] >= 1 and told["extra_codes"] >= 0
    assert out.stat().st_size <= 700
    run("decode", out, "-o", tmp_path / "back", "--model", model / "refined")
    assert (tmp_path / "back" / "2.png").is_file()


@pytest.mark.parametrize(
    ("name", "rate", "code", "said"),
    [
        ("plain", ["--bpp", "1"], 2, "has no refinement"),
        ("refined", ["--bpp", "1", "--psnr", "30"], 2, "a rate is one of bpp, psnr and nbytes"),
        ("refined", ["--bpp", "-1"], 2, "bpp -1.0: give a number above 0"),
        ("refined", ["--nbytes", "50"], 3, "50 bytes are too few for 128x96 px"),
    ],
)
def test_what_cannot_be_is_one_line(
    model: Path, tmp_path: Path, name: str, rate: list[str], code: int, said: str
) -> None:
    pictures(1)[0].save(tmp_path / "a.png")
    out = tmp_path / "a.viq"
    given = ["encode", tmp_path / "a.png", "-o", out, "--model", model / name, *rate]
    assert said in one_line(run(*given, code=code))
    assert not out.exists()
