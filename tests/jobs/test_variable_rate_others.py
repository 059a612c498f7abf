"""Stores with counts that others rewrite, that get columns, or that come from single files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from refined import plain_tokenizer, refined_tokenizer, saved_pictures

from viq.core.codes import Codes
from viq.core.types import CodesError
from viq.data.sources.open import open_source
from viq.jobs import ray_engine
from viq.jobs.decode import decode_files
from viq.jobs.encode import encode
from viq.jobs.info import describe
from viq.jobs.pipeline import EncodeOptions
from viq.jobs.store.add_columns import add_columns
from viq.jobs.store.import_codes import import_codes
from viq.jobs.store.lint import lint
from viq.jobs.store.merge import merge
from viq.models.tokenizer.loading import load
from viq.report.preview import preview
from viq.store.dataset import CodeDataset
from viq.store.folder import Store, StoreInfo


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    saved_pictures(folder, 2, 70)
    out = tmp_path_factory.mktemp("out") / "store"
    encode(refined_tokenizer(), open_source(str(folder)), out, EncodeOptions(bpp=0.4))
    return out


def codes_of(path: Path) -> list[Codes | None]:
    return [row.codes for row in Store(path).rows()]


def by_pyarrow(store: Path, out: Path) -> None:
    pq.write_table(pq.read_table(store).replace_schema_metadata(None), out)


def by_duckdb(store: Path, out: Path) -> None:
    duckdb: Any = pytest.importorskip("duckdb", reason="reads stores by SQL: pip install duckdb")
    duckdb.sql(f"COPY (SELECT * FROM '{store}/*.parquet' ORDER BY key) TO '{out}'")


def by_polars(store: Path, out: Path) -> None:
    polars: Any = pytest.importorskip("polars", reason="reads stores: pip install polars")
    polars.read_parquet(f"{store}/*.parquet").write_parquet(out)


@pytest.mark.parametrize("by", [by_pyarrow, by_duckdb, by_polars])
def test_counts_survive_other_programs(
    by: Callable[[Path, Path], None], store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again.parquet"
    by(store, out)
    assert Store(out).info == Store(store).info and Store(store).info.refinement
    assert codes_of(out) == codes_of(store)
    assert describe(str(out))["codes"] == describe(str(store))["codes"]
    assert lint(out)["problems"] == 0
    assert not any(sample.extras for sample in CodeDataset(out, cache=tmp_path / "cache"))


@pytest.mark.parametrize("column", ["code_counts", "extra_codes"])
def test_a_column_that_another_program_dropped_is_named(
    column: str, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "less.parquet"
    pq.write_table(pq.read_table(store).drop_columns([column]).replace_schema_metadata(None), out)
    (found,) = lint(out)["listed"]
    assert f"not the column {column} that belongs" in found["problem"]
    for opened in (
        Store,
        lambda path: describe(str(path)),
        lambda path: CodeDataset(path, cache=tmp_path / "c"),
    ):
        with pytest.raises(CodesError, match=f"not the column {column} that belongs") as error:
            opened(out)
        assert str(error.value).startswith(str(out)) and "\n" not in str(error.value)


def test_a_preview_shows_what_decode_gives(store: Path, tmp_path: Path) -> None:
    model, codes = refined_tokenizer(), codes_of(store)
    assert preview(model, store, tmp_path / "sheet.png", count=1)["shown"] == 1
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert codes[0] is not None and codes[0].counts is not None
    wanted = np.asarray(model.decode(codes[0])[0])
    height, width, _ = wanted.shape
    top, left = (n // 2 - side // 2 for n, side in zip((248, 248), (height, width), strict=True))
    assert np.array_equal(sheet[top : top + height, left : left + width], wanted)
    preview(model, store, tmp_path / "page.html", count=2)
    assert (tmp_path / "page.html").read_text().count("<img") == 2
    with pytest.raises(CodesError, match="no refinement"):
        preview(plain_tokenizer(), store, tmp_path / "other.png")


def test_compressed_they_are_the_same(tmp_path: Path) -> None:
    pytest.importorskip("constriction", reason="compresses codes: pip install 'viq[codec]'")
    saved_pictures(tmp_path, 2, 70)
    model, source = load("viq-transform"), open_source(str(tmp_path))
    encode(model, source, tmp_path / "plain", EncodeOptions(bpp=0.4))
    merge([tmp_path / "plain"], tmp_path / "small", entropy=model.entropy)
    assert codes_of(tmp_path / "small") == codes_of(tmp_path / "plain")
    assert Store(tmp_path / "small").info.entropy == model.entropy.digest
    assert lint(tmp_path / "small")["problems"] == 0
    merge([tmp_path / "small"], tmp_path / "merged")
    assert codes_of(tmp_path / "merged") == codes_of(tmp_path / "plain")
    report = decode_files(model, [tmp_path / "small"], tmp_path / "back")
    assert report.images == 2 and not report.failures
    # A rate is of what is stored, so what compression saves goes to more codes.
    encode(model, source, tmp_path / "aimed", EncodeOptions(bpp=0.4, compress=True))
    pairs = zip(codes_of(tmp_path / "aimed"), codes_of(tmp_path / "plain"), strict=True)
    assert all(a is not None and b is not None and a.nbytes > b.nbytes for a, b in pairs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray, about this machine
def test_ray_writes_the_same_store(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="a cluster: pip install 'viq[ray]'")
    photos = tmp_path / "photos"
    saved_pictures(photos, 2, 70)
    model, options = refined_tokenizer(), EncodeOptions(bpp=0.4, shard_size=1)
    model.save_pretrained(tmp_path / "model")
    inputs, source = [str(photos)], open_source(str(photos))
    encode(model, source, tmp_path / "here", options)
    ray_engine.encode(
        model, str(tmp_path / "model"), inputs, {}, source, tmp_path / "ray", options, actors=1
    )
    found = {path.name: path.read_bytes() for path in (tmp_path / "ray").iterdir()}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert codes_of(tmp_path / "ray") == [
        codes for codes in model.encode(sorted(photos.iterdir()), bpp=0.4)
    ]


def test_columns_join_a_store_with_counts(store: Path, tmp_path: Path) -> None:
    key = next(Store(store).rows()).key
    (tmp_path / "table.jsonl").write_text(f'{{"key": "{key}", "caption": "a"}}\n')
    table = open_source(str(tmp_path / "table.jsonl"), image_column=())
    add_columns(store, table, tmp_path / "joined")
    found = list(Store(tmp_path / "joined").rows())
    assert [row.codes for row in found] == codes_of(store)
    assert [row.extras["caption"] for row in found] == ["a", None]


def test_single_files_with_counts_are_imported(store: Path, tmp_path: Path) -> None:
    wanted = codes_of(store)
    for number, codes in enumerate(wanted):
        assert codes is not None
        (tmp_path / f"{number}.viq").write_bytes(codes.to_bytes())
    info = Store(store).info
    plain = StoreInfo(model=info.model, fingerprint=info.fingerprint, levels=info.levels)
    import_codes([tmp_path], tmp_path / "back", plain)
    assert codes_of(tmp_path / "back") == wanted and Store(tmp_path / "back").info == info
