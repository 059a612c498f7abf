"""Every kind of input: what becomes key, images, extras and place; what is refused, and how."""

import base64
import io
import json
import os
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

from viq.core.types import ViqError
from viq.data.sources import json_records as source_json
from viq.data.sources import tables as source_tables
from viq.data.sources.access import Access, ImageText, ImageUrl
from viq.data.sources.base import ImageBytes, ImageFile, ImageRange
from viq.data.sources.open import Row, Source, SourceError, concatenate, open_source
from viq.image.open import ImageError
from viq.jobs.inputs import open_inputs

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
    refused(tmp_path / "list.txt", r"needs fsspec: pip install 'viq\[data\]'")
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


def test_a_tar_cut_between_two_members_is_cut_short(make_tar: MakeTar, tmp_path: Path) -> None:
    """At any multiple of 512 bytes; where the end mark is missing, whole samples may be, too."""
    members = {f"{n}.{suffix}": picture(n) for n in range(3) for suffix in ("png", "cls")}
    data = make_tar("good.tar", members).read_bytes()
    bad = tmp_path / "bad.tar"
    for name, whole in ((b"2.cls\0", 2), (b"2.png\0", 2), (b"1.cls\0", 1), (b"", 3)):
        end = data.index(name) if name else data.rindex(b"ustar") - 257 + 1024
        bad.write_bytes(data[:end])
        source = open_source(bad)
        assert [shade(source[n]) for n in range(len(source) - 1)] == list(range(whole))
        bad_row(source, whole, f"^bad.tar: .* cut short .*no end mark .*{whole} samples are whole")


def test_tars_joined_by_cat_are_told(make_tar: MakeTar, tmp_path: Path) -> None:
    data = make_tar("good.tar", {"a.png": picture(1)}).read_bytes()
    (tmp_path / "two.tar").write_bytes(data + data)
    assert open_source(tmp_path / "good.tar").leftovers() == {}
    told = open_source(tmp_path / "two.tar").leftovers()
    assert list(told) == ["bytes after the end of a tar file"]


def test_tar_suffixes_are_compared_without_case(make_tar: MakeTar) -> None:
    members = {"1.JPG": picture(1), "1.TXT": b"a disc", "1.JSON": b'{"w": 1}', "1.Cls": b"7"}
    (row,) = open_source(make_tar("upper.tar", members))
    assert shade(row) == 1
    assert row.extras == {"w": 1, "cls": b"7", "caption": "a disc"}


def test_files_of_a_sample_need_not_follow_each_other(make_tar: MakeTar) -> None:
    members = {f"{n}.png": picture(n) for n in range(3)}
    members |= {f"{n}.txt": f"c{n}".encode() for n in (2, 0, 1)}
    source = open_source(make_tar("by_kind.tar", members))
    assert keys(source) == ["by_kind/0", "by_kind/1", "by_kind/2"]
    assert [(shade(row), row.extras["caption"]) for row in source] == [
        (0, "c0"), (1, "c1"), (2, "c2")
    ]  # fmt: skip


def test_of_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (("a.png", 1), ("a.txt", 0), ("b.png", 2), (".x", 0), ("a.png", 3)):
            content = picture(data) if data else b"words"
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    source = open_source(tmp_path / "t.tar")
    assert keys(source) == ["t/a", "t/b"] and len(source[0].images) == 1
    assert shade(source[0]) == 3
    assert source.leftovers() == {
        "members with a later one of the same name": 1,
        "members that belong to no sample": 1,
    }


def test_a_damaged_shard_among_many_is_one_row(make_tar: MakeTar, tmp_path: Path) -> None:
    for number in range(3):
        make_tar(f"s-{number}.tar", {"a.png": picture(number), "a.txt": b"c", "b.png": picture(9)})
    whole = (tmp_path / "s-1.tar").read_bytes()
    for size, samples in ((700, []), (0, []), (1600, []), (3000, ["s-1/a"])):
        (tmp_path / "s-1.tar").write_bytes(whole[:size])
        source = open_source(tmp_path / "s-{0..2}.tar")
        named = ["s-0/a", "s-0/b", *samples, "s-1.tar", "s-2/a", "s-2/b"]
        assert list(source.keys()) == [source.key(n) for n in range(len(source))] == named
        bad_row(source, named.index("s-1.tar"), "^s-1.tar: .*cut short")
        assert shade(source[-2]) == 2


