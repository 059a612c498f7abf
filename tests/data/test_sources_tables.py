"""Parquet tables and Hugging Face data sets: rows, columns, and cells that are refused."""

import base64
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_rows import MakeTar, bad_row, keys, picture, refused, shade, write_parquet

from viq.data.sources import tables as source_tables
from viq.data.sources.access import ImageText, ImageUrl
from viq.data.sources.base import ImageBytes, ImageFile
from viq.data.sources.open import SourceError, open_source
from viq.jobs.inputs import open_inputs

# Tables


def test_parquet(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "photos.parquet",
        {
            "key": ["a", "b", None],
            "image": [picture(1), picture(2), None],
            "pairs": [[{"prompt": "p", "text": "t"}], [], None],
            "size": [1, 2, 3],
        },
        row_group_size=2,
    )
    source = open_source(path)
    assert keys(source) == ["a", "b", "photos.parquet:2"]
    assert [row.where for row in source] == [f"photos.parquet:{key}" for key in ("a", "b", "2")]
    assert source[0].extras == {"pairs": [{"prompt": "p", "text": "t"}], "size": 1}
    assert [shade(source[1]), shade(source[0])] == [2, 1]
    assert source[2].images == ()


def test_parquet_cells(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    two = {"bytes": picture(2), "path": "x/two.png"}
    cells = {
        "bytes": [picture(2)],
        "struct": [two],
        "path in struct": [{"bytes": None, "path": "a.png"}],
        "path": ["a.png"],
        "URL": ["https://a.b/c.png"],
        "base64": [base64.b64encode(picture(2)).decode()],
        "list of bytes": [[picture(2), picture(1)]],
        "list of structs": [[two, {"bytes": None, "path": "a.png"}]],
        "empty list": pa.array([[]], pa.list_(pa.binary())),
    }
    file, data = ImageFile(tmp_path / "a.png"), ImageBytes(picture(2))
    expected = {
        "bytes": (data,),
        "struct": (data,),
        "path in struct": (file,),
        "path": (file,),
        "URL": (ImageUrl("https://a.b/c.png"),),
        "base64": (ImageText(base64.b64encode(picture(2)).decode()),),
        "list of bytes": (data, ImageBytes(picture(1))),
        "list of structs": (data, file),
        "empty list": (),
    }
    for name, cell in cells.items():
        (row,) = open_source(write_parquet(tmp_path / "t.parquet", {"images": cell}))
        assert row.images == expected[name], name
        assert (row.key, row.where, row.extras) == ("t.parquet:0", "t.parquet:0", {}), name
    path = write_parquet(tmp_path / "t.parquet", {"image": [7], "key": ["k"]})
    bad_row(open_source(path), 0, "t.parquet:k, column image: holds int, not images")


def test_parquet_columns(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "t.parquet",
        {"id": [5, 6], "left": [picture(1)] * 2, "right": [picture(2)] * 2, "name": ["x", "y"]},
    )
    refused(path, "no column image or images; .* id, left, right, name")
    refused(path, "has no column lef, but id", image_column="lef")
    assert keys(open_source(path, image_column="left")) == ["5", "6"]
    source = open_source(path, image_column=["right", "left"], key_column="name")
    assert keys(source) == ["x", "y"]
    assert source[0].extras == {"id": 5}
    assert [shade(source[0], 0), shade(source[0], 1)] == [2, 1]
    (row, _) = open_source(path, image_column="name", key_column="name")
    assert (row.key, row.images) == ("x", (ImageFile(tmp_path / "x"),))
    source = open_source(path, image_column=(), key_column="")
    assert keys(source) == ["t.parquet:0", "t.parquet:1"]
    assert source[0].images == () and len(source[0].extras) == 4


def test_parquet_folder(tmp_path: Path) -> None:
    for number, folder in enumerate(("b", "a", ".hidden")):
        (tmp_path / folder).mkdir()
        rows = {"image": [picture(10 * number + n) for n in range(3)]}
        write_parquet(tmp_path / folder / f"{number}.parquet", rows, row_group_size=2)
    source = open_source(tmp_path)
    assert keys(source) == [f"{file}.parquet:{n}" for file in (1, 0) for n in range(3)]
    assert [shade(row) for row in source] == [10, 11, 12, 0, 1, 2]


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 and no more")
    refused(path, "t.parquet: cannot be read as Parquet")
    source = open_source(write_parquet(path, {"image": [picture(1)] * 9}, compression="zstd"))
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    bad_row(source, 0, "t.parquet:0: row group 0 cannot be read")
    refused(write_parquet(path, {"image": pa.array([], pa.binary())}), "is empty")


def test_a_damaged_table_among_many_is_one_row(tmp_path: Path) -> None:
    for name in ("a", "c"):
        write_parquet(tmp_path / f"{name}.parquet", {"image": [picture(1)] * 2})
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    source = open_source(tmp_path)
    named = ["a.parquet:0", "a.parquet:1", "b.parquet", "c.parquet:0", "c.parquet:1"]
    assert list(source.keys()) == [source.key(n) for n in range(5)] == named
    bad_row(source, 2, "b.parquet: cannot be read as Parquet")
    assert [shade(source[n]) for n in (0, 1, 3, 4)] == [1] * 4
    (tmp_path / "d.json").write_text('[{"text": 1}, {"te')
    (tmp_path / "e.json").write_text('[{"text": 1}]')
    source = open_source(tmp_path / "*.json")
    assert list(source.keys()) == ["d.json", "e.json#0"]
    bad_row(source, 0, "^d.json: the list of records does not end")


def test_inputs_given_one_by_one_are_many_too(tmp_path: Path, make_tar: MakeTar) -> None:
    make_tar("a.tar", {"a.png": picture(1)})
    (tmp_path / "b.tar").write_bytes(b"no tar" * 200)
    source = open_inputs([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])
    assert list(source.keys()) == ["a/a", "b.tar"]
    with pytest.raises(SourceError, match="is no tar file"):
        open_inputs([str(tmp_path / "b.tar")])


def test_failing_rows_of_a_group_do_not_read_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"key": list("abcdefghi"), "image": [picture(1)] * 9}
    path = write_parquet(tmp_path / "t.parquet", table, compression="zstd")
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(1).dictionary_page_offset or 4
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)
    source = source_tables.ParquetSource([path], cache=source_tables.Cache(10**6))
    loads: list[Any] = []
    read = source_tables._read_group
    monkeypatch.setattr(source_tables, "_read_group", lambda *a: (loads.append(a[2]), read(*a))[1])
    assert [source.key(n) for n in range(9)] == list("abcdefghi")
    for number in range(9):
        bad_row(source, number, f"^t.parquet:{number}: row group 0 cannot be read")
    assert len(loads) == 2  # the keys, and all


