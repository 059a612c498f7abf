"""Variable rate through the jobs of the command line: files, stores, and what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refined import pictures, plain_tokenizer, refined_tokenizer, saved_pictures

from viq.core.types import CodesError, ViqError
from viq.data.sources.open import open_source
from viq.jobs.decode import decode_files
from viq.jobs.encode import encode
from viq.jobs.info import describe
from viq.jobs.pipeline import EncodeOptions
from viq.jobs.store.lint import lint
from viq.jobs.store.merge import export_webdataset, merge
from viq.jobs.store.stats import stats
from viq.store.dataset import CodeDataset
from viq.store.folder import Store, read_single
from viq.store.rows import CodesReader, CodesWriter, StoreInfo

OPTIONS = EncodeOptions(bpp=0.4, shard_size=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_pictures(tmp_path_factory.mktemp("photos"), 3, 70)


@pytest.fixture(scope="module")
def store(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "store"
    report = encode(refined_tokenizer(), open_source(str(photos)), out, OPTIONS)
    assert not report.failures and report.images == 3
    return out


def test_a_store_gives_back_what_encode_gives(photos: Path, store: Path, tmp_path: Path) -> None:
    model = refined_tokenizer()
    wanted = model.encode(sorted(photos.iterdir()), bpp=0.4)
    assert [row.codes for row in Store(store).rows()] == wanted
    encode(model, open_source(str(photos)), tmp_path / "a.parquet", OPTIONS)
    with CodesReader(tmp_path / "a.parquet") as reader:
        assert [codes for _, codes in reader] == wanted
    encode(model, open_source(str(photos / "1.png")), tmp_path / "b.viq", OPTIONS)
    assert read_single(tmp_path / "b.viq") == wanted[1]
    assert (tmp_path / "b.viq").stat().st_size * 8 <= 0.4 * 96 * 128


def test_everything_that_reads_stores_reads_them(store: Path, tmp_path: Path) -> None:
    assert lint(store)["problems"] == 0
    found, total = stats(store), sum(row.codes.total for row in Store(store).rows() if row.codes)
    assert found["codes"] == describe(str(store))["codes"] == total
    merge([store], tmp_path / "merged")
    assert [r.codes for r in Store(tmp_path / "merged").rows()] == [
        r.codes for r in Store(store).rows()
    ]
    export_webdataset(store, tmp_path / "tars")
    report = decode_files(refined_tokenizer(), [store], tmp_path / "pictures")
    assert report.images == 3 and not report.failures


def test_a_loader_reads_four_codes_a_patch(store: Path, tmp_path: Path) -> None:
    data = CodeDataset(store, cache=tmp_path / "cache")
    for number, row in enumerate(Store(store).rows()):
        (codes,) = data[number].codes
        assert row.codes is not None and np.array_equal(codes.ids, row.codes.ids)
        assert not data[number].extras


def test_info_tells_counts(photos: Path, tmp_path: Path) -> None:
    encode(refined_tokenizer(), open_source(str(photos / "0.png")), tmp_path / "a.viq", OPTIONS)
    facts = describe(str(tmp_path / "a.viq"))
    assert facts["codes_per_patch"]["least"] >= 1 and facts["extra_codes"] > 0
    assert facts["bits_per_pixel"] <= 0.4


def test_counted_and_other_codes_do_not_mix(photos: Path, store: Path, tmp_path: Path) -> None:
    model = refined_tokenizer()
    encode(model, open_source(str(photos)), tmp_path / "plain", EncodeOptions())
    with pytest.raises(CodesError, match="has other counts of codes"):
        merge([store, tmp_path / "plain"], tmp_path / "both")
    (codes,) = model.encode(photos / "0.png", bpp=0.4)
    info = StoreInfo(model="m", fingerprint=model.fingerprint, levels=model.levels)
    with (
        pytest.raises(CodesError, match="codes with and without counts"),
        CodesWriter(tmp_path / "c.parquet", info) as writer,
    ):
        writer.add("key", codes)
    report = decode_files(plain_tokenizer(), [store], tmp_path / "pictures")
    assert len(report.failures) == 3
    assert "no refinement" in report.failures[0]["reason"]


def test_an_older_store_may_have_columns_of_our_new_names(tmp_path: Path) -> None:
    """Before there were counts, users' columns could be called as theirs are now."""
    model = refined_tokenizer()
    info = StoreInfo(model="m", fingerprint=model.fingerprint, levels=model.levels)
    with CodesWriter(tmp_path / "a.parquet", info) as writer:
        writer.add("key", model.encode(pictures(1)[0])[0])
    table = pq.read_table(tmp_path / "a.parquet")
    table = table.append_column("code_counts", pa.array(["mine"]))
    pq.write_table(table, tmp_path / "old.parquet", write_page_checksum=True)
    (row,) = CodesReader(tmp_path / "old.parquet").rows()
    assert row.codes is not None and row.codes.counts is None
    assert row.extras["code_counts"] == "mine"


@pytest.mark.parametrize("column", ["code_counts", "extra_codes"])
def test_changed_counts_are_one_line(store: Path, tmp_path: Path, column: str) -> None:
    path = store / "part-00000.parquet"
    table = pq.read_table(path)
    for value in (b"", b"\x01", b"\xff" * 9):
        values = pa.array([value, *table[column].to_pylist()[1:]], pa.binary())
        place = table.schema.get_field_index(column)
        other = table.set_column(place, table.schema.field(column), values)
        for metadata in (True, False):  # with the sums of the store, and of a forger without
            kept = {k: v for k, v in (table.schema.metadata or {}).items() if metadata or
                    k != b"viq.sums"}  # fmt: skip
            pq.write_table(other.replace_schema_metadata(kept), tmp_path / "bad.parquet")
            with pytest.raises(CodesError, match="bad.parquet: .*damaged") as error:
                list(CodesReader(tmp_path / "bad.parquet").rows())
            assert "\n" not in str(error.value)


def test_a_rate_that_a_model_cannot_keep_is_said_before_the_work(photos: Path, tmp_path: Path):
    source = open_source(str(photos))
    with pytest.raises(ViqError, match="has no refinement"):
        encode(plain_tokenizer(), source, tmp_path / "a", OPTIONS)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ViqError, match="one of bpp, psnr and nbytes"):
        EncodeOptions(bpp=1, psnr=30)
    with pytest.raises(ViqError, match="--packed"):
        EncodeOptions(bpp=1, packed=4096)
    report = encode(refined_tokenizer(), source, tmp_path / "b.parquet", EncodeOptions(nbytes=40))
    assert len(report.failures) == 3 and "are the least" in report.failures[0]["reason"]
