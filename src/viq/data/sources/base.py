"""What every kind of input has in common: rows, images that are read when asked for, and errors.

Images and text stay where they are until a row is asked for, and each read opens the file anew:
nothing is shared between threads, and thousands of shards take no file descriptors.

Whatever a damaged or hostile row raises becomes a `SourceError` or an `ImageError` in two places
here, `Source.__getitem__` and `Row.open`; its message begins with the file and the row.
"""

from __future__ import annotations

import base64
import binascii
import json
import operator
import os
import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from viq.core.files import open_regular
from viq.core.types import CodesError, ViqError
from viq.core.untrusted import UntrustedError, parse_json, printable
from viq.image.open import FILE_LIMIT, ImageError, open_image

# Bytes at most, checked before they are read.
RECORD_BYTES = 64 * 2**20  # of a JSON record, a text member of a tar file, a cell of text
IMAGE_BYTES = FILE_LIMIT  # of an image inside another file
LINE_BYTES = 64 * 2**10  # of a line in a list of paths and URLs
ROW_IMAGES = 10_000  # in one row

_WHERE = 200  # characters of a place, and of what is said of it
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")  # how JSON may spell one


class SourceError(ViqError):
    """An input or one of its rows cannot be used. One line: what, where, how to mend."""


class ImageRef(Protocol):
    """Where the bytes of one image are."""

    def read(self) -> bytes | Path:
        """What `viq.image.open.open_image` takes. Raises `ImageError` if it cannot be fetched."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample of a source.

    Attributes:
        key: the same from run to run, and unique within the source (keys that the data brings
            itself are taken at their word).
        images: none for a text-only sample; read when asked for.
        extras: every other field, untouched: captions, conversations, ...
        where: the place of the row, for messages: "data.jsonl:12", "shard-0003.tar:img7";
            printable.
    """

    key: str
    images: tuple[ImageRef, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)
    where: str

    def open(self, index: int = 0) -> Image.Image:
        """Image `index`, decoded, upright, RGB. Raises `ImageError` naming `where`."""
        if not 0 <= index < len(self.images):
            raise ImageError(f"{self.where}: has {len(self.images)} images, none at {index}")
        name = self.where if len(self.images) == 1 else f"{self.where}, image {index}"
        try:
            data = self.images[index].read()
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
        except Exception as error:  # of each file system, and of every name that is none
            raise ImageError(f"{name}: cannot be read ({because(error)}); check it") from error
        if isinstance(data, Path) and str(data) != self.where:
            name = f"{name}: {data}"
        return open_image(data, name=name)


class Source(ABC):
    """A sequence of rows. Any thread may read any row at any time.

    `source[i]` raises `SourceError` for a row that is damaged and leaves the others usable, so a
    job that must not stop goes over `range(len(source))` and catches it row by row.

    Attributes:
        has_extras: whether a row may bring more than images.
        downloads: how many of its images are best fetched at a time, ahead; 0 for those at hand.
    """

    has_extras: bool = True
    downloads: int = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def shards(self) -> Sequence[int]:
        """Rows of each of its files, in order, if it is better read file by file; else of all."""
        return [len(self)]

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """The keys of all rows in order, damaged ones too, without reading images."""

    def key(self, index: int) -> str:
        """The key of a row, even of a damaged one. Kinds of many rows need not go over all keys."""
        return next(islice(self.keys(), index, None))

    def where(self, index: int) -> str:
        """The place of a row, for messages, even of a damaged one. As `Row.where`."""
        return place(self.key(index))

    @abstractmethod
    def _row(self, index: int) -> Row:
        """Row `index`, which lies in 0..len-1. May raise anything."""

    def names(self) -> Iterator[str]:
        """What each row is called wherever the data lie and however their place was typed.

        Training chooses by it what it holds out. Unlike keys, names may repeat.
        """
        return self.keys()

    def leftovers(self) -> dict[str, int]:
        """What this source does not bring though it is there: how many of what, in words.

        The same from run to run, and known without reading rows. What rows leave over (those
        without an image) is not in it.
        """
        return {}

    def __getitem__(self, index: int) -> Row:
        return self._checked(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[Row]:
        return (self._checked(index) for index in range(len(self)))

    def _checked(self, index: int) -> Row:
        """The border of a row: no exception but those of this project leaves it."""
        try:
            return self._row(index)
        except (SourceError, ImageError, CodesError):
            raise
        except UntrustedError as error:
            raise SourceError(str(error)) from error
        except Exception as error:  # also MemoryError and RecursionError
            raise SourceError(
                f"{self._place(index)}: cannot be read ({because(error)}); mend or remove it"
            ) from error

    def _place(self, index: int) -> str:
        try:
            return self.where(index)
        except Exception:
            return f"row {index}"


@dataclass(frozen=True)
class Wanted:
    """Which columns or fields ride along: `columns` alone (None: all), without those of `drop`."""

    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return (self.columns is None or name in self.columns) and name not in self.drop

    def of(self, values: dict[str, Any]) -> dict[str, Any]:
        """Those that are wanted."""
        if self.columns is None and not self.drop:
            return values
        return {name: value for name, value in values.items() if name in self}


class Damaged(Source):
    """One row that fails, for a file among many that is damaged as a whole; its key is `label`."""

    def __init__(self, label: str, error: ViqError) -> None:
        self._label, self._error = label, str(error)

    def __len__(self) -> int:
        return 1

    def keys(self) -> Iterator[str]:
        return iter([self._label])

    def _row(self, index: int) -> Row:
        raise SourceError(self._error)


@dataclass(frozen=True)
class ImageFile:
    """A whole file."""

    path: Path

    def read(self) -> Path:
        return self.path


@dataclass(frozen=True)
class ImageBytes:
    """Bytes at hand."""

    data: bytes = field(repr=False)

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class ImageRange:
    """`size` bytes of a file from `offset` on, perhaps base64 text; None: look and see."""

    path: Path
    offset: int
    size: int
    is_base64: bool | None = False

    def read(self) -> bytes:
        try:
            data = read_range(self.path, self.offset, self.size, IMAGE_BYTES)
        except (OSError, EOFError, ViqError) as error:
            raise ImageError(f"{self.path}: {because(error)}; check path and offsets") from error
        if self.is_base64 is False:
            return data
        try:
            # Strict, so no image file passes for base64: all contain bytes outside its alphabet.
            return base64.b64decode(data.strip(), validate=True)
        except binascii.Error as error:
            if self.is_base64:
                raise ImageError(
                    f"{self.path}: bytes {self.offset} to {self.offset + self.size} are not base64"
                    f" ({because(error)}); check the offsets"
                ) from error
            return data


def read_range(path: Path, offset: int, size: int, limit: int) -> bytes:
    """`size` bytes of a regular file from `offset` on.

    Raises:
        OSError: it cannot be opened.
        EOFError: the file is shorter, or they are more than `limit`; nothing was read then.
        ViqError: it is no regular file.
    """
    with open_regular(path) as stream:
        if offset + size > os.fstat(stream.fileno()).st_size:
            raise EOFError(f"ends before byte {offset + size}")
        if size > limit:
            raise EOFError(f"{size:,} bytes are asked for; the limit is {limit:,}")
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"ends before byte {offset + size}")
    return data