def test_columns_that_ride_along_can_be_chosen(tmp_path: Path, make_tar: MakeTar) -> None:
    path = write_parquet(
        tmp_path / "t.parquet", {"id": [1], "image": [picture(1)], "a": [1], "b": [2], "c": [3]}
    )
    assert open_source(path)[0].extras == {"a": 1, "b": 2, "c": 3}
    assert open_source(path, columns=["b"])[0].extras == {"b": 2}
    assert open_source(path, columns=[])[0].extras == {}
    row = open_source(path, drop=["b"])[0]
    assert row.extras == {"a": 1, "c": 3} and shade(row) == 1 and row.key == "1"
    refused(path, "has no column d", drop=["d"])
    refused(path, "give a list of names", columns="b")
    (tmp_path / "d.jsonl").write_text('{"text": 1, "x": 2}')
    assert open_source(tmp_path / "d.jsonl", drop=["x"])[0].extras == {"text": 1}
    tar = make_tar("t.tar", {"a.png": picture(1), "a.txt": b"c", "a.json": b'{"x": 1}'})
    assert open_source(tar, columns=["caption"])[0].extras == {"caption": "c"}


def test_columns_of_one_name_are_left_out_and_counted(tmp_path: Path) -> None:
    columns = [pa.array([picture(1)]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.table(columns, names=["image", "a", "a"]), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert source[0].extras == {} and shade(source[0]) == 1
    assert source.leftovers() == {"columns that share a name": 2}
    refused(tmp_path / "t.parquet", "has two columns a", key_column="a")


def test_row_groups_that_unpack_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_tables, "_GROUP_LEAST", 10_000)
    plain = {"image": [bytes(20_000)]}
    bomb = write_parquet(
        tmp_path / "zeros.parquet", plain, compression="zstd", use_dictionary=False
    )
    bad_row(open_source(bomb), 0, "^zeros.parquet:0: its row group unpacks to 20,0.* limit here")
    # One cell that is repeated: the file's own account says nothing of it.
    again = write_parquet(tmp_path / "again.parquet", {"image": [bytes(5000)] * 9})
    rows = pq.read_metadata(again).row_group(0).column(0)
    assert rows.total_uncompressed_size < 6000
    bad_row(open_source(again), 0, "^again.parquet:0: its row group unpacks to .* limit here")


@pytest.mark.parametrize("limit", [9000, 10])  # bytes: two row groups of 4 KB, and less than one
def test_row_groups_are_read_once_in_order_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    loads: list[int] = []
    kept: list[int] = []
    cache = source_tables.Cache(limit)
    read = source_tables.ParquetSource._read_group
    monkeypatch.setattr(
        source_tables.ParquetSource,
        "_read_group",
        lambda self, place: (loads.append(place), read(self, place))[1],
    )
    for half in range(2):
        rows = {"image": [bytes([20 * half + n]) * 1000 for n in range(20)]}
        path = write_parquet(tmp_path / "t.parquet", rows, row_group_size=4)
        for number, row in enumerate(source_tables.ParquetSource([path], cache=cache)):
            assert row.images[0].read() == bytes([20 * half + number]) * 1000
            kept.append(cache.nbytes)
    assert loads == [0, 1, 2, 3, 4] * 2
    assert 4000 < max(kept) <= max(limit, 4100)


# Hugging Face datasets


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="data sets of Hugging Face need their library")


