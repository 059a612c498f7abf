"""Stores of codes: every input exactly once, resumed, shared, refused, and read back."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image

from viq.core.locks import locked
from viq.core.process import Place, place_among
from viq.core.types import CodesError, ViqError
from viq.data.sources.base import ImageRef, Row, Source, SourceError
from viq.data.sources.files import FileSource
from viq.image.open import ImageError, open_image
from viq.jobs.decode import decode_files
from viq.jobs.encode import encode
from viq.jobs.inputs import open_inputs
from viq.jobs.pipeline import EncodeOptions
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import INDEX, JOB, LEDGER, Store
from viq.store.job import write_index

SHARDS_OF_4 = EncodeOptions(shard_size=4)


@pytest.fixture(scope="module")
def tokenizer() -> VisualTokenizer:
    return tiny.tokenizer()


@dataclass(frozen=True)
class Drawn:
    """An image made when it is read."""

    seed: int
    size: tuple[int, int]

    def read(self) -> bytes:
        import io

        if self.size == (0, 0):
            raise ImageError("is broken; mend it")
        pixels = np.random.default_rng(self.seed).integers(0, 256, (*self.size, 3), np.uint8)
        with io.BytesIO() as stream:
            Image.fromarray(pixels).save(stream, "PNG")
            return stream.getvalue()


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


class SyntheticSource(Source):
    """Samples of some images each; those at `broken` fail until they are mended."""

    def __init__(self, images: Sequence[int], broken: Iterable[int] = (), **extras: list) -> None:
        self.images, self.broken, self.extras = images, set(broken), extras

    def __len__(self) -> int:
        return len(self.images)

    def keys(self) -> Iterator[str]:
        return (f"sample/{i}" for i in range(len(self)))

    def _row(self, index: int) -> Row:
        if index in self.broken and index % 2:
            raise SourceError(f"sample/{index}: is no row; mend it")
        images: list[ImageRef] = [
            Drawn(index * 10 + i, (0, 0) if index in self.broken else (9 + index, 30 - i))
            for i in range(self.images[index])
        ]
        return Row(
            key=f"sample/{index}",
            images=tuple(images),
            extras={name: values[index] for name, values in self.extras.items()},
            where=f"place {index}",
        )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_store_holds_every_input_in_order(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    source = SyntheticSource([1] * 10, broken={2, 7})
    report = encode(tokenizer, source, tmp_path / "codes", SHARDS_OF_4)
    assert sorted(contents(tmp_path / "codes")) == [
        LEDGER, INDEX, JOB, "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"
    ]  # fmt: skip
    store = Store(tmp_path / "codes")
    assert [shard.inputs for shard in store.shards] == [(0, 4), (4, 8), (8, 10)]
    assert [shard.rows for shard in store.shards] == [3, 3, 2]
    good = [i for i in range(10) if i not in source.broken]
    found = dict(store)
    assert list(found) == [f"sample/{i}" for i in good]
    for i in good:
        (codes,) = tokenizer.encode(source[i].open())
        assert found[f"sample/{i}"] == codes
    assert (report.images, report.store["images"], store.index.totals["failures"]) == (8, 8, 2)
    ledger = [json.loads(line) for line in (tmp_path / "codes" / LEDGER).read_text().splitlines()]
    assert ledger == report.failures
    assert [line["key"] for line in ledger] == ["sample/2", "sample/7"]
    assert [line["reason"] for line in ledger] == [
        "place 2: is broken; mend it", "sample/7: is no row; mend it"
    ]  # fmt: skip
    table = pq.read_table(tmp_path / "codes")  # any Parquet reader passes over ledger and index
    assert table["key"].to_pylist() == list(found)


def test_an_interrupted_run_is_gone_on_with(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    source = SyntheticSource([1] * 18, broken={1})
    encode(tokenizer, source, tmp_path / "whole", SHARDS_OF_4)
    for stop_after in (0, 3, 5, 9, 17):
        left = stop_after

        def interrupt() -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1

        out = tmp_path / f"after {stop_after}"
        with pytest.raises(KeyboardInterrupt, match="of 5 shards are whole: run the same"):
            encode(tokenizer, source, out, SHARDS_OF_4, progress=interrupt)
        names = {path.name for path in out.iterdir()}
        assert names <= {JOB, LEDGER, *(f"part-{i:05d}.parquet" for i in range(5))}
        with pytest.raises(CodesError, match="unfinished"):
            Store(out)
        report = encode(tokenizer, source, out, SHARDS_OF_4)
        assert report.images < 18
        assert contents(out) == contents(tmp_path / "whole")


def test_nothing_is_done_twice(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    source, done = SyntheticSource([1] * 6, broken={4}), list[int]()
    encode(tokenizer, source, tmp_path, SHARDS_OF_4)
    before = contents(tmp_path)
    source.broken.clear()  # what failed is not tried again unless asked for
    report = encode(tokenizer, source, tmp_path, SHARDS_OF_4, progress=lambda: done.append(1))
    assert (report.images, len(report.failures), len(done)) == (0, 1, 6)
    assert contents(tmp_path) == before


def test_failed_inputs_are_tried_again_when_asked(
    tokenizer: VisualTokenizer, tmp_path: Path
) -> None:
    source = SyntheticSource(
        [2] * 10, broken={2, 3, 9}, caption=[f"caption {i}" for i in range(10)]
    )
    limited = EncodeOptions(shard_size=4, max_pixels=300)
    encode(tokenizer, source, tmp_path / "retried", limited)
    source.broken -= {2, 9}
    report = encode(tokenizer, source, tmp_path / "retried", limited, retry_failed=True)
    assert (report.images, len(report.failures)) == (4, 1)
    encode(tokenizer, source, tmp_path / "fresh", limited)
    assert contents(tmp_path / "retried") == contents(tmp_path / "fresh")


def test_changes_are_refused_by_name(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    source = SyntheticSource([1] * 6)
    encode(tokenizer, source, tmp_path, SHARDS_OF_4)
    before = contents(tmp_path)

    def refused(words: str, changed: Source = source, model=tokenizer, **options: Any) -> None:
        with pytest.raises(ViqError, match=words) as error:
            encode(model, changed, tmp_path, EncodeOptions(**{"shard_size": 4, **options}))
        assert "\n" not in str(error.value)

    refused("begun with shard_size 4, now 5", shard_size=5)
    refused("begun with tile 1024, now 32", tile=32)
    refused("begun with max_pixels None, now 100", max_pixels=100)
    refused("begun with packed 0, now 64", packed=64)
    refused("begun with number of inputs 6, now 7", SyntheticSource([1] * 7))
    refused("begun with columns", SyntheticSource([1] * 6, caption=["x"] * 6))
    refused("begun with model fingerprint", model=tiny.tokenizer(seed=3))

    class Renamed(SyntheticSource):
        def keys(self) -> Iterator[str]:
            return (f"other/{i}" for i in range(len(self)))

    refused("begun with keys of the inputs", Renamed([1] * 6))
    assert contents(tmp_path) == before
    encode(tokenizer, SyntheticSource([1] * 7), tmp_path, SHARDS_OF_4, overwrite=True)
    assert len(Store(tmp_path)) == 7


def test_one_process_at_a_time(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    source = SyntheticSource([1])
    with locked(tmp_path), pytest.raises(ViqError, match="another process is writing"):
        encode(tokenizer, source, tmp_path)
    with (
        locked(tmp_path, rank=0, world=2),
        locked(tmp_path, rank=1, world=2),
    ):
        with pytest.raises(ViqError, match="another process"), locked(tmp_path, rank=1, world=2):
            pass
        with pytest.raises(ViqError, match="another process"), locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    encode(tokenizer, source, tmp_path)


def test_ranks_make_the_same_store(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    source = SyntheticSource([1] * 18, broken={5})
    encode(tokenizer, source, tmp_path / "alone", SHARDS_OF_4)
    reports = [
        encode(tokenizer, source, tmp_path / "ranks", SHARDS_OF_4, place=Place(rank, 3))
        for rank in (2, 0, 1)
    ]
    assert [report.store["missing"] for report in reports] == [4, 2, 0]
    assert sum(report.images for report in reports) == 17
    assert contents(tmp_path / "ranks") == contents(tmp_path / "alone")


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert place_among() == Place(0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert place_among() == Place(0, 1)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert place_among() == Place(3, 8, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert place_among() == Place(1, 2, 0)
    assert place_among(4, 5) == Place(4, 5)
    for wrong in ((None, 2), (2, 2), (-1, 2)):
        with pytest.raises(ViqError, match="--rank"):
            place_among(*wrong)


def test_the_index_can_be_written_anew(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    encode(tokenizer, SyntheticSource([1] * 10, broken={3}), tmp_path, SHARDS_OF_4)
    before = contents(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / LEDGER).unlink()
    assert write_index(tmp_path)[1] == []
    assert contents(tmp_path) == before
    (tmp_path / INDEX).unlink()
    (tmp_path / "part-00001.parquet").unlink()
    assert write_index(tmp_path) == (None, [1])
    assert not (tmp_path / INDEX).exists()


def test_a_full_disk_leaves_a_valid_store(
    tokenizer: VisualTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SyntheticSource([1] * 10)
    encode(tokenizer, source, tmp_path / "whole", SHARDS_OF_4)
    write_table, written = pq.ParquetWriter.write_table, []

    def full(self: pq.ParquetWriter, *args: Any, **kwargs: Any) -> None:
        written.append(1)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(ViqError, match="the disk is full; 1 of 3 shards are whole"):
            encode(tokenizer, source, tmp_path / "full", SHARDS_OF_4)
    assert sorted(contents(tmp_path / "full")) == [JOB, "part-00000.parquet"]
    encode(tokenizer, source, tmp_path / "full", SHARDS_OF_4)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


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


def test_foreign_and_damaged_folders_are_refused(
    tokenizer: VisualTokenizer, tmp_path: Path
) -> None:
    source = SyntheticSource([1] * 6)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ViqError, match=r"other files \(a.txt\)"):
        encode(tokenizer, source, tmp_path / "notes")
    with pytest.raises(CodesError, match="does not exist"):
        Store(tmp_path / "none")
    with pytest.raises(CodesError, match="no store of codes"):
        Store(tmp_path / "notes")

    out = tmp_path / "codes"
    encode(tokenizer, source, out, SHARDS_OF_4)
    shard, index = (out / "part-00001.parquet").read_bytes(), (out / INDEX).read_text()
    (out / "part-00001.parquet").write_bytes(shard[:-9])
    with pytest.raises(CodesError, match=r"part-00001.parquet: not a Parquet file"):
        list(Store(out))
    with pytest.raises(CodesError, match=r"part-00001.parquet: not a Parquet file"):
        encode(tokenizer, source, out, SHARDS_OF_4)
    (out / "part-00001.parquet").write_bytes((out / "part-00000.parquet").read_bytes())
    with pytest.raises(CodesError, match=r"part-00001.parquet: 4 rows, but the index says 2"):
        list(Store(out))
    (out / INDEX).write_text(index[:-5])
    with pytest.raises(CodesError, match="damaged"):
        Store(out)
    (out / INDEX).write_text(index.replace('"format": 1', '"format": 2'))
    with pytest.raises(CodesError, match="newer format"):
        Store(out)


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
