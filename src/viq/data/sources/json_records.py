"""Conversations in JSON: a list of records, or one record a line (JSONL).

A record is an object such as

    {"conversations": [{"from": "human", "value": "<image>What is it?"},
                       {"from": "gpt", "value": "A cat."}],
     "image": [{"img_path": "a.jpg", "resize": "896x14"},
               {"patch": "patch_00000", "start_num": 846113989, "size": 27141}]}

where an image is a file, or a range of bytes in a file that holds many ("patch"), perhaps as base64
text (said by "base64": true or false, otherwise seen from the bytes). `image` (or `images`) may
also be one path, URL, data: URI or base64 text, or a list of them; `viq.data.sources.json_fields`
says where else images are looked for. Either form is indexed once and parsed record by record when
asked for, so a file of any size takes 24 bytes of memory a record, and a damaged record stops
nothing but itself.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from viq.core.files import open_regular
from viq.data.sources.access import Access, Names
from viq.data.sources.base import (
    RECORD_BYTES,
    Row,
    Source,
    SourceError,
    Spans,
    Wanted,
    lines,
    place,
    record,
)
from viq.data.sources.json_fields import take_images

# What decides where records end: brackets, but not those in strings. A string is matched to its
# end, or through a thousand escapes: the engine keeps a state for each until the match is over.
_TOKEN = re.compile(rb'([][{}])|"[^"\\]*(?:\\.[^"\\]*){0,1000}("?)', re.DOTALL)
_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*){0,1000}("?)', re.DOTALL)
_GAP = 2**16  # bytes between two records that are looked at; blanks are never so many
_BOM = b"\xef\xbb\xbf"


class JsonSource(Source):
    """The records of a JSON or JSONL file; which of both, its first character tells.

    A key is "data.jsonl:12" (line, from 1) or "data.json#11" (place in the list, from 0). All
    fields but the images are extras; where an image has a field `resize`, extras["resize"] is a
    list with one entry an image, None if it has none.

    Args:
        root: folder that paths of images are relative to; by default that of the file.
        image_column: the field or fields that hold images; () for none; None to look for them.
        wanted: of the other fields, those to bring.
        access: what paths and URLs in the file may open.
    """

    def __init__(
        self,
        path: Path,
        root: Path | None = None,
        *,
        image_column: str | Sequence[str] | None = None,
        wanted: Wanted | None = None,
        access: Access | None = None,
    ) -> None:
        self._path = path
        self._names = Names(path.parent if root is None else root, access or Access())
        self._images = (image_column,) if isinstance(image_column, str) else image_column
        self._wanted = wanted or Wanted()
        with open_regular(path) as stream:
            is_list = stream.read(4096).removeprefix(_BOM).lstrip().startswith(b"[")
        self._others = Counter[str]()
        self._spans = (
            Spans.of(path, _records(path, self._others))
            if is_list
            else lines(path, bool, RECORD_BYTES)
        )
        self._mark = "#" if is_list else ":"

    def __len__(self) -> int:
        return len(self._spans)

    def keys(self) -> Iterator[str]:
        return map(self.key, range(len(self)))

    def key(self, index: int) -> str:
        return f"{self._path.name}{self._mark}{self._spans.numbers[index]}"

    def leftovers(self) -> dict[str, int]:
        return dict(self._others)

    def _row(self, index: int) -> Row:
        where = self.where(index)
        found = record(self._spans.read(index, RECORD_BYTES), where)
        if not isinstance(found, dict):
            raise SourceError(
                f"{where}: is a {type(found).__name__}, not a record; write an object"
                ' {"conversations": ..., "image": ...}'
            )
        images = take_images(found, self._images, self._names, where)
        return Row(key=self.key(index), images=images, extras=self._wanted.of(found), where=where)


def _records(path: Path, others: Counter[str]) -> Iterator[tuple[int, int, int]]:
    """(start, size, place) of the objects and lists in the outermost list of a JSON file.

    Args:
        others: gets what else there is: numbers and texts in the list, and what follows it.
    """
    depth, start, end, number = 0, 0, 0, 0
    with (
        open_regular(path) as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        for at in _brackets(text):
            kind = text[at]
            if kind in b"[{":
                depth += 1
                if depth == 1:
                    end = at + 1
                elif depth == 2:
                    start = at
                    _count(others, "places in a list without a record", text, end, start)
            else:
                depth -= 1
                if depth == 1:
                    yield start, at + 1 - start, number
                    number, end = number + 1, at + 1
                elif depth == 0:
                    _count(others, "places in a list without a record", text, end, at)
                    _count(others, "texts after the end of a list", text, at + 1, len(text))
                    return
    raise SourceError(
        f"{place(path)}: the list of records does not end; it is damaged or cut short"
    )


def _count(others: Counter[str], what: str, text: mmap.mmap, start: int, end: int) -> None:
    """Count a stretch of the file in which there is more than commas and blanks."""
    if end - start > _GAP or text[start:end].strip(b" \t\r\n,"):
        others[what] += 1


def _brackets(text: mmap.mmap) -> Iterator[int]:
    """Where brackets are that are in no string. A string without an end takes in all there is."""
    position = 0
    while position < len(text):
        for token in _TOKEN.finditer(text, position):
            if token.lastindex == 1:
                yield token.start()
            elif not token[2]:
                position = token.end()
                break
        else:
            return
        closing = b""
        while not closing and position < len(text):
            rest = _STRING.match(text, position)
            if rest is None or rest.end() == position:
                return  # a backslash at the very end
            position, closing = rest.end(), rest.group(1)
