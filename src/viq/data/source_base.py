"""What every kind of input has in common: rows, images that are read when asked for, and errors.

Images and text stay where they are until a row is asked for, and each read opens the file anew:
nothing is shared between threads, and thousands of shards take no file descriptors.
"""

from __future__ import annotations

import base64
import binascii
import operator
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from viq.image import ImageError, open_image
from viq.types import ViqError


class SourceError(ViqError):
    """An input or one of its rows cannot be used. One line: what, where, how to mend."""


class ImageRef(Protocol):
    """Where the bytes of one image are."""

    def read(self) -> bytes | Path:
        """What `viq.image.open_image` takes. Raises `ImageError` if it cannot be fetched."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample of a source.

    Attributes:
        key: the same from run to run, and unique within the source (keys that the data brings
            itself are taken at their word).
        images: none for a text-only sample; read when asked for.
        extras: every other field, untouched: captions, conversations, ...
        where: the place of the row, for messages: "data.jsonl:12", "shard-0003.tar:img7".
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
        if isinstance(data, Path) and str(data) != self.where:
            name = f"{name}: {data}"
        return open_image(data, name=name)


class Source(ABC):
    """A sequence of rows. Any thread may read any row at any time.

    `source[i]` raises `SourceError` for a row that is damaged and leaves the others usable, so a
    job that must not stop goes over `range(len(source))` and catches it row by row.

    Attributes:
        has_extras: whether a row may bring more than images.
    """

    has_extras: bool = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """The keys of all rows in order, without reading images."""

    def key(self, index: int) -> str:
        """The key of a row, even of a damaged one. Most kinds go over the keys before it."""
        return next(islice(self.keys(), index, None))

    @abstractmethod
    def _row(self, index: int) -> Row:
        """Row `index`, which lies in 0..len-1."""

    def names(self) -> Iterator[str]:
        """What each row is called wherever the data lie and however their place was typed.

        Training chooses by it what it holds out. Unlike keys, names may repeat.
        """
        return self.keys()

    def __getitem__(self, index: int) -> Row:
        return self._row(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[Row]:
        return (self._row(index) for index in range(len(self)))


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
            data = read_range(self.path, self.offset, self.size)
        except (OSError, EOFError) as error:
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


@dataclass(frozen=True)
class ImageUrl:
    """A URL of any scheme that fsspec knows."""

    url: str

    def read(self) -> bytes:
        try:
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(self.url)
            return filesystem.cat_file(path)
        except FileNotFoundError:  # of HTTP, it says nothing but the URL
            raise ImageError(f"{self.url}: does not exist; check the URL") from None
        except Exception as error:  # each file system raises its own types
            raise ImageError(f"{self.url}: cannot be fetched ({because(error)})") from error


def image_at(place: str, root: Path) -> ImageRef:
    """The image at a URL, or at a path relative to `root`."""
    return ImageUrl(place) if is_url(place) else ImageFile(root / place)


def is_url(place: str) -> bool:
    return "://" in place


def read_range(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on. Raises `OSError`, or `EOFError` if it is shorter."""
    with open(path, "rb") as stream:
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

    def read(self, index: int) -> bytes:
        try:
            return read_range(self.path, self.starts[index], self.sizes[index])
        except (OSError, EOFError) as error:
            raise SourceError(f"{self.path}: {because(error)}; open the source again") from error


def lines(path: Path, keep: Callable[[bytes], object]) -> Spans:
    """The lines of a file that `keep` accepts (it sees them stripped), numbered from 1."""

    def find() -> Iterator[tuple[int, int, int]]:
        start = 0
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if keep(line.strip()):
                    yield start, len(line), number
                start += len(line)

    return Spans.of(path, find())


def labels(paths: Sequence[Path]) -> list[str]:
    """What to call each of some shards: its file name, or its path where the name is not unique."""
    uses = Counter(path.name for path in paths)
    return [path.name if uses[path.name] == 1 else path.as_posix() for path in paths]


def because(error: BaseException) -> str:
    """The words of an error on one line, not too long."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:160] or type(error).__name__


def missing(name: str, what: str) -> SourceError:
    """The error for an optional library that is not installed."""
    return SourceError(f"{what} needs {name}; run: pip install 'viq[data]'")
