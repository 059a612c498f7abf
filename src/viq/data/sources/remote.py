"""What lies behind URLs: pictures, tar files and Parquet files, alone, in folders and by patterns.

Pictures are fetched one by one. Of a tar or Parquet file a copy is made here, in the cache, and
read as any other; once to count its rows, and again if 4 GiB of other copies have come since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from viq.core.remote import RemoteError, RemoteFolder
from viq.core.types import ViqError
from viq.data.sources.access import is_chain, require_scheme, scheme_of
from viq.data.sources.base import (
    Damaged,
    ImageRange,
    Row,
    Source,
    SourceError,
    because,
    place,
)
from viq.data.sources.tables import holds_codes
from viq.store.fetched import FetchedFiles

Opened = Callable[[Path, str], Source]  # of a file here, and what to call it


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL.

    Attributes:
        url: of the file.
        size: bytes.
    """

    url: str
    size: int

    @property
    def folder(self) -> str:
        return self.url.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def find_remote(
    url: str, patterns: Iterable[str], is_file: Callable[[str], bool]
) -> list[RemoteFile]:
    """The files at a URL, below it, or of a pattern; none that are hidden.

    Of http and https the file alone: there is nothing to list.

    Args:
        patterns: the URLs that it stands for, with their braces replaced.
        is_file: whether a URL without a `*` names a file rather than a folder.

    Raises:
        SourceError: a chain of file systems, or it cannot be listed.
    """
    if is_chain(url):
        raise SourceError(f"{place(url)}: chains of file systems (::) are not read; fetch it")
    require_scheme(scheme_of(url), place(url))
    if scheme_of(url) in ("http", "https"):
        return [RemoteFile(url, 0)]
    found: list[RemoteFile] = []
    for pattern in patterns:
        if "*" not in pattern and "?" not in pattern and is_file(pattern):
            found.append(RemoteFile(pattern, 0))
            continue
        try:
            found += _listed(pattern)
        except Exception as error:  # each file system raises its own types
            raise SourceError(f"{place(pattern)}: cannot be listed ({because(error)})") from error
    return found


def _listed(pattern: str) -> list[RemoteFile]:
    from fsspec.core import url_to_fs

    files, path = url_to_fs(pattern)
    find = files.glob if "*" in path or "?" in path else files.find
    found: dict[str, Any] = find(path, detail=True)
    listed = [
        RemoteFile(str(files.unstrip_protocol(name)), int(facts["size"] or 0))
        for name, facts in found.items()
        if facts["type"] == "file"
    ]
    return sorted((f for f in listed if not f.name.startswith(".")), key=lambda file: file.url)


def open_remote(files: Sequence[RemoteFile], opened: Opened, alone: bool) -> list[Source]:
    """Tar or Parquet files behind URLs, in this order, but for those that hold codes.

    Args:
        opened: opens the copy of one.
        alone: whether one that is damaged as a whole is an error, not a row that fails.

    Raises:
        RemoteError: one cannot be fetched.
    """
    folders = {url: FetchedFiles(RemoteFolder(url)) for url in {file.folder for file in files}}
    uses = Counter(file.name for file in files)
    sources: list[Source] = []
    for file in files:
        label, copies = file.name if uses[file.name] == 1 else file.url, folders[file.folder]
        try:
            with copies.held(file.name, file.size or None) as path:
                if not alone and holds_codes(path):
                    continue
                sources.append(_CopiedFile(copies, file, opened(path, label)))
        except (ViqError, OSError, ValueError, MemoryError) as error:
            if alone or isinstance(error, RemoteError):
                raise
            text = str(error) if isinstance(error, ViqError) else because(error)
            sources.append(Damaged(label, SourceError(f"{place(label)}: {text}")))
    return sources


class _CopiedFile(Source):
    """A file behind a URL, read from its copy here, which may come and go."""

    def __init__(self, copies: FetchedFiles, file: RemoteFile, source: Source) -> None:
        self._copies, self._file, self._source = copies, file, source
        self.has_extras, self._leftovers = source.has_extras, source.leftovers()

    def __len__(self) -> int:
        return len(self._source)

    def keys(self) -> Iterator[str]:
        with self._held():
            yield from self._source.keys()

    def names(self) -> Iterator[str]:
        with self._held():
            yield from self._source.names()

    def key(self, index: int) -> str:
        with self._held():
            return self._source.key(index)

    def where(self, index: int) -> str:
        return self._source.where(index)

    def leftovers(self) -> dict[str, int]:
        return self._leftovers

    def _row(self, index: int) -> Row:
        with self._held():
            row = self._source[index]
        images = (_InCopy(r, self._held) if isinstance(r, ImageRange) else r for r in row.images)
        return replace(row, images=tuple(images))

    def _held(self) -> AbstractContextManager[Path]:
        return self._copies.held(self._file.name, self._file.size or None)


@dataclass(frozen=True)
class _InCopy:
    """An image in the copy of a file, which is there while it is read."""

    image: ImageRange
    held: Callable[[], AbstractContextManager[Path]]

    def read(self) -> bytes:
        with self.held():
            return self.image.read()