@dataclass(frozen=True)
class Spans:
    """Pieces of a text file, found once and read when asked for: 24 bytes of memory each."""

    path: Path
    starts: array[int]
    sizes: array[int]
    numbers: array[int]  # what people call the piece: its line, or its place in a list

    @classmethod
    def of(cls, path: Path, found: Iterator[tuple[int, int, int]]) -> Spans:
        """Collect (start, size, number) of every piece."""
        spans = cls(path, array("Q"), array("Q"), array("Q"))
        for start, size, number in found:
            spans.starts.append(start)
            spans.sizes.append(size)
            spans.numbers.append(number)
        return spans

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, index: int, limit: int) -> bytes:
        """A piece of at most `limit` bytes. Raises `SourceError`."""
        try:
            return read_range(self.path, self.starts[index], self.sizes[index], limit)
        except (OSError, EOFError, ViqError) as error:
            raise SourceError(
                f"{place(self.path.name, self.numbers[index])}: {because(error)}; mend it, or open"
                " the source again if it has changed"
            ) from error


def lines(path: Path, keep: Callable[[bytes], object], limit: int) -> Spans:
    """The lines of a file that `keep` accepts, numbered from 1.

    `keep` sees them stripped, and of one longer than `limit` bytes the first `limit` alone.
    """

    def find() -> Iterator[tuple[int, int, int]]:
        start, number = 0, 0
        with open_regular(path) as stream:
            while line := stream.readline(limit):
                number, size = number + 1, len(line)
                while size >= limit and not line.endswith(b"\n"):
                    if not (more := stream.readline(limit)):
                        break
                    size += len(more)
                    if more.endswith(b"\n"):
                        break
                if keep(line.strip()) or size > limit:
                    yield start, size, number
                start += size

    return Spans.of(path, find())


def record(data: bytes, where: str) -> Any:
    """The value of a JSON text without half characters, which no file of text can hold.

    Raises:
        UntrustedError: other bytes; names `where`.
    """
    try:
        value = parse_json(data, where)
    except UntrustedError as error:
        raise UntrustedError(f"{error}; mend or remove it") from error
    if _HALF_CHARACTER.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UntrustedError(
                f"{where}: holds half a character (a lone surrogate, as of an emoji that was cut);"
                " mend or remove it"
            ) from None
    return value


def place(file: object, row: object = None) -> str:
    """ "file:row", or the file alone, as it may be shown: long ones lose their middle."""
    return printable(str(file) if row is None else f"{file}:{row}", _WHERE)


def labels(paths: Sequence[Path]) -> list[str]:
    """What to call each of some shards: its file name, or its path where the name is not unique."""
    uses = Counter(path.name for path in paths)
    return [path.name if uses[path.name] == 1 else path.as_posix() for path in paths]


def because(error: BaseException) -> str:
    """All words of an error on one line (`first_line` drops the rest: hubs and Arrow explain
    themselves over several), not too long."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(words.split()), 160) or type(error).__name__
