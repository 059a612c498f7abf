"""Tar shards: what becomes key, images, extras and place; what is refused, and how."""

import io
import tarfile
from pathlib import Path

import pytest
from source_rows import MakeTar, bad_row, keys, picture, refused, shade

from viq.data.sources.open import open_source


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
