"""WebDataset shards: tar files in which the files of one sample share a name.

`img7.jpg`, `img7.txt` and `img7.json` are one sample; a name ends at its first dot. Headers are
scanned once, and one offset a sample is kept: 8 bytes, however large the shards. Files of a sample
that do not follow each other are found through a few offsets more.

A shard that is damaged or cut short brings its whole samples up to there, and one row that fails.
"""

from __future__ import annotations

import tarfile
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from viq.core.files import open_regular
from viq.core.types import ViqError
from viq.core.untrusted import UntrustedError
from viq.data.sources.base import (
    RECORD_BYTES,
    ImageRange,
    ImageRef,
    Row,
    Source,
    SourceError,
    Wanted,
    because,
    labels,
    place,
    read_range,
    record,
)
from viq.image.open import IMAGE_SUFFIXES

_BLOCK = 512  # bytes; a tar file ends with blocks of zeros
_PADDING = 2**20  # bytes of zeros after the end mark that are looked at; `tar` writes 10 KiB
_HEADER_BYTES = 16 * 2**20  # of what a header brings along: long names, attributes
_MEMBERS = 10_000  # files of one sample
_IMAGES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


class TarSource(Source):
    """The samples of tar files, in order. A key is "shard/sample", without ".tar"; so is a name.

    Suffixes are compared and kept in lower case. Members with that of an image are the images, in
    the order of the tar file. `.txt` or `.caption` becomes extras["caption"]; the fields of `.json`
    are merged into extras; all other members are there as bytes, under their suffix without the
    dot. Of members with the same name the last counts, as when a tar file is unpacked.

    Args:
        called: what to call each shard; by default its file name, or path.
        alone: whether it is an error if all shards are damaged and none has a whole sample.
        wanted: of fields and members, those to bring.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        called: Sequence[str] | None = None,
        alone: bool = True,
        wanted: Wanted | None = None,
    ) -> None:
        self._shards = [
            _Shard(path, label) for path, label in zip(paths, called or labels(paths), strict=True)
        ]
        self._wanted = wanted or Wanted()
        self._first: list[int] = []  # row of each shard
        self._length = 0
        for shard in self._shards:
            self._first.append(self._length)
            self._length += len(shard)
        if alone and self._shards and all(s.error and not s.starts for s in self._shards):
            raise SourceError(self._shards[0].error)

    def __len__(self) -> int:
        return self._length

    def keys(self) -> Iterator[str]:
        """The keys of all rows in order; reads the headers once more."""
        return (_key(shard.label, name) for shard in self._shards for name in shard.names())

    def key(self, index: int) -> str:
        shard, number = self._find(index)
        return _key(shard.label, shard.name(number))

    def where(self, index: int) -> str:
        shard, number = self._find(index)
        return place(shard.label, shard.name(number) or None)

    def names(self) -> Iterator[str]:
        """Of the shard, its file name alone; a key has its path where names are not unique."""
        return (_key(shard.path.name, name) for shard in self._shards for name in shard.names())

    def leftovers(self) -> dict[str, int]:
        return dict(sum((shard.leftovers for shard in self._shards), Counter[str]()))

    def _find(self, index: int) -> tuple[_Shard, int]:
        """The shard of a row, and the number of the row in it."""
        shard = bisect_right(self._first, index) - 1
        return self._shards[shard], index - self._first[shard]

    def _row(self, index: int) -> Row:
        shard, number = self._find(index)
        if number == len(shard.starts):
            raise SourceError(shard.error)
        sample, where, members = "", shard.label, dict[str, tuple[str, tarfile.TarInfo]]()
        try:
            for name, suffix, member in shard.members(number):
                sample, where = name, place(shard.label, name)
                members[member.name] = suffix, member
            if not members:
                raise EOFError("it is not there any more")
            images, extras = _content(shard.path, members, where)
        except UntrustedError:
            raise
        except (tarfile.TarError, OSError, EOFError, ValueError, ViqError) as error:
            raise SourceError(
                f"{where}: text or fields cannot be read ({because(error)}); write the sample again"
            ) from error
        return Row(
            key=_key(shard.label, sample),
            images=images,
            extras=self._wanted.of(extras),
            where=where,
        )


class _Shard:
    """Where the samples of one tar file are.

    Attributes:
        starts: of the first header of each whole sample.
        error: why it has no more, or "".
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label
        self.starts = array("Q")
        self.error = ""
        self.leftovers = Counter[str]()
        self._more: dict[int, list[int]] = {}  # sample: headers at which it goes on
        self._index()

    def __len__(self) -> int:
        return len(self.starts) + bool(self.error)

    def names(self) -> Iterator[str]:
        """The names of the samples, and "" for the row that fails."""
        found = 0
        try:
            for member, _ in _headers(self.path):
                if found == len(self.starts):
                    break
                if member.offset == self.starts[found]:
                    yield (_names(member) or ("",))[0]
                    found += 1
        except (tarfile.TarError, OSError, EOFError, ViqError):
            pass  # the file has changed; what follows is met again, row by row
        yield from (f"row {number}" for number in range(found, len(self.starts)))
        if self.error:
            yield ""

    def name(self, number: int) -> str:
        """One of `names`, without the others."""
        if number == len(self.starts):
            return ""
        try:
            return next(self.members(number))[0]
        except (tarfile.TarError, OSError, EOFError, ViqError, StopIteration):
            return f"row {number}"

    def members(self, number: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
        """(name of the sample, suffix without its dot, header) of the files of a sample."""
        sample, count = None, 0
        for start in (self.starts[number], *self._more.get(number, ())):
            for member in self._whole(start):
                if not (names := _names(member)):
                    continue
                if names[0] != (sample := sample or names[0]):
                    break
                if (count := count + 1) > _MEMBERS:
                    raise tarfile.ReadError(f"more than {_MEMBERS:,} files in one sample")
                yield *names, member

    def _whole(self, start: int) -> Iterator[tarfile.TarInfo]:
        """The headers from byte `start` on, up to where the file is known to be damaged."""
        first = None
        try:
            for first, _ in _headers(self.path, start):
                yield first
        except Exception:
            if first is None or not self.error:
                raise

    def _index(self) -> None:
        """Find where samples start, and where the file is damaged."""
        seen: dict[str, int] = {}  # number of each sample
        known: set[str] = set()
        previous, end, counts = "", 0, [0, 0]  # files of the sample before, and of this one
        try:
            for member, end in _headers(self.path):  # noqa: B007 (told at the end)
                names = _names(member)
                if names is None:
                    self.leftovers["members that belong to no sample"] += not member.isdir()
                    continue
                self.leftovers["members with a later one of the same name"] += member.name in known
                known.add(member.name)
                if names[0] != previous:
                    previous, counts = names[0], [counts[1], 0]
                    if previous in seen:
                        self._more.setdefault(seen[previous], []).append(member.offset)
                    else:
                        seen[previous] = len(self.starts)
                        self.starts.append(member.offset)
                counts[1] += 1
            if _check_end(self.path, end):
                self.leftovers["bytes after the end of a tar file"] += _size(self.path) - end
        except Exception as error:  # of a damaged header, of many types
            # The last sample is taken for whole if it has as many files as the one before. One
            # that goes on from an earlier place fails when it is read.
            is_new = seen.get(previous) == len(self.starts) - 1
            if is_new and (counts[1] < counts[0] or end > _size(self.path)):
                self.starts.pop()
            self.error = (
                f"{place(self.label)}: is no tar file, or is compressed, damaged or cut short"
                f" ({because(error)}; {len(self.starts)} samples are whole); fetch or write it"
                " again, uncompressed"
            )
        self.leftovers = +self.leftovers


def _content(
    path: Path, members: dict[str, tuple[str, tarfile.TarInfo]], where: str
) -> tuple[tuple[ImageRef, ...], dict[str, Any]]:
    """The images and fields of one sample."""
    images = list[ImageRef]()
    fields: dict[str, Any] = {}
    captions: dict[str, Any] = {}
    for suffix, member in members.values():
        span = (path, member.offset_data, member.size)
        if member.sparse is not None:
            raise tarfile.ReadError(f"{member.name[:80]} is stored with holes in it")
        if suffix.rpartition(".")[2] in _IMAGES:
            images.append(ImageRange(*span))
            continue
        data = read_range(*span, RECORD_BYTES)
        if suffix in ("txt", "caption"):
            captions["caption" if not captions else suffix] = data.decode()
        elif suffix == "json":
            value = record(data, where)
            fields |= value if isinstance(value, dict) else {"json": value}
        else:
            fields[suffix] = data
    return tuple(images), fields | captions


def _key(label: str, name: str) -> str:
    return f"{label.removesuffix('.tar')}/{name}" if name else label


def _names(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Name of the sample and suffix; None for what is no file of a sample."""
    folder, slash, file = member.name.rpartition("/")
    stem, _, suffix = file.partition(".")
    # Without a stem it is a hidden file; names with two underscores are about the shard.
    if not member.isreg() or not stem or stem.startswith("__"):
        return None
    return f"{folder}{slash}{stem}", suffix.lower()


class _Bounded:
    """A tar file, of which no more is read at a time than a header may take."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _headers(path: Path, start: int = 0) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The headers of a tar file from byte `start` on, and where the next one after each is."""
    with open_regular(path) as stream:
        stream.seek(start)
        with tarfile.open(fileobj=cast(IO[bytes], _Bounded(stream)), mode="r:") as tar:
            while (member := tar.next()) is not None:
                # It would keep every header it has seen.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                if member.size < 0 or tar.offset <= member.offset:
                    raise tarfile.ReadError(f"the header at byte {member.offset} leads back")
                yield member, tar.offset


def _check_end(path: Path, end: int) -> bool:
    """Raise where `tarfile` stops without a word: members end at `end`, and zeros must follow.

    Returns:
        Whether more follows, as where tar files were joined by `cat`.
    """
    if _size(path) < end:
        raise EOFError(f"ends before byte {end}")
    with open_regular(path) as stream:
        stream.seek(end)
        mark = stream.read(_BLOCK)
        if any(mark):
            raise tarfile.ReadError(f"no header at byte {end}")
        if not mark:  # cut between two members, or never finished
            raise EOFError(f"no end mark at byte {end}")
        return any(stream.read(_PADDING))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
