"""Small files that ask for gigabytes, and rows that no writer writes: one line, little memory."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_compress import MODEL, STAMP, codes_of

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel
from viq.core.codes import Codes
from viq.core.types import MAX_PIXELS, CodesError, ViqError, grid_of
from viq.store import bounds
from viq.store.dataset import CodeDataset
from viq.store.folder import Store
from viq.store.rows import CodesReader, StoreInfo, schema

INFO = StoreInfo(model="viq-test", fingerprint=STAMP, levels=(5, 4, 3))
Columns = dict[str, Any]


def columns(sizes: list[tuple[int, int]], ids: Any = None) -> Columns:
    """Of rows of these sizes, all codes 0."""
    grids = [grid_of(size) for size in sizes]
    ends = np.cumsum([0, *(4 * rows * cols for rows, cols in grids)]).astype(np.int32)
    zeros = pa.array(np.zeros(ends[-1], np.uint16)) if ids is None else ids
    height, width = np.array(sizes, np.int32).reshape(-1, 2).T
    rows, cols = np.array(grids, np.int32).reshape(-1, 2).T
    none = np.zeros(len(sizes), np.int32)
    return {
        "key": [f"k{i}" for i in range(len(sizes))], "image_index": none, "height": height,
        "width": width, "rows": rows, "cols": cols, "tile": none,
        "codes": pa.ListArray.from_arrays(pa.array(ends), zeros),
    }  # fmt: skip


def write(path: Path, values: Columns, info: StoreInfo = INFO, **options: Any) -> Path:
    """A file of another writer: of our schema, without our sums."""
    wanted = schema(info)
    arrays = [pa.array(v) if isinstance(v, np.ndarray) else v for v in values.values()]
    more = [pa.field(n, pa.array(v).type) for n, v in values.items() if n not in wanted.names]
    table = pa.table(arrays, schema=pa.schema([*wanted, *more], metadata=wanted.metadata))
    pq.write_table(table, path, compression="zstd", **options)
    return path


def zeros(path: Path) -> Path:
    return write(path, columns([(16, 16 * 10_000_000)]))


def payload(path: Path) -> Path:
    side = 7000
    values = columns([(0, 0)]) | {
        "height": np.array([16 * side], "i4"), "width": np.array([16 * side], "i4"),
        "codes": pa.array([bytes(side * side // 256 + 8)], pa.binary()),
    }  # fmt: skip
    return write(path, values, replace(INFO, entropy=MODEL.digest))


def many(path: Path) -> Path:
    """Each image is as large as may be; in few bytes, as they are all the same."""
    part = columns([(10_000, 19_000)] * 10)
    table = pa.table([pa.array(v) for v in part.values()], schema=schema(INFO))
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(table)
    return path


def texts(path: Path) -> Path:
    """One text of 20 MB, which all rows mean."""
    meant = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), ["x" * 20_000_000])
    values = columns([(16, 16)] * 60) | {"key": meant}
    table = pa.table([pa.array(v) for v in values.values()], names=list(values))
    table = table.replace_schema_metadata(schema(INFO).metadata)
    pq.write_table(
        table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30
    )
    return path


def rows(path: Path) -> Path:
    """More rows than their keys could be held in memory."""
    count = 20_000_000
    none = pa.array(np.zeros(count, np.int32))
    empty = pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], "u2"))
    names = ("image_index", "height", "width", "rows", "cols", "tile")
    keys = pa.DictionaryArray.from_arrays(none, [""]).cast(pa.string())
    return write(path, {"key": keys, **dict.fromkeys(names, none), "codes": empty})


READ = """
import re, sys
from pathlib import Path
from viq.store.folder import Store
from viq.types import ViqError
try:
    print(sum(1 for _ in Store(sys.argv[1]).rows()), "rows")
except ViqError as error:
    print(error)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("make", [zeros, payload, many, texts, rows])
def test_small_files_that_ask_for_gigabytes(make: Callable[[Path], Path], tmp_path: Path) -> None:
    pytest.importorskip("constriction")
    MODEL.save_beside(tmp_path)
    path = make(tmp_path / "codes.parquet")
    assert path.stat().st_size < 1_000_000
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line, megabytes = done.stdout.splitlines()
    assert line.startswith(str(path)) and len(line) < 400
    assert int(megabytes) < 600


