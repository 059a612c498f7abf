"""What rows of a store hold: images, extras, keys, and the codes of odd files."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from code_stores import INFO
from drawn_source import Drawn, SyntheticSource
from PIL import Image
from tiny_entropy import LEVELS, STAMP, class_tables, usual_codes

from viq.data.sources.base import Row, Source
from viq.data.sources.files import FileSource
from viq.image.open import open_image
from viq.jobs.decode import decode_files
from viq.jobs.encode import encode
from viq.jobs.inputs import open_inputs
from viq.jobs.pipeline import EncodeOptions
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.columns import Extras
from viq.store.folder import Store
from viq.store.rows import CodesReader, CodesWriter


class RowSource(Source):
    """Rows at hand."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> Iterator[str]:
        return (row.key for row in self.rows)

    def _row(self, index: int) -> Row:
        return self.rows[index]


def test_samples_of_any_number_of_images(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    source = SyntheticSource([1, 3, 0, 2, 1], text=["a", "b", "c", "d", "e"])
    out = tmp_path / "codes"
    report = encode(tokenizer, source, out, EncodeOptions(shard_size=2))
    assert (report.images, report.store["rows"], report.failures) == (7, 8, [])
    rows = list(Store(out).rows())
    assert [(row.key, row.image_index, row.extras["text"]) for row in rows] == [
        (f"sample/{i}", place, "abcde"[i])
        for i, images in enumerate(source.images)
        for place in range(max(1, images))
    ]
    for row in rows:
        if row.codes is None:
            assert row.key == "sample/2"
        else:
            sample = source[int(row.key.removeprefix("sample/"))]
            assert [row.codes] == tokenizer.encode(sample.open(row.image_index))
    decoded = decode_files(tokenizer, [out], tmp_path / "pictures")
    assert decoded.images == len(decoded.outputs) == 7
    assert all(Path(path).exists() for path in decoded.outputs)


def test_extras_ride_along_untouched(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A cat."}]
    extras = {
        "caption": ["one", None, "zwei", "trois", "4"],
        "conversations": [turns, turns[:1], [], None, turns],
        "width": [640, 480, 1, 2, 3],  # the name of one of our columns
        "score": [1, 0.5, None, 2, 0.25],
        "ragged": [{"a": 1}, {"b": [1, "x"]}, "text", 5, None],
        "raw": [b"\xff", b"", None, b"2", b"3"],
        "empty": [None] * 5,
    }
    source = SyntheticSource([1, 2, 1, 1, 1], **extras)
    encode(tokenizer, source, tmp_path / "codes", EncodeOptions(shard_size=2))
    encode(tokenizer, source, tmp_path / "codes.parquet")
    for name in ("codes", "codes.parquet"):
        rows = [row for row in Store(tmp_path / name).rows() if row.image_index == 0]
        for place, row in enumerate(rows):
            expected = {name: values[place] for name, values in extras.items()}
            expected["input_width"] = expected.pop("width")
            names = expected.keys() | row.extras.keys()
            assert {n: row.extras.get(n) for n in names} == {n: expected.get(n) for n in names}
    table = pq.read_table(tmp_path / "codes")  # typed for any reader; only what has no type is JSON
    assert table["conversations"].to_pylist()[0] == turns
    assert json.loads(table["extras"].to_pylist()[0]) == {"ragged": {"a": 1}}
    assert "ragged" not in table.column_names
    one = next(Store(tmp_path / "codes").rows(columns=["caption"]))
    assert one.extras == {"caption": "one"}


def test_values_of_another_type_than_the_first_are_kept(
    tokenizer: VisualTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viq.jobs.encode._TYPED_BY", 2)
    label = [1, 2, "three", 4.5, {"five": [5]}]
    source = SyntheticSource([1] * 5, label=label, late=[None, None, "x", 1, None])
    encode(tokenizer, source, tmp_path, EncodeOptions(shard_size=2))
    rows = list(Store(tmp_path).rows())
    assert [row.extras["label"] for row in rows] == label
    assert [row.extras.get("late") for row in rows] == [None, None, "x", 1, None]
    assert pq.read_table(tmp_path)["label"].to_pylist() == [1, 2, None, None, None]


def test_columns_that_begin_after_the_first_rows(
    tokenizer: VisualTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viq.jobs.encode._TYPED_BY", 2)
    zone = timezone(timedelta(hours=-5, minutes=30))
    raw = [
        None, None, b"\xff\x00", {"deep": [b"1"]}, {"viq.base64": "no base64"}, {},
        datetime(2026, 2, 28, 23, 59, 1, 5, zone), datetime(1, 1, 1), date(1969, 12, 31),
        time(1, 2, 3, 4), timedelta(days=-400, microseconds=7), Decimal("-1E+30"), Decimal("0.10"),
        {"viq.date": "soon"}, {"viq.decimal": "x"}, {"viq.time": 3}, [date(2000, 1, 1)],
    ]  # fmt: skip
    report = encode(tokenizer, SyntheticSource([1] * len(raw), raw=raw), tmp_path / "raw")
    assert not report.failures
    assert [row.extras.get("raw") for row in Store(tmp_path / "raw").rows()] == raw
    talked = [Row(key=str(i), extras={"said": "x"} if i > 2 else {}, where="") for i in range(4)]
    source = RowSource(talked)
    assert not encode(tokenizer, source, tmp_path / "talk").failures
    said = [row.extras.get("said") for row in Store(tmp_path / "talk").rows()]
    assert said == [None, None, None, "x"]


def test_files_bring_no_column(
    tokenizer: VisualTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viq.jobs.encode._TYPED_BY", 2)
    for i in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{i}.png")
    encode(tokenizer, open_inputs([str(tmp_path)]), tmp_path / "codes")
    assert not Store(tmp_path / "codes").index.columns


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("packed", [0, 1, 40])
def test_codes_depend_on_neither_threads_nor_shards(
    tokenizer: VisualTokenizer, tmp_path: Path, workers: int, packed: int
) -> None:
    source = SyntheticSource([1, 2, 1, 0, 1, 1, 3, 1, 1], broken={4})
    options = EncodeOptions(shard_size=4, packed=packed, tile=16)
    encode(tokenizer, source, tmp_path, options, workers=workers)
    for row in Store(tmp_path).rows():
        if row.codes is not None:
            sample = source[int(row.key.removeprefix("sample/"))]
            (alone,) = tokenizer.encode(sample.open(row.image_index), tile=16)
            assert row.codes.size == alone.size
            assert np.mean(row.codes.ids != alone.ids) <= (0.02 if packed else 0)


def test_files_given_twice_are_there_once(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    source = open_inputs([str(tmp_path / "b.png"), str(tmp_path)])
    assert [Path(key).name for key in source.keys()] == ["b.png", "a.png", "c.png"]


def test_names_that_are_no_text(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in (b"caf\xe9.png", "caf\u00e9.png".encode()):
        with open(os.path.join(os.fsencode(tmp_path / "pictures"), name), "wb") as file:
            file.write(Drawn(1, (20, 20)).read())
    encode(tokenizer, FileSource([tmp_path / "pictures"]), tmp_path / "codes")
    keys = [Path(key).name for key, _ in Store(tmp_path / "codes")]
    assert sorted(keys) == ["caf\\udce9.png", "caf\u00e9.png"]


def test_real_odd_and_broken_files(tokenizer: VisualTokenizer, data: Path, tmp_path: Path) -> None:
    """Every file gives the codes of its pixels, or one line of the ledger."""
    folder = data / "robustness"
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    paths = [folder / entry["file"] for entry in manifest]
    small = EncodeOptions(max_pixels=4096, shard_size=50)
    report = encode(tokenizer, FileSource(paths), tmp_path, small)
    failed = {failure["key"]: failure["reason"] for failure in report.failures}
    codes = dict(Store(tmp_path))
    assert len(codes) + len(failed) == len(report.failures) + report.images == len(paths)
    for entry, path in zip(manifest, paths, strict=True):
        key = path.as_posix()
        if entry["expect"] == "must_decode":
            assert key in codes, failed.get(key)
        elif entry["expect"] in ("must_reject", "bomb"):
            assert key in failed
        if key in codes:
            assert [codes[key]] == tokenizer.encode(open_image(path), max_pixels=4096)
        else:
            assert "\n" not in failed[key]


@pytest.mark.parametrize("packed", [False, True])
def test_one_row_by_its_group_alone(tmp_path: Path, packed: bool) -> None:
    """Any row of a file of several groups is the one that reading all gives, plain or compressed,
    and listing keys and sizes of a group reads no codes."""
    info = replace(INFO, fingerprint=STAMP, levels=LEVELS)
    if packed:
        pytest.importorskip("constriction")
        model = class_tables()
        model.save_beside(tmp_path)
        info = replace(info, entropy=model.digest)
    extras = Extras.inferred([{"caption": "words"}])
    with CodesWriter(tmp_path / "codes.parquet", info, extras) as writer:
        for number in range(600):
            codes = usual_codes((16 + number % 40, 20), number) if number % 7 else None
            writer.add(f"key{number}", codes, 0, extras.pack({"caption": f"words {number}"}))
    with CodesReader(tmp_path / "codes.parquet") as reader:
        rows = list(reader.rows())
        for number in (0, 1, 255, 256, 511, 512, 599):
            assert list(reader.rows(only=number)) == [rows[number]]
            group, first = reader.group_of(number)
            assert (group, first) == (number // 256, number // 256 * 256)
        (listed,) = reader.light(["key", "height", "caption"], 1)
        assert listed.schema.names == ["key", "height", "caption"]
        assert listed["key"].to_pylist() == [row.key for row in rows[256:512]]
