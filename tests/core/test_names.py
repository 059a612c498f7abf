"""Names that any text can have: legal on every system, bounded, and told apart."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq.core.names import PART_BYTES, folded, portable
from viq.jobs.decode import name_pictures

DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}


def assert_legal(path: str) -> None:
    """On Linux, macOS and Windows, with room for a suffix and what is written aside."""
    assert len(path.encode()) < 1000
    for part in path.split("/"):
        assert part not in ("", ".", "..")
        assert len(part.encode()) <= 255
        assert not re.search(r'[<>:"\\|?*\x00-\x1f\x7f]', part)
        assert part.isprintable() and part == part.strip(" .")
        assert part.split(".")[0].rstrip().lower() not in DEVICES


def names(*keys: str) -> list[str]:
    """Of samples of one image each."""
    return [picture.name for picture in name_pictures([[(key, 0) for key in keys]])[0]]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("photo", "photo"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),  # composed
        ("a:b*c?", "a_b_c_"),
        ("a\0b\nc\x1b[2J\u202e", "a_b_c_[2J_"),
        (" name. . ", "name"),
        (".profile", "profile"),
        ("CON", "_CON"),
        ("nul.tar", "_nul.tar"),
        ("com1 .x", "_com1 .x"),
        ("console", "console"),
        ("half \ud83d", "half _"),
        ("...", ""),
    ],
)
def test_what_no_file_can_be_called_is_changed(text: str, name: str) -> None:
    assert portable(text) == name


def test_long_names_are_cut_and_told_apart() -> None:
    first, second = portable("ä" * 500 + "1"), portable("ä" * 500 + "2")
    assert first != second
    assert len(first.encode()) <= PART_BYTES
    assert re.fullmatch("ä+-[0-9a-f]{16}", first)


@given(st.lists(st.text(st.characters(max_codepoint=0x10FFFF)), max_size=6))
def test_any_keys_become_legal_names_of_their_own(keys: list[str]) -> None:
    found = names(*keys, *(f"x/{key}/y" for key in keys))
    for name in found:
        assert_legal(name)
        assert name.endswith(".png")
    assert len({folded(name) for name in found}) == len(found)
    folders = {name.rpartition("/")[0] for name in found}
    assert not folders & set(found)  # no file is where a folder is needed


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (("/a/b/c.jpg", "/a/bc/d.jpg"), ["b/c.png", "bc/d.png"]),
        (("/a/b/c.jpg",), ["c.png"]),
        (("x.jpg", "y/z.JPEG", "v1.5"), ["x.png", "y/z.png", "v1.5.png"]),
        (("a.parquet:0", "a.jsonl:3", "b.json#11"), ["a-0.png", "a-3.png", "b-11.png"]),
        (("../../etc/passwd", "", "."), ["etc/passwd.png", "image.png", "image-cdb4ee2a.png"]),
        (("x/a.png/b.png", "x/a.png", "y"), ["x/a.png_/b.png", "x/a.png", "y.png"]),
        (("CON/aux.jpg", "b"), ["_CON/_aux.png", "b.png"]),
        (("decoded.jsonl/a.png", "b"), ["decoded.jsonl_/a.png", "b.png"]),
        (("q/" * 40 + "end.jpg", "b"), None),
    ],
)
def test_names_of_pictures(keys: tuple[str, ...], wanted: list[str] | None) -> None:
    found = names(*keys)
    if wanted is not None:
        assert found == wanted
    assert len(set(found)) == len(keys)


def test_equal_names_get_a_hash_whatever_their_case() -> None:
    first, second, third = names("A.jpg", "a.png", "a.png")
    assert first == "A.png"
    assert re.fullmatch(r"a-[0-9a-f]{8}\.png", second)
    assert third == second.replace(".png", "-2.png")


def test_images_of_one_sample_are_numbered() -> None:
    rows = [("p.parquet:0", 0), ("p.parquet:0", 1), ("p.parquet:1", 0), (None, 0)]
    (found,) = name_pictures([rows])
    assert [p.name for p in found] == ["p-0-0.png", "p-0-1.png", "p-1.png", "image.png"]
