"""Conversations in JSON: a list of records, or one record a line (JSONL).

A record is an object such as

    {"conversations": [{"from": "human", "value": "<image>What is it?"},
                       {"from": "gpt", "value": "A cat."}],
     "image": [{"img_path": "a.jpg", "resize": "896x14"},
               {"patch": "patch_00000", "start_num": 846113989, "size": 27141}]}

where an image is a file, or a range of bytes in a file that holds many ("patch"), perhaps as base64
text (said by "base64": true or false, otherwise seen from the bytes). `image` (or `images`) may
also be one path or URL, or a list of them. Either form is indexed once and parsed record by record
when asked for, so a file of any size takes 24 bytes of memory a record, and a damaged record stops
nothing but itself.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from viq.data.source_base import (
    ImageRange,
    ImageRef,
    Row,
    Source,
    SourceError,
    Spans,
    because,
    image_at,
    lines,
)

# What decides where records end: brackets, but not those in strings. A string without an end takes
# in all that follows. The loop is unrolled, as strings may hold megabytes.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[][{}]', re.DOTALL)
_BOM = b"\xef\xbb\xbf"


class JsonSource(Source):
    """The records of a JSON or JSONL file; which of both, its first character tells.

    A key is "data.jsonl:12" (line, from 1) or "data.json#11" (place in the list, from 0). All
    fields but the images are extras; where an image has a field `resize`, extras["resize"] is a
    list with one entry an image, None if it has none.

    Args:
        root: folder that paths of images are relative to; by default that of the file.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self._path = path
        self._root = path.parent if root is None else root
        with open(path, "rb") as stream:
            is_list = stream.read(4096).removeprefix(_BOM).lstrip().startswith(b"[")
        self._spans = Spans.of(path, _records(path)) if is_list else lines(path, bool)
        self._mark = "#" if is_list else ":"

    def __len__(self) -> int:
        return len(self._spans)

    def keys(self) -> Iterator[str]:
        return map(self._where, range(len(self)))

    def key(self, index: int) -> str:
        return self._where(index)

    def _where(self, index: int) -> str:
        return f"{self._path.name}{self._mark}{self._spans.numbers[index]}"

    def _row(self, index: int) -> Row:
        where = self._where(index)
        try:
            record = json.loads(self._spans.read(index))
        except ValueError as error:
            raise SourceError(
                f"{where}: is not JSON ({because(error)}); mend or remove it"
            ) from error
        except RecursionError as error:
            raise SourceError(f"{where}: is nested too deeply; mend or remove it") from error
        if not isinstance(record, dict):
            raise SourceError(
                f"{where}: is a {type(record).__name__}, not a record; write an object"
                ' {"conversations": ..., "image": ...}'
            )
        given = record.pop("image" if record.get("image") is not None else "images", None)
        record.pop("image", None)  # null
        entries = given if isinstance(given, list) else [] if given is None else [given]
        images = tuple(_image(entry, self._root, where) for entry in entries)
        sizes = [entry.get("resize") if isinstance(entry, dict) else None for entry in entries]
        if any(size is not None for size in sizes):
            record["resize"] = sizes
        return Row(key=where, images=images, extras=record, where=where)


def _image(entry: Any, root: Path, where: str) -> ImageRef:
    match entry:
        case str(place) | {"img_path": str(place)} if place:
            return image_at(place, root)
        case {"patch": str(patch), "start_num": int(start), "size": int(size)} if (
            start >= 0 and size > 0
        ):
            flag = entry.get("base64")
            return ImageRange(root / patch, start, size, None if flag is None else bool(flag))
    raise SourceError(
        f"{where}: an image is {json.dumps(entry)[:100]}; give a path, an img_path, or patch,"
        " start_num and size"
    )


def _records(path: Path) -> Iterator[tuple[int, int, int]]:
    """(start, size, place) of the objects and lists in the outermost list of a JSON file."""
    depth, start, number = 0, 0, 0
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for token in _TOKEN.finditer(text):
            kind = text[token.start()]
            if kind in b"[{":
                depth += 1
                if depth == 2:
                    start = token.start()
            elif kind in b"]}":
                depth -= 1
                if depth == 1:
                    yield start, token.end() - start, number
                    number += 1
                elif depth == 0:
                    return
    raise SourceError(f"{path}: the list of records does not end; it is damaged or cut short")