def test_images_of_all_pixels_there_may_be(tmp_path: Path) -> None:
    path = write(tmp_path / "codes.parquet", columns([(10_000, MAX_PIXELS // 10_000)]))
    (row,) = CodesReader(path).rows()
    assert row.codes and row.codes.size == (10_000, 20_000)
    assert Codes.from_bytes(row.codes.to_bytes()) == row.codes


def test_single_images_of_more_pixels() -> None:
    wide = Codes(np.zeros((1, 1_000_000, 4), np.uint16), (16, 16_000_000))
    with pytest.raises(CodesError, match="decode_limit"):
        Codes.from_bytes(wide.to_bytes())
    assert Codes.from_bytes(wide.to_bytes(), max_pixels=10**9) == wide
    low = Codes(np.zeros((1, 2_000_000, 4), np.uint16), (1, 32_000_000))
    with pytest.raises(CodesError, match="pixels"):  # few, but its patches have 512 million
        Codes.from_bytes(low.to_bytes())


SIZES = [(20, 30), (0, 0), (16, 16), (300, 40)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"height": [20, 0, -16, 300]}, "takes"),
        ({"height": [20, 5, 16, 300]}, "takes"),
        ({"width": [30, 0, 2**31 - 1, 40]}, "takes"),
        ({"rows": [2, 0, 2, 19]}, "grid"),
        ({"cols": [2, 0, -1, 3]}, "grid"),
        ({"image_index": [1, 0, 0, 0]}, "image 1 of its sample"),
        ({"image_index": [0, 2, 0, 0]}, "image 2 of its sample"),
        ({"image_index": [0, -1, 0, 0]}, "image -1 of its sample"),
        ({"tile": [0, 0, -16, 0]}, "tiles of -16"),
        ({"tile": [0, 0, 7, 0]}, "tiles of 7"),
        ({"tile": [0, 0, 1 << 20, 0]}, "tiles of 1048576"),
        ({"height": pa.array([20, 0, None, 300], pa.int32())}, "missing values"),
        ({"key": pa.array(["a", None, "b", "c"])}, "missing values"),
        ({"codes": None}, "missing values"),
    ],
)
def test_rows_that_no_writer_writes(tmp_path: Path, change: Columns, problem: str) -> None:
    values = columns(SIZES)
    if "codes" in change:
        change = {"codes": pa.array([[0] * 16, None, [0] * 4, [0] * 228], pa.list_(pa.uint16()))}
    wanted = [field.with_nullable(True) for field in schema(INFO)]
    arrays = [
        pa.array(value, field.type) if isinstance(value, (list, np.ndarray)) else value
        for field, value in zip(wanted, (values | change).values(), strict=True)
    ]
    table = pa.table(arrays, schema=pa.schema(wanted, metadata=schema(INFO).metadata))
    path = tmp_path / "codes.parquet"
    pq.write_table(table, path)
    for read in (
        lambda: list(Store(path).rows()),
        lambda: list(CodeDataset(path, cache=tmp_path / "cache")),
    ):
        with pytest.raises(CodesError, match=problem) as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("ids", [[60] * 4, [None, 1, 1, 1], [65535] * 4])
def test_codes_that_no_writer_writes(tmp_path: Path, ids: list[int]) -> None:
    values = columns([(16, 16)], pa.array(ids, pa.uint16()))
    path = write(tmp_path / "codes.parquet", values)
    with pytest.raises(CodesError, match="code"):
        CodeDataset(path, cache=tmp_path / "cache")[0]


def test_keys_that_are_no_text(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], "i4")), pa.py_buffer(b"\xff\xfe")]
    )
    path = write(tmp_path / "codes.parquet", columns([(16, 16)]) | {"key": bad})
    with pytest.raises(CodesError, match=r"codes\.parquet: damaged"):
        CodeDataset(path, cache=tmp_path / "cache")[0]


def test_good_files_of_other_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "_AT_ONCE", 0)  # look at the sizes first, as for many codes
    values = columns(SIZES) | {"caption": pa.array(list("abcd"))}
    path = write(tmp_path / "codes.parquet", values, row_group_size=2)
    data = CodeDataset(path, cache=tmp_path / "cache")
    assert [len(sample.codes) for sample in data] == [1, 0, 1, 1]
    assert [sample.extras["caption"] for sample in data] == list("abcd")
    few = {name: values[name] for name in ("key", "height", "width", "codes")}
    table = pa.table(list(few.values()), names=list(few))
    table = table.cast(pa.schema([schema(INFO).field(n) for n in few])).replace_schema_metadata(
        schema(INFO).metadata
    )
    pq.write_table(table, path)
    assert [s.patches for s in CodeDataset(path, cache=tmp_path / "cache")] == [4, 0, 1, 57]


@pytest.mark.parametrize(
    ("name", "value"),
    [("viq.fingerprint", "../../x"), ("viq.entropy", "../../x"), ("viq.levels", "[" * 100_000),
     ("viq.levels", "[1e99]"), ("viq.levels", "[65536, 65536]"), ("viq.levels", '"8"')],
)  # fmt: skip
def test_notes_of_a_file(tmp_path: Path, name: str, value: str) -> None:
    table = pa.table([pa.array(v) for v in columns([(16, 16)]).values()], schema=schema(INFO))
    table = table.replace_schema_metadata({**table.schema.metadata, name.encode(): value})
    pq.write_table(table, tmp_path / "codes.parquet")
    with pytest.raises(CodesError, match=r"codes\.parquet") as error:
        CodesReader(tmp_path / "codes.parquet")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "about",
    [{"levels": "[" * 100_000}, {"levels": "[]"}, {"levels": "[1e12]"}, {"levels": "7"},
     {"levels": "[999999999999]"}, {"fingerprint": "../x"}, {"format": "9"}],
)  # fmt: skip
def test_entropy_models_that_are_none(tmp_path: Path, about: dict[str, str]) -> None:
    from safetensors.numpy import save_file

    good = {"format": "1", "levels": "[5, 4, 3]", "fingerprint": STAMP, "stamp": MODEL.digest}
    save_file(MODEL.tensors, tmp_path / ENTROPY_FILE, metadata=good)
    assert EntropyModel.load(tmp_path).digest == MODEL.digest
    save_file(MODEL.tensors, tmp_path / ENTROPY_FILE, metadata=good | about)
    with pytest.raises(ViqError, match=ENTROPY_FILE) as error:
        EntropyModel.load(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_payloads_of_images_that_are_too_large() -> None:
    pytest.importorskip("constriction")
    (good,) = MODEL.compress([codes_of((20, 30))])
    with pytest.raises(CodesError, match="pixels"):
        MODEL.decompress([good + bytes(10**6)], [(16_000, 16_000)], [0])
