"""`viq decode`: what it replaces (nothing of a user), where it writes, and what damage costs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image
from typer.testing import CliRunner, Result

import viq
from viq.cli import app
from viq.core.codes import Codes
from viq.jobs.decode import MANIFEST
from viq.store.rows import CodesWriter, StoreInfo, schema


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def info() -> StoreInfo:
    tokenizer = tiny.tokenizer()
    return StoreInfo(model="tiny", fingerprint=tokenizer.fingerprint, levels=tokenizer.levels)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def run_json(*arguments: object, code: int = 0) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def some_codes(value: int = 0) -> Codes:
    return Codes(np.full((1, 1, 4), value, np.uint16), (9, 7))


def write(path: Path, info: StoreInfo, rows: dict[str, Codes]) -> Path:
    with CodesWriter(path, info) as writer:
        for key, codes in rows.items():
            writer.add(key, codes)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_originals_are_never_replaced(model: str, tmp_path: Path) -> None:
    photos, codes = tmp_path / "photos", tmp_path / "c.parquet"
    (photos / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        tiny.picture(1).save(photos / name)
    before = contents(photos)
    run("encode", photos, "-o", codes, "--model", model)
    error = run("decode", codes, "-o", photos, "--model", model, code=2).stderr
    assert "a.png: exists, and 1 more," in error and "--overwrite" in error
    assert contents(photos) == before
    run("decode", codes, "-o", photos, "--model", model, "--overwrite")
    assert contents(photos).keys() == before.keys() | {MANIFEST}
    assert contents(photos)["a.png"] != before["a.png"]


def test_the_same_job_is_gone_on_with(model: str, info: StoreInfo, tmp_path: Path) -> None:
    rows = {f"{name}.jpg": some_codes(n) for n, name in enumerate("abcd")}
    codes, out = write(tmp_path / "c.parquet", info, rows), tmp_path / "out"
    run("decode", codes, "-o", out, "--model", model)
    whole = contents(out)
    # As after a kill: the list has a picture that is not there, and a line that is torn.
    (out / "c.png").unlink()
    (out / "d.png").unlink()
    lines = whole[MANIFEST].splitlines(keepends=True)
    (out / MANIFEST).write_bytes(b"".join(lines[:4]) + lines[4][:30])
    report = run_json("decode", codes, "-o", out, "--model", model)
    assert (report["images"], report["resumed"]) == (2, 2)
    assert contents(out) == whole


def test_pictures_changed_by_hand_or_of_another_job_are_kept(
    model: str, info: StoreInfo, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = write(tmp_path / "1.parquet", info, {"a": some_codes(1), "b": some_codes(2)})
    other = write(tmp_path / "2.parquet", info, {"a": some_codes(3), "c": some_codes(4)})
    run("decode", first, "-o", out, "--model", model)
    (out / "b.png").write_bytes(b"retouched")
    before = contents(out)
    for codes, name in ((first, "b.png"), (other, "a.png")):
        result = run("decode", codes, "-o", out, "--model", model, code=3)
        (line,) = [x for x in result.stderr.splitlines() if x.startswith("viq: failed")]
        assert name in line and "--overwrite" in line
        assert contents(out)[name] == before[name]
    assert (out / "c.png").exists()  # the rest is done
    run("decode", other, "-o", out, "--model", model, "--overwrite")
    assert contents(out)["a.png"] != before["a.png"]


def test_a_list_of_somebody_else_is_left_alone(model: str, info: StoreInfo, tmp_path: Path) -> None:
    codes = write(tmp_path / "c.parquet", info, {"a": some_codes()})
    (tmp_path / "out").mkdir()
    for content in (b'{"file": "mine"}\n', b"text", b'{"viq": "demo", "format": 1}\n'):
        (tmp_path / "out" / MANIFEST).write_bytes(content)
        error = run("decode", codes, "-o", tmp_path / "out", "--model", model, code=2).stderr
        assert "is not the list of files" in error
        assert contents(tmp_path / "out") == {MANIFEST: content}


HOSTILE = [
    "a\0b.jpg", "k" * 5000, "x/a.png/b.png", "x/a.png", "../../up.png", "/etc/passwd", "", ".",
    "two\nlines", "\x1b[31mred", "C:\\win\\a.jpg", "con", "deep/" * 3000 + "end",
]  # fmt: skip


def test_hostile_keys_stay_inside_and_can_be_told_back(
    model: str, info: StoreInfo, tmp_path: Path
) -> None:
    codes = write(tmp_path / "c.parquet", info, {key: some_codes() for key in HOSTILE})
    out = tmp_path / "deep" / "out"
    report = run_json("decode", codes, "-o", out, "--model", model)
    assert report["images"] == len(HOSTILE)
    listed = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()[1:]]
    assert [entry["key"] for entry in listed] == HOSTILE
    assert {entry["file"] for entry in listed} | {MANIFEST} == contents(out).keys()
    assert contents(tmp_path).keys() == {"c.parquet", *(f"deep/out/{x}" for x in contents(out))}


def test_links_inside_are_not_followed_out(model: str, info: StoreInfo, tmp_path: Path) -> None:
    codes = write(tmp_path / "c.parquet", info, {"x/a": some_codes(), "y": some_codes()})
    for folder in ("out", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "out" / "x").symlink_to(tmp_path / "elsewhere")
    result = run("decode", codes, "-o", tmp_path / "out", "--model", model, code=3)
    assert "lies outside" in result.stderr
    assert contents(tmp_path / "elsewhere") == {}
    assert (tmp_path / "out" / "y.png").exists()


def test_a_damaged_row_costs_itself_alone(model: str, info: StoreInfo, tmp_path: Path) -> None:
    """In a file of another writer, which notes no sums."""
    ids = [[0, 1, 2, 3], [0, 1], [65_000] * 4, [4, 5, 6, 7]]
    numbers = {name: [1] * 4 for name in ("height", "width", "rows", "cols")}
    columns = {
        "key": list("abcd"),
        "image_index": [0] * 4,
        **numbers,
        "tile": [0] * 4,
        "codes": ids,
    }
    pq.write_table(pa.table(columns, schema=schema(info)), tmp_path / "c.parquet")
    out = tmp_path / "out"
    report = run_json("decode", tmp_path / "c.parquet", "-o", out, "--model", model, code=3)
    assert [failure["key"] for failure in report["failures"]] == ["b", "c"]
    assert sorted(contents(out)) == ["a.png", "d.png", MANIFEST]


def test_a_damaged_group_and_a_damaged_shard_cost_themselves_alone(
    model: str, info: StoreInfo, tmp_path: Path
) -> None:
    rows = {f"{n:03}": some_codes(n) for n in range(300)}
    codes = write(tmp_path / "c.parquet", info, rows)
    place = pq.ParquetFile(codes).metadata.row_group(0).column(7).data_page_offset
    data = bytearray(codes.read_bytes())
    data[place + 40] ^= 1
    codes.write_bytes(data)
    (tmp_path / "cut.viq").write_bytes(some_codes().to_bytes()[:-3])
    report = run_json(
        "decode", codes, tmp_path / "cut.viq", "-o", tmp_path / "out", "--model", model, code=3
    )
    assert report["images"] == 300 - 256
    assert len(report["failures"]) == 257
    assert "cut.viq" in report["failures"][-1]["reason"]


def test_rows_of_a_sample_and_of_a_table_keep_their_numbers(model: str, tmp_path: Path) -> None:
    pictures = [[tiny.png(tiny.picture(n)) for n in group] for group in ((0, 1), (2,))]
    pq.write_table(pa.table({"images": pictures}), tmp_path / "pairs.parquet")
    run("encode", tmp_path / "pairs.parquet", "-o", tmp_path / "o.parquet", "--model", model)
    run("decode", tmp_path / "o.parquet", "-o", tmp_path / "back", "--model", model)
    names = sorted(path.name for path in (tmp_path / "back").glob("*.png"))
    assert names == ["pairs-0-0.png", "pairs-0-1.png", "pairs-1.png"]
    with Image.open(tmp_path / "back" / "pairs-1.png") as image:
        assert image.size == tiny.picture(2).size


def test_no_row_takes_more_memory_than_the_bounds_say(tmp_path: Path) -> None:
    """Few bytes of Parquet that claim an image of billions of pixels: one line, and the rest."""
    model = viq.load()
    codes = model.encode(tiny.picture(1))[0]
    info = StoreInfo(model=model.config.name, fingerprint=model.fingerprint, levels=model.levels)
    patches = 20_000_000
    rows = [("huge.png", np.zeros(4 * patches, np.uint16), (16, 16 * patches), (1, patches)),
            ("small.png", codes.ids.ravel(), codes.size, codes.grid)]  # fmt: skip
    path = tmp_path / "zeros.parquet"
    with pq.ParquetWriter(path, schema(info), compression="zstd") as writer:
        for key, ids, size, grid in rows:
            ends = pa.array([0, len(ids)], pa.int32())
            numbers = [pa.array([n], pa.int32()) for n in (0, *size, *grid, 0)]
            lists = pa.ListArray.from_arrays(ends, pa.array(ids))
            writer.write_table(pa.table([pa.array([key]), *numbers, lists], schema=schema(info)))
    code = (
        "import sys, viq, viq.cli\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "viq.load()\n"
        "before = peak()  # torch alone takes from 200 to 600 MB, as it was built\n"
        "sys.argv = ['viq', 'decode', *sys.argv[1:]]\n"
        "try: viq.cli.main()\n"
        "finally: print(peak() - before, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, "-o", tmp_path / "out"], capture_output=True, text=True
    )
    *said, more = done.stderr.splitlines()
    assert done.returncode == 3 and len(said) == 1 and "200,000,000 pixels" in said[0]
    assert int(more) < 240_000  # KiB
    assert (tmp_path / "out" / "small.png").exists()


def test_wide_images_are_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = viq.load("viq-tiny")
    codes = model.encode(tiny.picture(1, 40, 400))[0]
    whole = np.asarray(model.decode(codes)[0]).astype(int)
    monkeypatch.setattr("viq.models.tokenizer.inference._WINDOW", 7)
    assert np.abs(np.asarray(model.decode(codes)[0]) - whole).max() <= 1
