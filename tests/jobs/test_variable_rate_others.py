"""Stores with counts that others rewrite, that get columns, or that come from single files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from refined import pictures, refined_tokenizer

from viq.core.codes import Codes
from viq.data.sources.open import open_source
from viq.jobs.encode import encode
from viq.jobs.info import describe
from viq.jobs.pipeline import EncodeOptions
from viq.jobs.store.add_columns import add_columns
from viq.jobs.store.import_codes import import_codes
from viq.jobs.store.lint import lint
from viq.store.dataset import CodeDataset
from viq.store.folder import Store, StoreInfo


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(pictures(2, 70)):
        picture.save(folder / f"{number}.png")
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
