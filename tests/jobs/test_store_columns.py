"""`viq store add-columns` and `viq store import`, as users call them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from typer.testing import CliRunner

from viq.cli import app
from viq.store.folder import Store
from viq.store.rows import CodeRow


def viq(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for number in range(4):
        tiny.picture(number, 20 + number, 33).save(folder / f"{number}.png")
    model = tiny.tokenizer()
    model.save_pretrained(folder / "model")
    told = viq("encode", *sorted(folder.glob("*.png")), "-o", folder / "codes",
               "--model", folder / "model", "--shard-size", 3)  # fmt: skip
    assert told["images"] == 4
    return folder / "codes"


def rows(path: Path) -> list[CodeRow]:
    return list(Store(path).rows())


def test_captions_join_a_store_by_key(codes: Path, tmp_path: Path) -> None:
    keys = [row.key for row in rows(codes)]
    table = pa.table({"key": [keys[2], keys[0], "nobody"], "caption": ["two", "zero", "x"],
                      "score": [2.5, 0.5, 1.0]})  # fmt: skip
    pq.write_table(table, tmp_path / "captions.parquet")
    out = tmp_path / "joined"
    told = viq("store", "add-columns", codes, tmp_path / "captions.parquet", "-o", out)
    assert (told["rows"], told["without_row"], told["unused_rows"]) == (4, 2, 1)
    found = rows(out)
    assert [row.codes for row in found] == [row.codes for row in rows(codes)]
    assert [row.extras["caption"] for row in found] == ["zero", None, "two", None]
    assert [row.extras["score"] for row in found] == [0.5, None, 2.5, None]
    assert viq("store", "lint", out)["problems"] == 0
    again = viq("store", "add-columns", out, tmp_path / "captions.parquet", "-o",
                tmp_path / "twice", code=2)  # fmt: skip
    assert "has a column caption already" in again["error"]
    viq("store", "add-columns", out, tmp_path / "captions.parquet", "-o", tmp_path / "twice",
        "--replace-columns")  # fmt: skip
    wrong = viq("store", "add-columns", codes, tmp_path / "captions.parquet", "-o",
                tmp_path / "strict", "--strict", code=2)  # fmt: skip
    assert "2 samples have no row" in wrong["error"] and not (tmp_path / "strict").exists()


def test_conversations_of_json_lines(codes: Path, tmp_path: Path) -> None:
    keys = [row.key for row in rows(codes)]
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    lines = [json.dumps({"name": key, "conversations": turns, "id": 7}) for key in keys]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    told = viq("store", "add-columns", codes, tmp_path / "talk.jsonl", "-o", tmp_path / "out",
               "--key-column", "name", "--columns", "conversations")  # fmt: skip
    assert told["without_row"] == 0
    assert [dict(row.extras) for row in rows(tmp_path / "out")] == [{"conversations": turns}] * 4
    (tmp_path / "talk.jsonl").write_text("\n".join([lines[0], lines[0]]))
    twice = viq("store", "add-columns", codes, tmp_path / "talk.jsonl", "-o", tmp_path / "no",
                "--key-column", "name", code=2)  # fmt: skip
    assert "was there before" in twice["error"]


def test_what_export_wrote_comes_back(codes: Path, tmp_path: Path) -> None:
    viq("store", "export", codes, "--webdataset", "-o", tmp_path / "tars")
    model = codes.parent / "model"
    viq("store", "import", tmp_path / "tars", "-o", tmp_path / "back", "--model", model)
    assert viq("store", "diff", codes, tmp_path / "back")["equal"]


def test_arrays_of_codes(codes: Path, tmp_path: Path) -> None:
    model, folder = codes.parent / "model", tmp_path / "arrays"
    folder.mkdir()
    found = [row.codes for row in rows(codes)]
    first, second = found[0], found[1]
    assert first is not None and second is not None
    np.save(folder / "batch.npy", np.stack([first.ids, first.ids]).astype(np.int64))
    np.savez(folder / "one.npz", ids=second.ids, size=np.array(second.size))
    (folder / "single.viq").write_bytes(first.to_bytes())
    told = viq("store", "import", folder, "-o", tmp_path / "out", "--model", model)
    assert told["images"] == 4
    made = {row.key.rpartition("/")[2]: row.codes for row in rows(tmp_path / "out")}
    assert list(made) == ["batch:0", "batch:1", "one", "single"]
    assert made["one"] == second and made["single"] == first
    assert made["batch:1"] is not None and (made["batch:1"].ids == first.ids).all()
    assert made["batch:1"].size == (32, 48)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3), np.uint16), "codes are whole numbers"),
        (np.zeros((2, 3, 4), np.float32), "codes are whole numbers"),
        (np.full((2, 3, 4), -1), "below 0"),
        (np.full((2, 3, 4), 65535), "another tokenizer made it"),
        (np.array([{"a": 1}], object), "Python objects"),
    ],
)
def test_bad_arrays(array: np.ndarray, words: str, codes: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", array)
    told = viq("store", "import", tmp_path / "bad.npy", "-o", tmp_path / "out", "--model",
               codes.parent / "model", code=2)  # fmt: skip
    assert words in told["error"] and "bad" in told["error"] and not (tmp_path / "out").exists()
    shutil.copy(tmp_path / "bad.npy", tmp_path / "cut.npz")
    viq("store", "import", tmp_path / "cut.npz", "-o", tmp_path / "out", code=2)
