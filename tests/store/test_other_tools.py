"""Stores that others read, filter and rewrite: pyarrow, pandas, DuckDB, Polars, datasets, Lance."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from code_stores import opened
from drawn_source import SyntheticSource

from viq.core.types import CodesError
from viq.jobs.encode import encode
from viq.jobs.info import describe
from viq.jobs.pipeline import EncodeOptions
from viq.jobs.store.lint import lint
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.columns import MAKER
from viq.store.folder import CARD, Store
from viq.store.rows import CodeRow, CodesReader

pc: Any = pyarrow.compute  # makes its functions when it is imported
TEXTS = ["a", "b", None, "d", "e", "f"]
WIDE = "sample/0", "sample/3"  # what all filters below keep


@pytest.fixture(scope="module")
def made(tokenizer: VisualTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "codes"
    odd = [1, "x", None, 3.5, 5, 6]  # of no one type, so it goes to `extras`
    source = SyntheticSource([1] * len(TEXTS), text=TEXTS, odd=odd)
    encode(tokenizer, source, out, EncodeOptions(shard_size=2))
    return out


def kept(made: Path) -> list[CodeRow]:
    return [row for row in Store(made).rows() if row.key in WIDE]


def by_pyarrow(made: Path, out: Path) -> None:
    table = pq.read_table(made)
    pq.write_table(table.filter(pc.is_in(table["key"], pa.array(WIDE))), out)


def by_pyarrow_as_we_do(made: Path, out: Path) -> None:
    """With our compression and our metadata, of which the sums no longer hold."""
    table = pq.read_table(made)
    table = table.filter(pc.is_in(table["key"], pa.array(WIDE)))
    pq.write_table(table, out, compression="zstd")


def by_pandas(made: Path, out: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(made)
    frame[frame.key.isin(WIDE)].to_parquet(out)


def by_duckdb(made: Path, out: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="reads stores by SQL: pip install duckdb")
    rows = f"SELECT * FROM '{made}/*.parquet' WHERE key IN {WIDE} ORDER BY key"
    duckdb.sql(f"COPY ({rows}) TO '{out}'")


def by_polars(made: Path, out: Path) -> None:
    polars = pytest.importorskip("polars", reason="reads stores as frames: pip install polars")
    frame = polars.scan_parquet(f"{made}/*.parquet").filter(polars.col("key").is_in(WIDE))
    frame.sink_parquet(out)


def by_datasets(made: Path, out: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cache = str(out.parent / "hf")
    found = datasets.load_dataset(str(made), split="train", cache_dir=cache)
    found.filter(lambda row: row["key"] in WIDE).to_parquet(str(out))


def by_lance(made: Path, out: Path) -> None:
    lance = pytest.importorskip("lance", reason="another columnar format: pip install pylance")
    lance.write_dataset(pq.read_table(made), str(out.parent / "codes.lance"))
    data = lance.dataset(str(out.parent / "codes.lance"))
    pq.write_table(data.to_table(filter=f"key IN {WIDE}"), out)


TOOLS = [by_pyarrow, by_pyarrow_as_we_do, by_pandas, by_duckdb, by_polars, by_datasets, by_lance]


@pytest.mark.parametrize("by", TOOLS)
def test_a_filtered_store_is_read_with_what_it_says(
    by: Callable[[Path, Path], None], made: Path, tmp_path: Path
) -> None:
    by(made, tmp_path / "few.parquet")
    store = Store(tmp_path / "few.parquet")
    assert store.info == Store(made).info
    wanted = kept(made)
    assert [(r.key, r.codes, r.extras["text"]) for r in store.rows()] == [
        (r.key, r.codes, r.extras["text"]) for r in wanted
    ]
    assert [r.extras.get("odd") for r in store.rows()] == [1, 3.5]
    samples = list(opened(tmp_path / "few.parquet"))
    assert [sample.codes for sample in samples] == [(row.codes,) for row in wanted]
    assert lint(tmp_path / "few.parquet")["problems"] == 0


def test_a_folder_that_duckdb_wrote_is_a_store(made: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="reads stores by SQL: pip install duckdb")
    out = tmp_path / "parts.v2"
    out.mkdir()
    for number, key in enumerate(WIDE):
        rows = f"SELECT * FROM '{made}/*.parquet' WHERE key = '{key}'"
        duckdb.sql(f"COPY ({rows}) TO '{out}/data_{number}.parquet'")
    assert [(r.key, r.codes) for r in Store(out).rows()] == [(r.key, r.codes) for r in kept(made)]
    assert [sample.key for sample in opened(out)] == list(WIDE)
    assert describe(str(out))["fingerprint"] == Store(made).info.fingerprint


def test_a_folder_that_spark_wrote_is_a_store(made: Path, tmp_path: Path) -> None:
    sql: Any = pytest.importorskip("pyspark.sql", reason="reads stores: pip install pyspark")
    if not shutil.which("java"):
        pytest.skip("Spark needs java")
    settings = {"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1",
                "spark.driver.host": "127.0.0.1"}  # fmt: skip
    spark = sql.SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    out = tmp_path / "by spark"
    try:
        rows = spark.read.parquet(f"{made}/*.parquet")
        rows.filter(rows.key.isin(*WIDE)).write.parquet(str(out))
    finally:
        spark.stop()
    wanted = [(r.key, r.codes, r.extras) for r in kept(made)]
    assert [(r.key, r.codes, r.extras) for r in Store(out).rows()] == wanted
    assert describe(str(out))["fingerprint"] == Store(made).info.fingerprint


def test_folders_are_tables(made: Path, tmp_path: Path) -> None:
    """As each program takes one; codes are uint16 wherever it has that type."""
    rows = len(TEXTS)
    assert pq.read_table(made).num_rows == rows
    datasets = pytest.importorskip("datasets")
    assert (made / CARD).is_file()
    found = datasets.load_dataset(str(made), split="train", cache_dir=str(tmp_path / "hf"))
    assert found.num_rows == rows and found.features["codes"].feature.dtype == "uint16"
    duckdb = pytest.importorskip("duckdb", reason="reads stores by SQL: pip install duckdb")
    kind = duckdb.sql(f"SELECT DISTINCT typeof(codes) FROM '{made}/*.parquet'").fetchall()
    assert kind == [("USMALLINT[]",)]
    polars = pytest.importorskip("polars", reason="reads stores as frames: pip install polars")
    frame = polars.scan_parquet(made, hidden_file_prefix=["_", "."]).collect()
    assert len(frame) == rows and frame["codes"].dtype == polars.List(polars.UInt16)


def rewritten(made: Path, out: Path, column: str, values: pa.Array) -> Path:
    table = pq.read_table(made / "part-00000.parquet").replace_schema_metadata(None)
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, column, values), out)
    return out


def test_types_without_unsigned_numbers(made: Path, tmp_path: Path) -> None:
    """As Spark has them."""
    table = pq.read_table(made / "part-00000.parquet")
    wide = pa.array(table["codes"].to_pylist(), pa.list_(pa.int32()))
    path = rewritten(made, tmp_path / "spark.parquet", "codes", wide)
    assert [codes for _, codes in Store(path)] == [
        codes for _, codes in CodesReader(made / "part-00000.parquet")
    ]
    wide = pa.array([[-1, *row[1:]] for row in wide.to_pylist()], pa.list_(pa.int32()))
    with pytest.raises(CodesError, match="out of bounds|not in range"):
        list(Store(rewritten(made, tmp_path / "bad.parquet", "codes", wide)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "does not say which tokenizer"),
        ('{"fingerprint": "../../etc"}', "is no fingerprint"),
        ('{"fingerprint": "00000000000000ab", "levels": [65536, 65536]}', "levels"),
        ('{"fingerprint": "00000000000000ab", "code": "x"}', "does not say which tokenizer"),
        ("[" * 100_000, "does not say which tokenizer"),
        (["a", "b"], "several tokenizers"),
    ],
)
def test_what_rows_say_is_not_believed_unseen(
    values: Any, words: str, made: Path, tmp_path: Path
) -> None:
    texts = values if isinstance(values, list) else [values] * 2
    path = rewritten(made, tmp_path / "x.parquet", MAKER, pa.array(texts, pa.string()))
    with pytest.raises(CodesError, match=words) as error:
        Store(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_rows_of_two_tokenizers_are_refused_though_the_metadata_name_one(
    made: Path, tmp_path: Path
) -> None:
    table = pq.read_table(made / "part-00000.parquet")
    said = json.loads(table[MAKER][0].as_py()) | {"fingerprint": "00000000000000ab"}
    column = pa.array([json.dumps(said)] * len(table), pa.string())
    other = table.set_column(table.schema.get_field_index(MAKER), MAKER, column)
    both = pa.concat_tables([table, other.cast(table.schema)])
    assert b"viq.fingerprint" in (both.schema.metadata or {})
    pq.write_table(both, tmp_path / "both.parquet")
    with pytest.raises(CodesError, match="several tokenizers"):
        Store(tmp_path / "both.parquet")


def test_files_without_the_column_are_read_as_before(made: Path, tmp_path: Path) -> None:
    """Those of releases that did not write it, and a column of that name of the user's own."""
    table = pq.read_table(made / "part-00000.parquet")
    pq.write_table(table.drop_columns([MAKER]), tmp_path / "old.parquet")
    assert Store(tmp_path / "old.parquet").info == Store(made).info
    mine = pa.array(["x"] * len(table))
    named = table.drop_columns([MAKER]).append_column(MAKER, mine)
    with pq.ParquetWriter(tmp_path / "own.parquet", named.schema, compression="zstd") as writer:
        writer.write_table(named)
    assert [row.extras[MAKER] for row in CodesReader(tmp_path / "own.parquet").rows()] == ["x", "x"]


def test_the_column_costs_next_to_nothing(made: Path, tmp_path: Path) -> None:
    about = pq.ParquetFile(made / "part-00000.parquet").metadata.row_group(0)
    sizes = {about.column(i).path_in_schema: about.column(i).total_compressed_size
             for i in range(about.num_columns)}  # fmt: skip
    assert sizes[MAKER] < 400