def a_dataset(datasets: Any, shades: list[int]) -> Any:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = [
        {"image": {"bytes": picture(n), "path": None}, "caption": f"c{n}", "label": n % 2}
        for n in shades
    ]
    return datasets.Dataset.from_list(rows, features=features)


def test_cells_that_python_cannot_hold_cost_no_picture(tmp_path: Path, datasets: Any) -> None:
    bad = pa.array([b"a", b"\xff", b"c"], pa.binary())
    names = pa.Array.from_buffers(pa.string(), 3, bad.buffers())  # one is no UTF-8
    days = pa.array([0, 1, 253402300800000], pa.timestamp("ms"))  # one is beyond the calendar
    table = pa.table(
        {
            "image": [picture(i) for i in range(3)],
            "key": names,
            "name": names,
            "day": days,
            "time": pa.array([1700000000123456789] * 3, pa.timestamp("ns")),
            "times": pa.array([[1700000000123456789]] * 3, pa.list_(pa.timestamp("ns"))),
            "map": pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    for source, name in (
        (open_source(tmp_path / "t.parquet"), "t.parquet"),
        (open_source(datasets.Dataset(table.drop(["map"]))), "dataset"),
    ):
        assert list(source.keys()) == ["a", f"{name}:1", "c"]
        assert source.key(1) == f"{name}:1"
        assert [shade(row) for row in source] == [0, 1, 2]
        assert [row.key for row in source] == list(source.keys())
        assert source[1].extras["name"] == "\\xff"
        assert source[2].extras["day"] == "10000-01-01 00:00:00.000"
        for row in source:
            assert row.extras["time"] == "2023-11-14 22:13:20.123456789"
            assert row.extras["times"] == ["2023-11-14 22:13:20.123456789"]
            assert row.extras.get("map", [["a", 1]]) == [["a", 1]]


def test_dataset_object(datasets: Any) -> None:
    source = open_source(a_dataset(datasets, [4, 5, 6]).select([2, 0]))
    assert keys(source) == ["dataset:0", "dataset:1"]
    assert source[0].images == (ImageBytes(picture(6)),)
    assert source[0].extras == {"caption": "c6", "label": 0}
    captions = open_source(a_dataset(datasets, [4, 5]), key_column="caption")
    assert keys(captions) == ["c4", "c5"]
    assert captions[1].where == "dataset:c5"


def test_what_cannot_be_indexed_is_refused(datasets: Any) -> None:
    streamed = a_dataset(datasets, [4, 5]).to_iterable_dataset()
    refused(streamed, "a IterableDataset has no rows by number; .* without streaming")
    refused({"train": 1}, "a int has no rows by number")


def test_dataset_with_lists_of_images(datasets: Any) -> None:
    features = datasets.Features({"images": datasets.Sequence(datasets.Image())})
    rows = [
        {"images": [{"bytes": picture(n), "path": None} for n in range(count)]} for count in (2, 0)
    ]
    source = open_source(datasets.Dataset.from_list(rows, features=features))
    assert source[0].images == (ImageBytes(picture(0)), ImageBytes(picture(1)))
    assert source[1].images == ()


def test_saved_dataset(datasets: Any, tmp_path: Path) -> None:
    a_dataset(datasets, [4, 5]).save_to_disk(tmp_path / "one")
    source = open_source(tmp_path / "one")
    assert keys(source) == ["one:0", "one:1"]
    assert shade(source[1]) == 5
    refused(tmp_path / "one", "has no splits", split="train")
    both = datasets.DatasetDict(train=a_dataset(datasets, [1]), test=a_dataset(datasets, [2, 3]))
    both.save_to_disk(tmp_path / "both")
    assert [shade(row) for row in open_source(tmp_path / "both", split="test")] == [2, 3]
    assert len(open_source(both, split="train")) == 1
    refused(tmp_path / "both", "give split, one of train, test")
    refused(tmp_path / "both", "has no split val, one of train, test", split="val")
    (tmp_path / "one" / "state.json").write_text("{")
    refused(tmp_path / "one", "cannot be read as a saved data set")


def test_hub(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, subset: str | None) -> Any:
        asked.append((name, subset))
        if name == "a/gone":
            raise ConnectionError("offline\nsorry")
        return datasets.DatasetDict(train=a_dataset(datasets, [1, 2]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert keys(open_source("hf:a/b")) == ["hf:a/b:0", "hf:a/b:1"]
    assert shade(open_source("hf:a/b:small", split="train")[1]) == 2
    assert asked == [("a/b", None), ("a/b", "small")]
    refused("hf:a/gone", r"hf:a/gone: cannot be loaded \(offline sorry\)")


def test_datasets_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:a/b", r"hf:a/b needs datasets: pip install 'viq\[data\]'")
