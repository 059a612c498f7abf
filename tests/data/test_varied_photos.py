"""Copies of photos to learn from: none of a photo that is held out, and none held out itself."""

import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from viq.data.corpora.corpora import split_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "varied_photos.py"


def test_no_copy_of_a_photo_that_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"photo_{number}" for number in range(40)]
    held = {key for key in keys if split_of(key) == "held-out"}
    assert held  # else nothing is tested
    buffer = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    picture.save(buffer, "PNG")
    rows = [
        {"key": key, "image": buffer.getvalue(), "label": None if key == keys[0] else "cup",
         "licence_tier": "research" if key == keys[1] else "permissive"}
        for key in keys
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    out = tmp_path / "varied.parquet"
    monkeypatch.setattr(sys, "argv", ["", str(out), str(tmp_path / "photos.parquet")])
    runpy.run_path(str(SCRIPT), run_name="__main__")

    copies = pq.read_table(out).to_pylist()
    used = {*keys} - held - {keys[0], keys[1]}
    assert {row["key"].rpartition("-")[0] for row in copies} == used
    assert len({row["key"] for row in copies}) == len(copies) == 2 * len(used)
    assert {split_of(row["key"]) for row in copies} == {"train"}
    sizes = [Image.open(io.BytesIO(row["image"])).size for row in copies]
    assert sizes[0] == picture.size and sizes[1][0] < picture.width
    assert f"{len(copies)} pictures" in capsys.readouterr().out
