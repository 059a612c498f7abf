"""`viq compare NAME@BPP`: tokenizers and codecs at bits a pixel of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from refined import pictures, refined_tokenizer

from viq.core.types import ViqError
from viq.eval.compare.figures import Networks
from viq.eval.compare.row import split_rate
from viq.eval.compare.run import Options, compare
from viq.eval.compare.tokenizers import TokenizerRow
from viq.jobs.inputs import open_inputs


def test_each_keeps_to_its_own_bits(tmp_path: Path) -> None:
    for number, picture in enumerate(pictures(2, 40)):
        picture.save(tmp_path / f"{number}.png")

    def load(name: str) -> TokenizerRow:
        return TokenizerRow(name, refined_tokenizer(), bpp=split_rate(name)[1])

    names = ["m@0.4", "m@1.5", "m", "jpeg@1.5", "webp@0.8", "jpeg@0.001", "jpeg"]
    found = compare(
        open_inputs([str(tmp_path)]), names, Options(repeats=0, shown=0),
        networks=Networks(), load=load,
    ).result  # fmt: skip
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["m@0.4"]["bpp"] <= 0.4 and 1.4 < rows["m@1.5"]["bpp"] <= 1.5
    assert rows["jpeg@1.5"]["bpp"] <= 1.5 and rows["webp@0.8"]["bpp"] <= 0.8
    assert rows["m"]["bpp"] == 0.25 and rows["m@0.4"]["series"] == "m"
    assert rows["m@1.5"]["psnr"] > rows["m@0.4"]["psnr"]
    assert [item["name"] for item in found["left_out"]] == ["jpeg@0.001"]
    assert "even the lowest quality takes more" in found["left_out"][0]["reason"]


def test_what_stands_behind_the_at() -> None:
    assert split_rate("viq-transform@0.25") == ("viq-transform", 0.25)
    assert split_rate("a@b/model") == ("a@b/model", None)
    assert split_rate("0.25") == ("0.25", None)
    for wrong in ("jpeg@0", "jpeg@-1", "jpeg@inf"):
        with pytest.raises(ViqError, match="give bits a pixel above 0 behind the @"):
            split_rate(wrong)
