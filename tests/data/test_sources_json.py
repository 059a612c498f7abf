"""JSON lists and lines: where the images are named, and bad lines."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from source_rows import bad_row, keys, picture, refused, shade

from viq.data.sources import json_records as source_json
from viq.data.sources.open import Source, open_source
from viq.image.open import ImageError

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
