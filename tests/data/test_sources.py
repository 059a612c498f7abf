"""Files, folders, lists and URLs: key, images, extras and place; and what holds of all kinds."""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_rows import MakeTar, keys, picture, refused, shade, write_parquet

from viq.core.types import ViqError
from viq.data.sources import tables as source_tables
from viq.data.sources.access import Access
from viq.data.sources.base import ImageBytes, ImageFile, ImageRange
from viq.data.sources.open import Row, concatenate, open_source
from viq.image.open import ImageError

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
    refused("memory://viq-test/a.jsonl", "pictures, tar and Parquet files are read from URLs")
    refused("nonsense://a.png", "nonsense")


def test_urls_without_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    (tmp_path / "list.txt").write_text("https://a.png\n")
    refused(tmp_path / "list.txt", r"needs fsspec: pip install 'viq\[data\]'")
    (tmp_path / "list.txt").write_text("a.png\n")
    assert len(open_source(tmp_path / "list.txt")) == 1


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


def test_the_empty_path_is_not_the_working_directory() -> None:
    refused("", "the empty path is no input")


def test_patterns_for_too_many_names() -> None:
    for pattern in (
        "x-{0..99999999}.tar",
        "{0..9999}/{0..9999}",
        "{a,b}" * 40,
        "{1..9,{1..99999999}}",
    ):
        refused(pattern, "stands for more than 1,000,000 names")
    refused("x-{5..1}.tar", "stands for no file")
    refused("x-{0..999999999999999999999}.tar", "does not exist")


@pytest.mark.parametrize("name", ["a.tar", "a.txt", "a.jsonl", "a.json", "a.parquet", "a.png", "a"])
def test_pipes_are_no_inputs(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ViqError, match="regular file"):
        open_source(tmp_path / name)
    if name == "a.parquet":
        refused(tmp_path, "a.parquet: .*regular file")


def test_pictures_without_a_suffix(tmp_path: Path) -> None:
    (tmp_path / "IMG_0001").write_bytes(picture(1))
    (tmp_path / "b.photo").write_bytes(picture(2))
    (tmp_path / "c.png").write_bytes(picture(3))
    (tmp_path / "d.md").write_bytes(picture(4))  # not looked into
    (tmp_path / "README").write_text("no picture")
    source = open_source(tmp_path)
    assert [shade(row) for row in source] == [1, 2, 3]
    assert source.leftovers() == {"files that are no pictures": 2}


def test_what_is_left_over_is_counted(tmp_path: Path, make_tar: MakeTar) -> None:
    make_tar("a.tar", {"a.png": picture(1), "__index__.json": b"{}"})
    (tmp_path / "notes.md").write_text("no tar")
    source = open_source(tmp_path)
    assert source.leftovers() == {"members that belong to no sample": 1, "files of other kinds": 1}
    (tmp_path / "list.txt").write_text("a.png\na.png\n")
    repeated = open_source(tmp_path / "list.txt")
    assert concatenate([repeated, repeated]).leftovers() == {"lines that come again": 2}
