"""Codes as an object, as bytes, and as Parquet rows."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq.core.codes import Codes
from viq.core.types import CodesError, grid_of
from viq.store.rows import CodesReader, CodesWriter, StoreInfo

INFO = StoreInfo(model="viq-test", fingerprint="00000000000000ab", levels=(8, 8, 8, 5, 5, 5))


def some_codes(height: int, width: int, seed: int = 0, tile: int = 0) -> Codes:
    ids = np.random.default_rng(seed).integers(0, 64000, (*grid_of((height, width)), 4))
    return Codes(ids.astype(np.uint16), (height, width), tile, INFO.fingerprint)


def test_grid_covers_the_image() -> None:
    assert grid_of((1, 1)) == (1, 1)
    assert grid_of((16, 17)) == (1, 2)
    assert grid_of((512, 768)) == (32, 48)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.sampled_from([0, 16, 1024]),
    seed=st.integers(0, 2**31),
)
def test_bytes_round_trip(height: int, width: int, tile: int, seed: int) -> None:
    codes = some_codes(height, width, seed, tile)
    data = codes.to_bytes()
    assert len(data) == codes.nbytes + 28  # two bytes a code, a header below 32 bytes
    assert Codes.from_bytes(data) == codes


def test_layout_of_the_bytes() -> None:
    codes = Codes(np.array([[[1, 2, 256, 63999]]], np.uint16), (10, 12))
    assert codes.to_bytes()[:16] == b"ViQc\x01\x10\x00\x00\x0a\x00\x00\x00\x0c\x00\x00\x00"
    assert codes.to_bytes()[28:] == b"\x01\x00\x02\x00\x00\x01\xff\xf9"


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    good = some_codes(40, 50).to_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CodesError) as error:
        Codes.from_bytes(bytes(bad))
    assert "\n" not in str(error.value)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CodesError):
        Codes.from_bytes(data)


@pytest.mark.parametrize("cut", [0, 3, 27, 28, 100])
def test_cut_and_longer_bytes_are_refused(cut: int) -> None:
    good = some_codes(40, 50).to_bytes()
    with pytest.raises(CodesError):
        Codes.from_bytes(good[:cut])
    with pytest.raises(CodesError, match="appended"):
        Codes.from_bytes(good + b"\0")


def test_inconsistent_codes_are_refused() -> None:
    ids = np.zeros((2, 3, 4), np.uint16)
    with pytest.raises(CodesError, match="uint16, got int64"):
        Codes(ids.astype(np.int64), (32, 48))  # pyright: ignore[reportArgumentType]
    with pytest.raises(CodesError, match=r"\(3, 3, 4\), got \(2, 3, 4\)"):
        Codes(ids, (33, 48))
    with pytest.raises(CodesError):
        Codes(ids, (0, 48))


def test_parquet_round_trip_and_schema(tmp_path: Path) -> None:
    rows = [(f"{i}.jpg", some_codes(10 + i, 300 - i, i, tile=1024 * (i % 2))) for i in range(300)]
    path = tmp_path / "codes.parquet"
    with CodesWriter(path, INFO) as writer:
        for key, codes in rows:
            writer.add(key, codes)
    reader = CodesReader(path)
    assert len(reader) == 300
    assert reader.info == INFO
    assert list(reader) == rows

    table = pq.read_table(path)  # as any other Parquet reader sees it
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "key": "string",
        "image_index": "int32",
        "height": "int32",
        "width": "int32",
        "rows": "int32",
        "cols": "int32",
        "tile": "int32",
        "codes": "list<element: uint16>",
        "viq": "string",
    }
    assert json.loads(table.schema.metadata[b"viq.levels"]) == [8, 8, 8, 5, 5, 5]
    row = table.slice(7, 1).to_pylist()[0]
    assert (row["rows"], row["cols"]) == rows[7][1].grid
    assert row["codes"] == rows[7][1].ids.ravel().tolist()
    assert pq.ParquetFile(path).num_row_groups == 2


def test_nothing_appears_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "codes.parquet"
    with pytest.raises(KeyboardInterrupt), CodesWriter(path, INFO) as writer:
        writer.add("a", some_codes(20, 20))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_codes_of_another_tokenizer_are_not_mixed_in(tmp_path: Path) -> None:
    other = Codes(np.zeros((1, 1, 4), np.uint16), (5, 5), 0, "00000000000000cd")
    with (
        pytest.raises(CodesError, match="00000000000000cd"),
        CodesWriter(tmp_path / "c.parquet", INFO) as writer,
    ):
        writer.add("a", other)


def test_damage_in_a_parquet_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "codes.parquet"
    rows = [(str(i), some_codes(200, 200, i)) for i in range(8)]
    with CodesWriter(path, INFO) as writer:
        for key, codes in rows:
            writer.add(key, codes)
    good, noticed = path.read_bytes(), 0
    places = range(4, len(good), max(1, len(good) // 200))
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        try:  # a byte that no reader looks at may change; the codes may not
            assert list(CodesReader(path)) == rows or CodesReader(path).info != INFO
        except CodesError as error:
            assert "codes.parquet" in str(error)
            noticed += 1
    assert noticed > 0.9 * len(places)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.parquet"
    path.write_bytes(b"hello")
    with pytest.raises(CodesError, match="notes.parquet: not a Parquet file"):
        CodesReader(path)
    with pytest.raises(CodesError, match="no such file"):
        CodesReader(tmp_path / "missing.parquet")
    import pyarrow as pa

    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), sink)
    path.write_bytes(sink.getvalue())
    with pytest.raises(CodesError, match="not of ViQ codes"):
        CodesReader(path)
