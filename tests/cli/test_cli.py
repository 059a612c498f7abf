"""The command line as a user meets it: exit codes, codes and pictures, one-line errors, JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
from cli_runs import FAMILY, one_line, run, run_json
from PIL import Image

import viq


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_encode_decode_info(model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes.parquet"
    shown = run("encode", pictures, "-o", out, "--model", model).stdout
    assert "3 images" in shown
    assert "codes" in shown

    report = run_json("encode", pictures, "-o", out, "--model", model, "--overwrite")
    pixels = sum(h * w for h, w in FAMILY)
    codes = 4 * (2 * 4 + 3 * 1 + 1)
    assert report["images"] == 3
    assert report["codes"] == codes
    assert report["bytes"] == 2 * codes
    assert report["ratio"] == round(3 * pixels / (2 * codes), 2)
    assert report["failures"] == []

    facts = run_json("info", out)
    assert facts["images"] == 3
    assert facts["fingerprint"] == viq.load(model).fingerprint
    assert facts["smallest"] == [1, 1]
    assert facts["code_use"]["codes"] == codes

    decoded = run_json("decode", out, "-o", tmp_path / "back", "--model", model)
    assert decoded["images"] == 3
    found = sorted((tmp_path / "back").rglob("*.png"))
    assert [p.name for p in found] == ["0.png", "1.png", "2.png"]
    assert [size_of(p) for p in found] == [(w, h) for h, w in FAMILY]


@pytest.mark.parametrize("maker", ["viq-tiny", "viq-transform"])
def test_codes_of_a_bundled_model_need_no_name(maker: str, pictures: Path, tmp_path: Path) -> None:
    store, single, back = tmp_path / "codes", tmp_path / "one.viq", tmp_path / "back"
    run("encode", pictures, "-o", store, "--model", maker)
    run("encode", pictures / "deep" / "0.png", "-o", single, "--model", maker)
    assert run_json("decode", store, single, "-o", back)["images"] == 4
    run("store", "preview", store, "-o", tmp_path / "page.html")
    run("store", "near-duplicates", store, "--by", "pooled")
    run("store", "merge", store, "-o", tmp_path / "less", "--compress")
    other = viq.load({"viq-tiny": "viq-transform", "viq-transform": "viq-tiny"}[maker])
    with pytest.raises(viq.CodesError, match=f"load {maker}$"):
        other.decode([viq.Codes.from_bytes(single.read_bytes())])


def test_single_image_file(model: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.viq"
    run("encode", pictures / "deep" / "0.png", "-o", out, "--model", model)
    assert viq.Codes.from_bytes(out.read_bytes()).size == (20, 50)
    assert run_json("info", out)["rows"] == 2
    run("decode", out, "-o", tmp_path / "back", "--model", model)
    assert size_of(tmp_path / "back" / "one.png") == (50, 20)
    assert "one image" in one_line(run("encode", pictures, "-o", out, "--model", model, code=2))


def test_bad_inputs_do_not_stop_the_rest(model: str, pictures: Path, tmp_path: Path) -> None:
    good = (pictures / "deep" / "0.png").read_bytes()
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "text.jpg").write_text("hello")
    (pictures / "cut.png").write_bytes(good[: len(good) // 2])
    out = tmp_path / "codes.parquet"
    report = run_json("encode", pictures, "-o", out, "--model", model, code=3)
    assert report["images"] == 3
    assert len(report["failures"]) == 3
    ledger = (tmp_path / "codes.failures.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in ledger] == report["failures"]
    assert {Path(f["key"]).name for f in report["failures"]} == {"empty.jpg", "text.jpg", "cut.png"}
    assert all("\n" not in f["reason"] and f["key"] in f["reason"] for f in report["failures"])
    assert pq.read_table(out).num_rows == 3

    result = run("encode", pictures, "-o", out, "--model", model, "--overwrite", code=3)
    assert result.stderr.count("viq: failed:") == 3
    for name in ("empty.jpg", "text.jpg", "cut.png"):
        (pictures / name).unlink()
    run("encode", pictures, "-o", out, "--model", model, "--overwrite")
    assert not (tmp_path / "codes.failures.jsonl").exists()  # no stale list


def test_if_all_inputs_fail_no_codes_are_written(model: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    run("encode", bad, "-o", tmp_path / "c.parquet", "--model", model, code=3)
    assert not (tmp_path / "c.parquet").exists()


def test_options_reach_the_codes(model: str, tmp_path: Path) -> None:
    Image.new("RGB", (100, 60), "red").save(tmp_path / "a.png")
    out = tmp_path / "c.parquet"
    shown = run("encode", tmp_path / "a.png", "-o", out, "--model", model, "--tile", 48,
                "--max-pixels", 5000).stdout  # fmt: skip
    assert "1 images had more than 5,000 pixels and were made smaller" in shown
    row = pq.read_table(out).to_pylist()[0]
    assert row["tile"] == 48
    assert row["height"] * row["width"] <= 5000


def test_codes_of_another_model_are_refused(model: str, pictures: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "codes.parquet", tmp_path / "other"
    run("encode", pictures, "-o", out, "--model", model)
    tiny.tokenizer(seed=9).save_pretrained(other)
    line = one_line(run("decode", out, "-o", tmp_path / "b", "--model", other, code=2))
    assert "--any-tokenizer" in line
    assert not (tmp_path / "b").exists()
    run("decode", out, "-o", tmp_path / "b", "--model", other, "--any-tokenizer")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("encode", "missing.jpg", "-o", "{tmp}/c.parquet"), "missing.jpg"),
        (("encode", "{pictures}", "-o", "{tmp}/c.csv"), "NAME.parquet"),
        (("encode", "{pictures}", "-o", "{tmp}/c.parquet", "--tile", "50"), "multiple of 16"),
        (("encode", "{pictures}", "-o", "{tmp}/c.parquet", "--model", "nope"), "nope"),
        (("encode", "{pictures}", "-o", "{tmp}/c.parquet", "--device", "tpu9"), "--device tpu9"),
        (("encode", "{pictures}", "-o", "{tmp}/c.parquet", "--dtype", "int3"), "--dtype int3"),
        (("encode", "{pictures}", "-o", "{tmp}/c.parquet", "--max-pixels", "0"), "0"),
        (("decode", "{tmp}/none.parquet", "-o", "{tmp}/b"), "no such file"),
        (("decode", "{pictures}/deep/0.png", "-o", "{tmp}/b"), "0.png"),
        (("info", "{tmp}/none.viq"), "none.viq"),
        (("info", "{pictures}"), "no config.json"),
        (("eval", "reconstruction", "{pictures}", "--codecs", "gif"), "gif"),
        (("convert", "{tmp}/none.pth", "-o", "{tmp}/m"), "none.pth"),
        (("convert", "{pictures}/deep/0.png", "-o", "{tmp}/m", "--levels", "a,b"), "--levels a,b"),
        (("bench", "encode", "--only", "luck"), "luck"),
        (("train", "huge"), "choose one of tiny, transform, small, debug"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: tuple[str, ...], words: str, model: str, pictures: Path, tmp_path: Path
) -> None:
    filled = [a.format(pictures=pictures, tmp=tmp_path) for a in arguments]
    if filled[0] in ("encode", "eval", "bench") and "--model" not in filled:
        filled += ["--model", model]
    assert words in one_line(run(*filled, code=2))
    assert "error" in run_json(*filled, code=2)
    assert not (tmp_path / "c.parquet").exists()


def test_eval_and_stability(model: str, pictures: Path) -> None:
    result = run_json("eval", "reconstruction", pictures, "--model", model)
    assert result["totals"]["images"] == 3
    assert "mean of 3" in run("eval", "reconstruction", pictures, "--model", model).stdout
    tiles = run_json("eval", "tiles", pictures, "--tile", 32, "--model", model)
    assert (tiles["images"], tiles["smaller"]) == (2, 1)
    assert tiles["gap"] == pytest.approx(tiles["psnr_whole"] - tiles["psnr_tiled"])
    assert tiles["seams"]["ratio"] > 0
    stability = run_json("eval", "stability", pictures, "--model", model, "--random-sizes", 3)
    assert stability["images"] == 6
    assert stability["flips"]["again"] == stability["flips"]["in another order"] == 0


def test_demo(model: str, pictures: Path, tmp_path: Path) -> None:
    run("demo", pictures, "-o", tmp_path / "demo", "--model", model)
    assert (tmp_path / "demo" / "gallery.html").stat().st_size > 1000
    assert (tmp_path / "demo" / "gallery.png").exists()


def test_doctor_help_version() -> None:
    facts = run_json("doctor")
    assert facts["viq"] == viq.__version__
    assert "cpu" in facts["devices"]
    assert "bundled_models" in facts
    assert run("--version").stdout.strip() == viq.__version__
    for command in ("encode", "decode", "info", "eval", "bench", "convert", "train", "doctor"):
        assert command in run("--help").stdout
        run(command, "--help")


def test_an_input_may_raise_anything(model: str, tmp_path: Path) -> None:
    """As a row, and when its image is read."""
    from viq.data.sources.base import ImageBytes, Row, Source
    from viq.jobs.encode import encode

    errors = [RuntimeError("a\nb"), RecursionError(), UnicodeError("x"), KeyError("k"), OSError(5)]

    class Raises:
        def __init__(self, error: Exception) -> None:
            self._error = error

        def read(self) -> bytes:
            raise self._error

    class Bad(Source):
        def __len__(self) -> int:
            return 2 * len(errors) + 1

        def keys(self) -> Iterator[str]:
            return map(str, range(len(self)))

        def _row(self, index: int) -> Row:
            if index < len(errors):
                raise errors[index]
            good = ImageBytes(tiny.png(tiny.picture(0)))
            image = good if index == 2 * len(errors) else Raises(errors[index - len(errors)])
            return Row(key=str(index), images=(image,), where="here")

    for out in (tmp_path / "c.parquet", tmp_path / "store"):
        report = encode(tiny.tokenizer(), Bad(), out)
        assert report.images == 1
        assert [failure["key"] for failure in report.failures] == list("0123456789")
        assert "a b" in report.failures[0]["reason"]
        assert "a b" in report.failures[5]["reason"]


@pytest.mark.parametrize("packed", [0, 64])
def test_an_image_that_the_model_refuses_stops_nothing(
    pictures: Path, tmp_path: Path, packed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viq.core.types import ViqError
    from viq.jobs.encode import encode
    from viq.jobs.inputs import open_inputs
    from viq.jobs.pipeline import EncodeOptions

    tokenizer = tiny.tokenizer()
    real, message = tokenizer.encode, "an operation refuses\nthis shape"

    def picky(images: Any, **options: Any) -> list[viq.Codes]:
        images = list(images)
        if any(image.size == (16, 33) for image in images):
            raise RuntimeError(message)
        return real(images, **options)

    monkeypatch.setattr(tokenizer, "encode", picky)
    source = open_inputs([str(pictures)])
    report = encode(tokenizer, source, tmp_path / "c.parquet", EncodeOptions(packed=packed))
    assert report.images == 2
    (failure,) = report.failures
    assert failure["reason"] == f"{failure['key']}: RuntimeError: an operation refuses this shape"
    message = "DefaultCPUAllocator: can't allocate memory"  # no fault of the input
    with pytest.raises(ViqError, match="memory does not suffice.*--max-pixels"):
        encode(tokenizer, source, tmp_path / "d.parquet", EncodeOptions(packed=packed))


def test_what_is_left_over_is_said_and_refused_by_strict(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "notes.txt").write_text("no picture")
    out = tmp_path / "c.parquet"
    report = run_json("encode", pictures, "-o", out, "--model", model)
    assert report["left_over"] == {"files that are no pictures": 1}
    shown = run("encode", pictures, "-o", out, "--model", model, "--overwrite").stdout
    assert "left over: 1 files that are no pictures" in shown
    line = one_line(
        run("encode", pictures, "-o", tmp_path / "d.parquet", "--model", model, "--strict", code=2)
    )
    assert "--strict" in line and "1 files that are no pictures" in line
    rows = [{"image": "pictures/deep/0.png", "a": 1, "b": 2}, {"a": 3, "b": 4}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("encode", tmp_path / "rows.jsonl", "--model", model, "--drop", "b")
    report = run_json(*command, "-o", tmp_path / "e.parquet")
    assert report["left_over"]["rows without an image"] == 1
    assert "a" in pq.read_schema(tmp_path / "e.parquet").names
    assert "b" not in pq.read_schema(tmp_path / "e.parquet").names
    report = run_json(*command, "-o", tmp_path / "f.parquet", "--strict", code=3)
    assert [failure["key"] for failure in report["failures"]] == ["rows.jsonl:2"]


def test_data_open_nothing_elsewhere_unless_allowed(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    listed = tmp_path / "data" / "list.txt"
    listed.write_text(f"{pictures / 'deep' / '0.png'}\nmemory://x.png\n")
    command = ("encode", listed, "-o", tmp_path / "c.parquet", "--model", model, "--overwrite")
    reasons = [failure["reason"] for failure in run_json(*command, code=3)["failures"]]
    assert "--allow-absolute" in reasons[0] and "--allow-protocol" in reasons[1]
    report = run_json(*command, "--allow-absolute", "--allow-protocol", "memory", code=3)
    (failure,) = report["failures"]
    assert report["images"] == 1 and "--allow" not in failure["reason"]


def test_decode_says_in_which_dtype_codes_were_made(
    model: str, pictures: Path, tmp_path: Path
) -> None:
    out, picture = tmp_path / "c.viq", pictures / "deep" / "0.png"
    run("encode", picture, "-o", out, "--model", model, "--dtype", "bfloat16")
    shown = run("decode", out, "-o", tmp_path / "a", "--model", model).stdout
    assert "codes of 1 pictures were made in bfloat16" in shown
    facts = run_json("decode", out, "-o", tmp_path / "b", "--model", model)
    assert facts["other_dtypes"] == {"bfloat16": 1}
    run("encode", picture, "-o", out, "--model", model, "--overwrite")
    assert "made in" not in run("decode", out, "-o", tmp_path / "d", "--model", model).stdout
