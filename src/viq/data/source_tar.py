"""WebDataset shards: tar files in which the files of one sample share a name and follow each other.

`img7.jpg`, `img7.txt` and `img7.json` are one sample; a name ends at its first dot. Headers are
scanned once, and one offset a sample is kept: 8 bytes, however large the shards.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from viq.data.source_base import (
    ImageRange,
    ImageRef,
    Row,
    Source,
    SourceError,
    because,
    labels,
    read_range,
)
from viq.image import IMAGE_SUFFIXES

_BLOCK = 512  # a tar file consists of blocks of this size


class TarSource(Source):
    """The samples of tar files, in order. A key is "shard/sample", without ".tar"; so is a name.

    Members with the suffix of an image are the images, in the order of the tar file. `.txt` or
    `.caption` becomes extras["caption"]; the fields of `.json` are merged into extras; all other
    members are there as bytes, under their suffix without the dot.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards = list(zip(paths, labels(paths), strict=True))
        self._starts = array("Q")  # of the first header of each sample
        self._first: list[int] = []  # sample of each shard
        for path, label in self._shards:
            self._first.append(len(self._starts))
            self._starts.extend(_index(path, label))

    def __len__(self) -> int:
        return len(self._starts)

    def keys(self) -> Iterator[str]:
        """The keys of all rows in order; reads the headers once more."""
        return (_key(label, sample) for _, label, sample in self._samples())

    def names(self) -> Iterator[str]:
        """Of the shard, its file name alone; a key has its path where names are not unique."""
        return (_key(path.name, sample) for path, _, sample in self._samples())

    def _samples(self) -> Iterator[tuple[Path, str, str]]:
        """(shard, what it is called, sample) of all rows in order."""
        for path, label in self._shards:
            previous = None
            for name, _, _ in _files(path):
                if name != previous:
                    yield path, label, name
                previous = name

    def _row(self, index: int) -> Row:
        path, label = self._shards[bisect_right(self._first, index) - 1]
        sample, images = "", list[ImageRef]()
        fields: dict[str, Any] = {}
        caption: dict[str, Any] = {}
        try:
            for name, suffix, member in _files(path, self._starts[index]):
                if name != (sample := sample or name):
                    break
                place = (path, member.offset_data, member.size)
                if f".{suffix.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES:
                    images.append(ImageRange(*place))
                elif suffix in ("txt", "caption"):
                    caption = {"caption": read_range(*place).decode()}
                elif suffix == "json":
                    value = json.loads(read_range(*place))
                    fields |= value if isinstance(value, dict) else {"json": value}
                else:
                    fields[suffix] = read_range(*place)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise SourceError(
                f"{label}:{sample}: text or fields cannot be read ({because(error)}); write the"
                " sample again"
            ) from error
        return Row(
            key=_key(label, sample),
            images=tuple(images),
            extras=fields | caption,
            where=f"{label}:{sample}",
        )


def _key(label: str, name: str) -> str:
    return f"{label.removesuffix('.tar')}/{name}"


def _files(path: Path, start: int = 0) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(name of the sample, suffix without its dot, header) of the files from `start` on."""
    for member in _headers(path, start):
        if names := _names(member):
            yield *names, member


def _names(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Name of the sample and suffix; None for what is no file of a sample."""
    folder, slash, file = member.name.rpartition("/")
    stem, _, suffix = file.partition(".")
    # Without a stem it is a hidden file; names with two underscores are about the shard.
    if not member.isreg() or not stem or stem.startswith("__"):
        return None
    return f"{folder}{slash}{stem}", suffix


def _headers(path: Path, start: int = 0) -> Iterator[tarfile.TarInfo]:
    with open(path, "rb") as stream:
        stream.seek(start)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # It would keep every header it has seen.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                yield member


def _index(path: Path, label: str) -> Iterator[int]:
    """Where each sample starts. Raises `SourceError` if the shard is damaged or not in order."""
    seen: set[str] = set()
    previous, end = None, 0
    try:
        for member in _headers(path):
            end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            names = _names(member)
            if names is None or names[0] == previous:
                continue
            previous = names[0]
            if previous in seen:
                raise SourceError(
                    f"{label}: the files of sample {previous} do not follow each other; write the"
                    " shard in the order of names (tar --sort=name)"
                )
            seen.add(previous)
            yield member.offset
        _check_end(path, end)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(
            f"{path}: is no tar file, or is compressed, damaged or cut short ({because(error)});"
            " fetch or write it again, uncompressed"
        ) from error


def _check_end(path: Path, end: int) -> None:
    """Raise where `tarfile` stops without a word: members end at `end`, and zeros must follow."""
    if path.stat().st_size < end:
        raise EOFError(f"ends before byte {end}")
    with open(path, "rb") as stream:
        stream.seek(end)
        if any(stream.read(_BLOCK)):
            raise tarfile.ReadError(f"no header at byte {end}")
