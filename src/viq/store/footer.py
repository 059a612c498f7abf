"""Values and bytes of the columns of a Parquet file, read from its footer here.

pyarrow tells as well, but ends the whole process at some damaged footers: it lets an exception of
C++ pass where it declares none. The footer is a struct of Thrift's compact protocol.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from viq.core.files import open_regular
from viq.core.types import CodesError

_LENGTH, _MAGIC = struct.Struct("<I4s"), b"PAR1"  # ends a file: bytes of the footer, magic
_DEEPEST = 16
# Fields: of the file, of a group of rows, of a column, of what is said of it.
_GROUPS, _COLUMNS, _ABOUT, _PATH, _VALUES, _BYTES = 4, 1, 3, 3, 5, 7
_DATA, _DICTIONARY = 9, 11  # where the pages of values, and of a dictionary, begin
END = _LENGTH.size  # bytes of a file that say how long its footer is


def columns_of(path: Path) -> list[dict[str, tuple[int, int]]]:
    """(values, bytes in the file) of each column, by its path with dots, for every group of rows.

    Raises:
        CodesError: the footer is damaged.
    """
    with _read(path) as groups:
        return [
            {
                ".".join(name.decode() for name in about[_PATH]): (
                    int(about[_VALUES]),
                    int(about[_BYTES]),
                )
                for about in group
            }
            for group in groups
        ]


def group_ranges(path: Path) -> list[tuple[int, int]]:
    """Where in the file the pages of every group of rows begin and end, as the footer says.

    Raises:
        CodesError: the footer is damaged.
    """
    with _read(path) as groups:
        found = []
        for group in groups:
            starts = [min(int(c[_DATA]), int(c.get(_DICTIONARY) or c[_DATA])) for c in group]
            ends = [start + int(c[_BYTES]) for start, c in zip(starts, group, strict=True)]
            found.append((min(starts), max(ends)))
        return found


def footer_bytes(end: bytes) -> int:
    """Bytes of a footer and of what says so, by the last `END` bytes of a file.

    Raises:
        CodesError: they are not those of a Parquet file.
    """
    if len(end) != END or not end.endswith(_MAGIC):
        raise _damaged()
    return END + _LENGTH.unpack(end)[0]


@contextmanager
def _read(path: Path) -> Iterator[list[list[dict[int, Any]]]]:
    """What a footer says of each column of each group of rows; of what the block raises, too, it is
    the cause."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END))
        end = file.read()
        try:
            length, _ = _LENGTH.unpack(end)
            file.seek(size - END - length)
            footer = _Compact(file.read(length)).struct(0)
            yield [
                [column[_ABOUT] for column in group[_COLUMNS]] for group in footer.get(_GROUPS, [])
            ]
        except (OSError, IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
            raise _damaged() from None


def _damaged() -> CodesError:
    return CodesError("damaged (its footer cannot be read)")


class _Compact:
    """Reads values of Thrift's compact protocol; structs as dicts by number of the field."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        fields, number = dict[int, Any](), 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._whole()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("too deep")
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._whole()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            size = self._size(self._varint() if head >> 4 == 15 else head >> 4)
            return [self._value(head & 15, depth + 1) for _ in range(size)]
        if kind == 11:
            size = self._size(self._varint())
            kinds = self._byte() if size else 0
            pairs = [
                (self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1))
                for _ in range(size)
            ]
            return pairs
        if kind == 12:
            return self.struct(depth)
        raise ValueError("no such type")

    def _size(self, size: int) -> int:
        if size > len(self._data) - self._at:  # an element takes a byte at least
            raise ValueError("too many")
        return size

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, size: int) -> bytes:
        self._at += self._size(size)
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def _whole(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
