"""Stores of codes: every input exactly once, resumed, shared and refused."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
from drawn_source import SyntheticSource

from viq.core.locks import locked
from viq.core.process import Place, place_among
from viq.core.types import CodesError, ViqError
from viq.data.sources.base import Source
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import CARD, INDEX, JOB, LEDGER, Store
from viq.store.job import write_index

SHARDS_OF_4 = EncodeOptions(shard_size=4)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_store_holds_every_input_in_order(tokenizer: VisualTokenizer, tmp_path: Path) -> None:
    source = SyntheticSource([1] * 10, broken={2, 7})
    report = encode(tokenizer, source, tmp_path / "codes", SHARDS_OF_4)
    assert sorted(contents(tmp_path / "codes")) == [
        CARD, LEDGER, INDEX, JOB, "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"
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