def test_a_key_takes_one_header(make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"{n:03}.json": b"{" for n in range(300)}
    source = open_source(make_tar("t.tar", members))
    read: list[int] = []
    real = tarfile.TarInfo.fromtarfile.__func__
    monkeypatch.setattr(
        tarfile.TarInfo, "fromtarfile", classmethod(lambda c, t: (read.append(1), real(c, t))[1])
    )
    for number in range(0, 300, 10):
        bad_row(source, number, f"^t.tar:{number:03}: is not JSON")
        assert source.key(number) == f"t/{number:03}"
    assert len(read) <= 30 * 4


def test_tar_headers_that_lead_back_or_ask_for_gigabytes(make_tar: MakeTar, tmp_path: Path) -> None:
    good = make_tar("good.tar", {"a.png": picture(1), "b.png": picture(2)}).read_bytes()
    at = good.rindex(b"b.png")
    for kind, size in ((b"0", -512), (b"0", 2**60), (b"x", 2**40), (b"L", -1), (b"L", 2**33)):
        header = bytearray(good[at : at + 512])
        header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
        header[156:157] = kind
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "bad.tar").write_bytes(good[:at] + header + good[at + 512 :])
        source = open_source(tmp_path / "bad.tar")
        assert list(source.keys()) == ["bad/a", "bad.tar"]
        assert shade(source[0]) == 1
        bad_row(source, 1, "^bad.tar: ")


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


def test_what_a_list_holds_beside_records_is_told(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    after, places = "texts after the end of a list", "places in a list without a record"
    for text, told in [
        ('[{"text": "[1, 2"},\n {"text": 2} ]\n\n', {}),
        ('[{"text": 1}]\n[{"text": 2}]', {after: 1}),  # as of a line each
        ('[{"text": 1}, "a.png", {"text": 2}, 3, null]', {places: 2}),
        ('["a.png", {"text": 1}] x', {places: 1, after: 1}),
        ('[{"text": 1},' + " " * 70_000 + '{"text": 2}]', {places: 1}),  # is not looked at
    ]:
        path.write_text(text)
        assert open_source(path).leftovers() == told, text[:60]


def test_images_elsewhere_in_a_record(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.png").write_bytes(picture(number))
    text = {"type": "text", "text": "Which?"}
    part = {"type": "image", "image": "a.png"}
    encoded = base64.b64encode(picture(1)).decode()
    for record, shades in [
        ({"file_name": "a.png"}, [0]),
        ({"file_name": "a.png", "image_path": "b.png", "img": "c.png"}, [2]),
        ({"img_path": ["a.png", "b.png"]}, [0, 1]),
        ({"image_url": {"url": "b.png"}}, [1]),
        ({"image": {"path": "c.png", "bytes": None}}, [2]),
        ({"image": {"bytes": encoded, "path": "gone.png"}}, [1]),
        ({"image": f" DATA:image/png;base64,{encoded.replace('+', '%2B')}"}, [1]),
        ({"image": [], "file_name": "a.png"}, [0]),
        ({"messages": [{"content": [{"image": None, "text": "a"}, {"image": "b.png"}]}]}, [1]),
        ({"messages": [{"value": None, "content": [part]}]}, [0]),
        ({"messages": [{"content": [part, text, {**part, "image": "c.png"}]}]}, [0, 2]),
        ({"messages": [{"role": "user", "content": [{"type": "image", "path": "b.png"}]}]}, [1]),
        (
            {"conversations": [{"from": "human", "value": [
                {"type": "image_url", "image_url": {"url": "a.png"}},
                {"type": "image_url", "image_url": "b.png"}]}]},
            [0, 1],
        ),
        ({"images": ["b.png"], "messages": [{"content": [{"type": "image"}]}]}, [1]),
        ({"url": "https://a.b/page.html", "file_name": "a.pdf"}, []),
    ]:  # fmt: skip
        (tmp_path / "d.jsonl").write_text(json.dumps(record))
        (row,) = open_source(tmp_path / "d.jsonl")
        assert [shade(row, n) for n in range(len(row.images))] == shades, record
        assert ".png" not in json.dumps(row.extras) or "file_name" in row.extras


def test_the_place_of_images_in_a_record_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "d.jsonl").write_text('{"image": "gone.png", "left": "a.png", "right": ["a.png"]}')
    row = open_source(tmp_path / "d.jsonl", image_column=["right", "left"])[0]
    assert [shade(row, 0), shade(row, 1)] == [1, 1] and row.extras == {"image": "gone.png"}
    assert open_source(tmp_path / "d.jsonl", image_column=())[0].images == ()


@pytest.mark.parametrize("content", ["<image>What?", [{"type": "image"}]])
def test_a_mark_without_an_image_is_no_text(tmp_path: Path, content: Any) -> None:
    record = {"messages": [{"role": "user", "content": content}], "photo": "a.png"}
    (tmp_path / "d.jsonl").write_text(json.dumps(record) + '\n{"text": "<image> alone"}')
    source = open_source(tmp_path / "d.jsonl")
    bad_row(source, 0, r"^d.jsonl:1: .*mark for an image.*messages, photo.*--image-column")
    assert source[1].images == ()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"image": "a.png", "caption": "\\ud83d"}', "half a character"),
        ('{"image": "a.png", "x\\uD83D": 1}', "half a character"),
        ('{"image": {"patch": "a\\u0000", "start_num": 0, "size": 1}}', "no path there can be"),
        ('{"image": "a\\u0000.png"}', "no path there can be"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "is not JSON"),
    ],
)
def test_records_that_fail(tmp_path: Path, record: str, reason: str) -> None:
    (tmp_path / "d.jsonl").write_text(f'{{"text": 1}}\n{record}\n{{"text": "\\ud83d\\ude00"}}\n')
    source = open_source(tmp_path / "d.jsonl")
    bad_row(source, 1, f"^d.jsonl:2: .*{reason}")
    assert source[0].extras == {"text": 1} and source[2].extras == {"text": "😀"}


