"""`viq encode -o FOLDER` and `viq store` as a user meets them, on inputs of every kind."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image
from typer.testing import CliRunner, Result

from viq.cli import app
from viq.store.folder import INDEX, LEDGER, Store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def run_json(*arguments: object, code: int = 0) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 18, 3), np.uint8)
    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()


def inputs(kind: str, folder: Path) -> Path:
    """Four pictures with captions, as files, tar, Parquet, JSONL or a list of paths."""
    pictures = folder / "pictures" / "deep"
    pictures.mkdir(parents=True)
    for i in range(4):
        (pictures / f"{i}.png").write_bytes(png(i))
    place = folder / f"data.{kind}"
    captions = [f"caption {i}" for i in range(4)]
    if kind == "tar":
        with tarfile.open(place, "w") as tar:
            for i, caption in enumerate(captions):
                for suffix, data in (("png", png(i)), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{i}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    elif kind == "parquet":
        images = [png(i) for i in range(4)]
        pq.write_table(pa.table({"id": list("abcd"), "image": images, "caption": captions}), place)
    elif kind == "jsonl":
        records = [
            {"image": f"pictures/deep/{i}.png", "caption": c} for i, c in enumerate(captions)
        ]
        place.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "txt":
        place.write_text("".join(f"pictures/deep/{i}.png\n" for i in range(4)))
    else:
        place = folder / "pictures"
    return place


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "jsonl", "txt"])
def test_inputs_of_every_kind(kind: str, model: str, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    report = run_json(
        "encode", inputs(kind, tmp_path), "-o", out, "--model", model, "--shard-size", 3
    )
    assert (report["images"], report["store"]["shards"], report["store"]["missing"]) == (4, 2, 0)
    rows = list(Store(out).rows())
    assert [row.codes and row.codes.size for row in rows] == [(20 + i, 18) for i in range(4)]
    if kind in ("tar", "parquet", "jsonl"):
        assert [row.extras["caption"] for row in rows] == [f"caption {i}" for i in range(4)]
    assert len({row.key for row in rows}) == 4


def test_a_store_from_begin_to_end(model: str, tmp_path: Path) -> None:
    pictures, out = inputs("folder", tmp_path), tmp_path / "codes"
    broken = pictures / "broken.png"
    broken.write_bytes(b"no picture")
    common = ("encode", pictures, "-o", out, "--model", model, "--shard-size", 3)
    shown = run(*common, "--rank", 1, "--world", 2, code=0).stdout
    assert "1 of 2 shards are still to come from other ranks" in shown
    error = run("info", out, code=2).stderr
    assert "unfinished; run the same viq encode again" in error
    error = run("store", "index", out, code=2).stderr
    assert "1 shards are missing, the first is 0" in error

    result = run(*common, code=3)
    assert "the store is complete: 4 images in 2 shards" in result.stdout
    assert f"viq: failed: {broken}" in result.stderr
    assert run_json(*common, code=3)["images"] == 0
    facts = run_json("info", out)
    assert (facts["images"], facts["failures"], facts["shards"]) == (4, 1, 2)
    assert facts["options"]["shard_size"] == 3
    assert json.loads((out / LEDGER).read_text())["key"] == broken.as_posix()

    broken.write_bytes(png(7))
    assert run_json(*common, "--retry-failed")["images"] == 1
    assert not (out / LEDGER).exists()
    again = run(*common)  # all is done
    assert again.stdout.splitlines()[0].startswith("the store is complete: 5 images")
    assert not again.stderr
    (out / INDEX).unlink()
    assert run_json("store", "index", out)["images"] == 5
    back = run_json("decode", out, "-o", tmp_path / "back", "--model", model)
    assert back["images"] == len(list((tmp_path / "back").rglob("*.png"))) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shard-size", "0"), "--shard-size 0"),
        (("--packed", "-1"), "--packed -1"),
        (("--workers", "0"), "--workers 0"),
        (("--rank", "1"), "--rank and --world"),
        (("--rank", "2", "--world", "2"), "ranks are 0 to world - 1"),
        (("--rank", "0", "--world", "2", "--overwrite"), "--overwrite"),
        (("--engine", "spark"), "--engine spark"),
        (("--image-column", "photo"), "image_column"),
        (("-o", "{tmp}/codes.parquet", "--retry-failed"), "give a folder"),
        (("-o", "{tmp}/codes.parquet", "--rank", "0", "--world", "2"), "give a folder"),
        (("-o", "{tmp}/codes.parquet", "--engine", "ray"), "give a folder"),
        (("--engine", "ray", "--rank", "1", "--world", "2"), "start it once"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: tuple[str, ...], words: str, model: str, tmp_path: Path
) -> None:
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    out = () if "-o" in filled else ("-o", tmp_path / "codes")
    result = run("encode", inputs("folder", tmp_path), *out, "--model", model, *filled, code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("viq:")]
    assert words in line
    assert not (tmp_path / "codes").exists()


@pytest.mark.slow
def test_ray_makes_the_same_store(model: str, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    pictures = inputs("folder", tmp_path)
    (pictures / "broken.png").write_bytes(b"no picture")
    for engine in ("local", "ray"):
        command = [sys.executable, "-m", "viq.cli", "encode", pictures, "-o", tmp_path / engine,
                   "--model", model, "--shard-size", "1", "--engine", engine]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
        assert "4 images in 5 shards" in done.stdout
    local, ray = (
        {p.name: p.read_bytes() for p in (tmp_path / e).iterdir()} for e in ("local", "ray")
    )
    assert local == ray
