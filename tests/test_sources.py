"""Every kind of input: what becomes key, images, extras and place; what is refused, and how."""

import base64
import io
import json
import sys
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from viq.data import source_tables
from viq.data.access import Access, ImageText, ImageUrl
from viq.data.source_base import ImageBytes, ImageFile, ImageRange
from viq.data.sources import Row, Source, SourceError, concatenate, open_source
from viq.image import ImageError

MakeTar = Callable[..., Path]


def picture(shade: int) -> bytes:
    """A PNG of one grey pixel, unlike that of any other shade."""
    stream = io.BytesIO()
    Image.new("L", (1, 1), shade).save(stream, "PNG")
    return stream.getvalue()


def shade(row: Row, index: int = 0) -> int:
    return row.open(index).tobytes()[0]


def keys(source: Source) -> list[str]:
    """The keys, which `keys()` and the rows must agree on."""
    found = [row.key for row in source]
    assert list(source.keys()) == found
    assert len(source) == len(found) == len(set(found))
    return found


def refused(spec: Any, reason: str, **options: Any) -> None:
    with pytest.raises(SourceError, match=reason) as error:
        open_source(spec, **options)
    assert "\n" not in str(error.value)


def bad_row(source: Source, index: int, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as error:
        source[index]
    assert "\n" not in str(error.value)


# Rows and sources


def test_a_source_is_a_sequence(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(picture(0))
    source = open_source(tmp_path)
    assert source[-1] == source[2]
    assert [row.key for row in source] == [source[i].key for i in range(3)]
    for index in (3, -4):
        with pytest.raises(IndexError):
            source[index]


def test_an_image_that_cannot_be_opened_names_its_row(tmp_path: Path) -> None:
    def message(*images: Any, index: int = 0) -> str:
        with pytest.raises(ImageError) as error:
            Row(key="k", images=images, where="data.jsonl:12").open(index)
        return str(error.value)

    assert message() == "data.jsonl:12: has 0 images, none at 0"
    assert message(ImageBytes(b"")).startswith("data.jsonl:12: is empty")
    assert message(ImageBytes(b""), ImageBytes(b""), index=1).startswith(
        "data.jsonl:12, image 1: is"
    )
    gone = tmp_path / "gone"
    assert message(ImageFile(gone)) == f"data.jsonl:12: {gone}: does not exist; check the path"
    assert message(ImageRange(gone, 0, 1)).startswith(f"data.jsonl:12: {gone}: No such file")
    gone.write_bytes(b"12345")
    assert f"{gone}: ends before byte 6" in message(ImageRange(gone, 4, 2))


# Files and lists


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.png", "deep/er/c.PNG")):
        (tmp_path / name).write_bytes(picture(number))
    (tmp_path / "notes.md").write_text("no picture")
    source = open_source(tmp_path)
    assert keys(source) == [f"{tmp_path}/{name}" for name in ("a.png", "b.png", "deep/er/c.PNG")]
    assert [shade(row) for row in source] == [1, 0, 2]
    assert source[0].where == str(tmp_path / "a.png")
    assert source[0].extras == {}
    assert keys(open_source(str(tmp_path / "b.png"))) == [f"{tmp_path}/b.png"]


def test_list_of_paths(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.png").write_bytes(picture(1))
    (tmp_path / "ü.png").write_bytes(picture(2))
    text = f"# mine\r\nin/a b.png\r\n\r\n{tmp_path}/ü.png\nin/a b.png\ngone.png"
    (tmp_path / "list.txt").write_text(text)
    source = open_source(tmp_path / "list.txt")
    assert keys(source) == ["in/a b.png", f"{tmp_path}/ü.png", "gone.png"]
    assert [row.where for row in source] == ["list.txt:2", "list.txt:4", "list.txt:6"]
    assert [shade(source[0]), shade(source[1])] == [1, 2]
    with pytest.raises(ImageError, match=r"^list.txt:6: .*gone.png: does not exist"):
        source[2].open()


def test_byte_order_mark_is_no_part_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\n")
    assert keys(open_source(tmp_path / "list.txt")) == ["a.png"]


def test_urls(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="URLs are read through fsspec")
    fsspec.filesystem("memory").pipe("/viq-test/a.png", picture(3))
    (tmp_path / "list.txt").write_text("memory://viq-test/a.png\nmemory://viq-test/gone.png\n")
    access = Access(protocols=("memory",))
    source = open_source(tmp_path / "list.txt", access=access)
    assert keys(source) == ["memory://viq-test/a.png", "memory://viq-test/gone.png"]
    assert shade(source[0]) == 3
    with pytest.raises(
        ImageError, match=r"^list.txt:2: memory://viq-test/gone.png: does not exist"
    ):
        source[1].open()
    assert shade(open_source("memory://viq-test/a.png")[0]) == 3
    refused("memory://viq-test/a.tar", "only images are read from URLs")
    refused("nonsense://a.png", "nonsense")


def test_urls_without_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    (tmp_path / "list.txt").write_text("https://a.png\n")
    refused(tmp_path / "list.txt", r"needs fsspec; run: pip install 'viq\[data\]'")
    (tmp_path / "list.txt").write_text("a.png\n")
    assert len(open_source(tmp_path / "list.txt")) == 1


# Tar


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    def make(name: str, members: dict[str, bytes], **options: Any) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w", **options) as tar:
            for member, data in members.items():
                header = tarfile.TarInfo(member)
                header.size = len(data)
                if member.endswith("/"):
                    header.type = tarfile.DIRTYPE
                tar.addfile(header, io.BytesIO(data))
        return path

    return make


def test_tar(make_tar: MakeTar) -> None:
    path = make_tar(
        "shard-0003.tar",
        {
            "__index__.json": b"[]",
            "x/": b"",
            "x/img7.json": b'{"caption": "of json", "width": 1}',
            "x/img7.jpg": picture(7),
            "x/img7.txt": "Grüße".encode(),
            "x/._img7.jpg": b"resource fork",
            "x/img8.0.PNG": picture(8),
            "x/img8.1.png": picture(9),
            "x/img8.seg.bin": b"\x01\x02",
            "text.caption": b"no image",
            "text.json": b"[1, 2]",
        },
    )
    source = open_source(path)
    assert keys(source) == ["shard-0003/x/img7", "shard-0003/x/img8", "shard-0003/text"]
    seven, eight, text = source
    assert seven.where == "shard-0003.tar:x/img7"
    assert seven.extras == {"caption": "Grüße", "width": 1}
    assert len(seven.images) == 1 and shade(seven) == 7
    assert eight.extras == {"seg.bin": b"\x01\x02"}
    assert [shade(eight, 0), shade(eight, 1)] == [8, 9]
    assert text.images == () and text.extras == {"caption": "no image", "json": [1, 2]}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_names_longer_than_a_header(make_tar: MakeTar, format: int) -> None:
    folder = "/".join(["f" * 40] * (3 if format == tarfile.USTAR_FORMAT else 9))
    members = {f"{folder}/{n}.png": picture(n) for n in range(3)}
    source = open_source(make_tar("long.tar", members, format=format))
    assert keys(source) == [f"long/{folder}/{n}" for n in range(3)]
    assert [shade(source[n]) for n in (2, 0, 1)] == [2, 0, 1]


def test_tar_of_the_webdataset_library(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="writes the shard that is read")
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for n in range(3):
            writer.write(
                {"__key__": f"x/{n:03}", "png": picture(n), "json": {"n": n}, "txt": f"c{n}"}
            )
    source = open_source(tmp_path / "w.tar")
    assert keys(source) == ["w/x/000", "w/x/001", "w/x/002"]
    assert [row.extras for row in source] == [{"n": n, "caption": f"c{n}"} for n in range(3)]
    assert [shade(row) for row in source] == [0, 1, 2]


def test_tar_patterns(make_tar: MakeTar, tmp_path: Path) -> None:
    for number in range(3):
        make_tar(f"s-{number:04}.tar", {"a.png": picture(number), "b.png": picture(10 + number)})
    for pattern in (
        "s-{0000..0002}.tar",
        "s-{0000,0001,0002}.tar",
        "*.tar",
        "s-000{0,1,2}.ta?",
        "",
    ):
        source = open_source(tmp_path / pattern)  # the last is the folder
        assert keys(source) == [f"s-000{n}/{name}" for n in range(3) for name in "ab"]
        assert [shade(row) for row in source] == [0, 10, 1, 11, 2, 12]
    refused(tmp_path / "s-{0000..0003}.tar", "s-0003.tar: does not exist")
    refused(tmp_path / "none-*.tar", "does not exist")


def test_tar_shards_of_one_name(make_tar: MakeTar, tmp_path: Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        make_tar(f"{folder}/0.tar", {"a.png": picture(1)})
    source = open_source(tmp_path)
    assert keys(source) == [f"{tmp_path}/train/0/a", f"{tmp_path}/val/0/a"]


def test_damaged_tars(make_tar: MakeTar, tmp_path: Path) -> None:
    good = make_tar("good.tar", {f"{n}.png": picture(n) + bytes(3000) for n in range(9)})
    data = good.read_bytes()
    end = data.rindex(b"8.png")
    bad = tmp_path / "bad.tar"
    for content in (b"", b"no tar" * 500, data[:1000]):
        bad.write_bytes(content)
        refused(bad, r"bad.tar: is no tar file")
    for content in (data[: end + 700], data[: end + 50], data[:end] + b"rubbish" * 300):
        bad.write_bytes(content)
        source = open_source(bad)
        assert list(source.keys()) == [*(f"bad/{n}" for n in range(8)), "bad.tar"]
        assert [shade(source[n]) for n in range(8)] == list(range(8))
        bad_row(source, 8, "^bad.tar: .* cut short .*8 samples are whole")
        assert source.key(8) == "bad.tar"
    refused(make_tar("empty.tar", {}), "is empty")
    (tmp_path / "s.tar.gz").write_bytes(b"")
    refused(tmp_path / "s.tar.gz", "s.tar.gz: is compressed, .*; unpack it")
    broken = open_source(make_tar("t.tar", {"a.json": b"{", "b.txt": b"\xff", "c.txt": b"good"}))
    bad_row(broken, 0, "^t.tar:a: is not JSON .*; mend or remove it")
    bad_row(broken, 1, "t.tar:b: text or fields cannot be read")
    assert broken[2].extras == {"caption": "good"}


# Tables


def write_parquet(path: Path, table: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(table), path, **options)
    return path


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
    refused("hf:a/b", r"hf:a/b needs datasets; run: pip install 'viq\[data\]'")


# JSON

TALK = [{"from": "human", "value": '<image>\nÄ ] } \\" ?'}, {"from": "gpt", "value": "{["}]


def json_records(folder: Path) -> list[dict[str, Any]]:
    """Records with each form of image; the files are shades 1 to 5."""
    (folder / "a.png").write_bytes(picture(1))
    plain, coded = picture(2), base64.b64encode(picture(3)) + b"\n"
    (folder / "patch_00000").write_bytes(b"head" + plain + coded)
    at = {"patch": "patch_00000", "start_num": 4, "size": len(plain)}
    coded_at = {"patch": "patch_00000", "start_num": 4 + len(plain), "size": len(coded)}
    return [
        {"conversations": TALK, "image": [{"img_path": "a.png"}], "id": 1},
        {"conversations": TALK, "image": [at | {"resize": "896x14"}, coded_at]},
        {"conversations": TALK, "image": "a.png"},
        {"conversations": TALK, "image": ["a.png", coded_at | {"base64": True}]},
        {"conversations": TALK[1:], "image": None},
        {"conversations": TALK, "image": None, "images": ["a.png"]},
        {"conversations": TALK, "image": at | {"base64": True}},
    ]


@pytest.mark.parametrize("form", ["jsonl", "json", "indented json"])
def test_json(tmp_path: Path, form: str) -> None:
    records = json_records(tmp_path)
    if form == "jsonl":
        path, marks = tmp_path / "data.jsonl", [":1", ":2", ":3", ":4", ":5", ":6", ":7"]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    else:
        path, marks = tmp_path / "data.json", ["#0", "#1", "#2", "#3", "#4", "#5", "#6"]
        indent = 2 if "indented" in form else None
        path.write_text(json.dumps(records, ensure_ascii=False, indent=indent) + "\n")
    source = open_source(path)
    assert keys(source) == [path.name + mark for mark in marks]
    assert [row.where for row in source] == [path.name + mark for mark in marks]
    assert source[0].extras == {"conversations": TALK, "id": 1}
    assert source[1].extras == {"conversations": TALK, "resize": ["896x14", None]}
    shades = [[shade(row, i) for i in range(len(row.images))] for row in list(source)[:6]]
    assert shades == [[1], [2, 3], [1], [1, 3], [], [1]]
    with pytest.raises(ImageError, match="patch_00000: bytes 4 to .* are not base64"):
        source[6].open()


def test_json_root(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(1))
    (tmp_path / "data.jsonl").write_text('{"image": "a.png"}\n')
    assert shade(open_source(tmp_path / "data.jsonl", root=tmp_path / "pictures")[0]) == 1
    with pytest.raises(ImageError, match=r"^data.jsonl:1: .*a.png: does not exist"):
        open_source(tmp_path / "data.jsonl")[0].open()


def test_bad_lines_stop_nothing_but_themselves(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\n{"text": 1}\nnot json\n  \n[1]\n\xff\n{"image": 7}\n{"text": 2}')
    source = open_source(path)
    assert list(source.keys()) == [f"data.jsonl:{n}" for n in (2, 3, 5, 6, 7, 8)]
    assert source[0].extras == {"text": 1} and source[5].extras == {"text": 2}
    bad_row(source, 1, "^data.jsonl:3: is not JSON")
    bad_row(source, 2, "^data.jsonl:5: is a list, not a record")
    bad_row(source, 3, "^data.jsonl:6: is not JSON")
    bad_row(source, 4, "^data.jsonl:7: an image is 7; give a path")
    path.write_bytes(b'{"a": ' * 100_000)
    bad_row(open_source(path), 0, "data.jsonl:1: is nested too deeply")
    bad_image = {"image": [{"patch": "p", "start_num": -1, "size": 3}]}
    path.write_text(json.dumps(bad_image))
    bad_row(open_source(path), 0, "data.jsonl:1: an image is .*start_num and size")


def test_bad_lists(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[{"text": 1}, {"text": oops}, {"text": 3}]')
    source = open_source(path)
    bad_row(source, 1, "^data.json#1: is not JSON")
    assert source[2].extras == {"text": 3}
    for text in ('[{"text": 1}, {"te', '[{"text": 1}, ', '[{"text": "1}]'):
        path.write_text(text)
        refused(path, "data.json: the list of records does not end")
    for text in ("", "[]", " \n"):
        path.write_text(text)
        refused(path, "data.json: is empty")


# All kinds together


def test_what_is_refused(tmp_path: Path, make_tar: MakeTar) -> None:
    refused(tmp_path / "gone.png", "gone.png: does not exist; check the path")
    refused(tmp_path, "holds no pictures")
    refused(7, "a int is no input")
    (tmp_path / "t.csv").write_text("a,b")
    refused(tmp_path / "t.csv", "is a CSV table; write it as Parquet")
    make_tar("a.tar", {"a.png": picture(1)})
    refused(tmp_path / "a.tar", "a.tar: root means nothing to this kind", root=tmp_path)
    write_parquet(tmp_path / "t.parquet", {"image": [picture(1)]})
    refused(tmp_path, r"holds Parquet files and tar files; pass a pattern such as \*.parquet")
    refused(tmp_path / "*.*a*", "matches Parquet files and tar files; pass files of one kind")
    assert len(open_source(tmp_path / "*.parquet")) == 1


def test_codes_beside_their_inputs_do_not_spoil_a_folder(tmp_path: Path, make_tar: MakeTar) -> None:
    pictures, tables, codes = tmp_path / "pictures", tmp_path / "tables", tmp_path / "codes"
    for folder in (pictures, tables, codes):
        folder.mkdir()
        schema = pa.schema([("codes", pa.uint16())], metadata={"viq.fingerprint": "00"})
        pq.write_table(schema.empty_table(), folder / "codes.parquet")
    (pictures / "a.png").write_bytes(picture(1))
    assert keys(open_source(pictures)) == [f"{pictures}/a.png"]
    write_parquet(tables / "t.parquet", {"image": [picture(1)]})
    assert keys(open_source(tables)) == ["t.parquet:0"]
    make_tar("codes/a.tar", {"b.png": picture(1)})
    assert keys(open_source(codes)) == ["a/b"]


def test_names_with_signs_of_patterns(tmp_path: Path) -> None:
    (tmp_path / "a[1]{2,3}*.png").write_bytes(picture(1))
    assert len(open_source(tmp_path / "a[1]{2,3}*.png")) == 1


def test_concatenate(tmp_path: Path, make_tar: MakeTar) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "data.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
    parts = [
        open_source(tmp_path / "a.png"),
        open_source(tmp_path / "data.jsonl"),
        open_source(make_tar("s.tar", {"x.png": picture(2)})),
    ]
    source = concatenate(parts)
    assert keys(source) == [f"{tmp_path}/a.png", "data.jsonl:1", "data.jsonl:2", "s/x"]
    assert [source[i].key for i in (3, 1, -2, 0)] == [keys(source)[i] for i in (3, 1, 2, 0)]
    assert concatenate(parts[:1]) is parts[0]
    assert len(concatenate([])) == 0


def test_many_threads_read_the_right_bytes(tmp_path: Path, make_tar: MakeTar) -> None:
    count = 48
    pictures = [picture(n) for n in range(count)]
    (tmp_path / "patch").write_bytes(b"".join(pictures))
    starts = [sum(map(len, pictures[:n])) for n in range(count)]
    (tmp_path / "data.jsonl").write_text(
        "\n".join(
            json.dumps({"image": {"patch": "patch", "start_num": start, "size": len(data)}})
            for start, data in zip(starts, pictures, strict=True)
        )
    )
    write_parquet(tmp_path / "t.parquet", {"image": pictures}, row_group_size=5)
    source = concatenate(
        [
            open_source(
                make_tar("t.tar", {f"{n:02}.png": data for n, data in enumerate(pictures)})
            ),
            source_tables.ParquetSource([tmp_path / "t.parquet"], cache=source_tables.Cache(700)),
            open_source(tmp_path / "data.jsonl"),
        ]
    )
    start = threading.Barrier(8)

    def read(thread: int) -> list[tuple[int, Any]]:
        start.wait()
        order = [(thread * 31 + step * 37) % len(source) for step in range(len(source))]
        return [(index, source[index].images[0].read()) for index in order]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(read, range(8)):
            assert len(found) == 3 * count
            assert all(data == pictures[index % count] for index, data in found)