@pytest.mark.parametrize(("start", "size"), [(0, 10**18), (0, 10**30), (10**30, 10), (0, 2**33)])
def test_ranges_that_no_file_has(tmp_path: Path, start: int, size: int) -> None:
    (tmp_path / "p").write_bytes(picture(1))
    record = {"image": {"patch": "p", "start_num": start, "size": size}}
    (tmp_path / "d.jsonl").write_text(json.dumps(record))
    with pytest.raises(ImageError, match=f"^d.jsonl:1: .*p: ends before byte {start + size}"):
        open_source(tmp_path / "d.jsonl")[0].open()
    with open(tmp_path / "p", "r+b") as sparse:
        sparse.truncate(2**34)
    if start + size < 2**34:
        with pytest.raises(ImageError, match=f"bytes are asked for; the limit is {2**31:,}"):
            open_source(tmp_path / "d.jsonl")[0].open()


def test_lines_and_records_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_json, "RECORD_BYTES", 100)
    (tmp_path / "d.jsonl").write_text(f'{{"text": 1}}\n{{"text": "{"x" * 500}"}}\n{{"text": 2}}')
    source = open_source(tmp_path / "d.jsonl")
    assert len(source) == 3 and source[2].extras == {"text": 2}
    bad_row(source, 1, "^d.jsonl:2: .*the limit is 100")
    (tmp_path / "d.txt").write_text(f"a.png\n{'b' * 300_000}\nc.png")
    source = open_source(tmp_path / "d.txt")
    assert keys_of(source) == ["a.png", "d.txt:2", "c.png"]
    bad_row(source, 1, "^d.txt:2: has 300,001 bytes")


def keys_of(source: Source) -> list[str]:
    found = list(source.keys())
    assert found == [source.key(number) for number in range(len(source))]
    return found


def test_strings_of_many_escapes_take_no_memory(tmp_path: Path) -> None:
    text = '\\\\"' * 20_000
    (tmp_path / "d.json").write_text(json.dumps([{"text": text}, {"text": "]}"}, {"text": "\\\\"}]))
    source = open_source(tmp_path / "d.json")
    assert [row.extras["text"] for row in source] == [text, "]}", "\\\\"]


def test_file_and_row_begin_the_message_however_long_the_name(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"image": "x" * 240 + "/" + "y" * 240 + ".png"}))
    with pytest.raises(
        ImageError, match=r"^d.jsonl:1: .*x\.\.\..*y.png: (does not|cannot)"
    ) as error:
        open_source(tmp_path / "d.jsonl")[0].open()
    assert len(str(error.value)) < 300


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
