"""Where the files of a store are: in a folder here, or behind a URL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from viq.core.files import sha256_of
from viq.core.remote import RemoteFolder, location
from viq.core.types import CodesError
from viq.store.cache_folder import CacheFolder
from viq.store.fetched import FetchedFiles
from viq.store.folder import PARQUET, Index, Shard, Store


class Place(Protocol):
    """Where the files of a store are."""

    index: Index

    def digest(self, shard: Shard) -> str:
        """What tells this file from all others: 64 hex digits."""
        ...

    def fetched(self, shard: Shard, verified: bool) -> AbstractContextManager[Path]:
        """The file on this machine, for as long as the block runs.

        Args:
            verified: refuse it if the index lists another SHA-256 than it has.
        """
        ...


def open_place(path: str | os.PathLike[str], folder: CacheFolder) -> Place:
    """The store at a path or URL. Raises `CodesError` if there is no finished one."""
    place = location(path)
    return _Remote(place, folder) if isinstance(place, str) else _Local(place)


class _Local:
    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        self.index = self._store.index

    def digest(self, shard: Shard) -> str:
        file = self._store.file(shard)
        try:
            facts = file.stat()
        except OSError as error:
            raise CodesError(f"{file}: {error.strerror}; encode again") from None
        return shard.sha256 or _digest(str(file.resolve()), facts.st_size, facts.st_mtime_ns)

    @contextmanager
    def fetched(self, shard: Shard, verified: bool) -> Iterator[Path]:
        file = self._store.file(shard)
        if verified:
            _require(file, shard, str(self._store.path))
        yield file


class _Remote:
    """Behind a URL. Files are fetched into a temporary folder inside the cache."""

    def __init__(self, url: str, folder: CacheFolder) -> None:
        store = Store(url, folder)
        self._url, self._folder, self.index = url, folder, store.index
        is_file = url.endswith(PARQUET)
        self._remote = RemoteFolder(url.rpartition("/")[0] if is_file else url)

    def digest(self, shard: Shard) -> str:
        return shard.sha256 or _digest(self._url, self._remote.token(shard.name))

    @contextmanager
    def fetched(self, shard: Shard, verified: bool) -> Iterator[Path]:
        files = FetchedFiles(self._remote, self._folder)
        try:
            files.entropy_model(self.index.info.entropy)
            file = files.file(shard.name, shard.bytes or None)
            if verified:
                _require(file, shard, self._url)
            yield file
        finally:
            files.close()


def _require(file: Path, shard: Shard, where: str) -> None:
    try:
        found = sha256_of(file) if shard.sha256 else ""
    except OSError as error:
        raise CodesError(f"{file}: {error.strerror}; encode again") from None
    if found != shard.sha256:
        raise CodesError(
            f"{where}: {shard.name} does not have the checksum that the index lists: it was "
            "damaged there or on the way, or replaced; encode again, or write a new index with viq "
            "store index"
        )


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
