"""Where the files of a store are: in a folder here, or behind a URL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from viq.codec.entropy_model import ENTROPY_BYTES, beside
from viq.core.files import sha256_of
from viq.core.remote import RemoteFolder, location
from viq.core.types import CodesError
from viq.store.cache_folder import CacheFolder
from viq.store.fetched import FetchedFiles
from viq.store.folder import PARQUET, Index, Shard, Store


class Place(Protocol):
    """Where the files of a store are."""

    index: Index
    can_fetch_ranges: bool

    def digest(self, shard: Shard) -> str:
        """What tells this file from all others: 64 hex digits."""
        ...

    def fetched(self, shard: Shard, verified: bool) -> AbstractContextManager[Path]:
        """The file on this machine, for as long as the block runs.

        Args:
            verified: refuse it if the index lists another SHA-256 than it has.
        """
        ...

    def read_range(self, shard: Shard, start: int, stop: int) -> bytes:
        """Some bytes of the file, if the place can fetch ranges. Raises `RemoteError`."""
        ...

    def entropy_model(self, folder: Path) -> None:
        """Write what compressed the codes, if it lies there, into a folder."""
        ...


def open_place(path: str | os.PathLike[str], folder: CacheFolder) -> Place:
    """The store at a path or URL. Raises `CodesError` if there is no finished one."""
    place = location(path)
    return _Remote(place, folder) if isinstance(place, str) else _Local(place)


class _Local:
    can_fetch_ranges = False

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

    def read_range(self, shard: Shard, start: int, stop: int) -> bytes:
        raise NotImplementedError("files of this machine are at hand")

    def entropy_model(self, folder: Path) -> None:
        raise NotImplementedError("it lies beside the files")


class _Remote:
    """Behind a URL. Files are fetched into a temporary folder inside the cache."""

    def __init__(self, url: str, folder: CacheFolder) -> None:
        store = Store(url, folder)
        self._url, self._folder, self.index = url, folder, store.index
        is_file = url.endswith(PARQUET)
        self._remote = RemoteFolder(url.rpartition("/")[0] if is_file else url)
        self.can_fetch_ranges = self._remote.has_ranges
        self._begin()

    def _begin(self) -> None:
        self._model: bytes | None = None  # b"" if there is none
        self._lock, self._process = Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_model", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def digest(self, shard: Shard) -> str:
        return shard.sha256 or _digest(self._url, self._remote.token(shard.name))

    @contextmanager
    def fetched(self, shard: Shard, verified: bool) -> Iterator[Path]:
        files = FetchedFiles(self._remote, self._folder)
        try:
            self.entropy_model(files.here)
            file = files.file(shard.name, shard.bytes or None)
            if verified:
                _require(file, shard, self._url)
            yield file
        finally:
            files.close()

    def read_range(self, shard: Shard, start: int, stop: int) -> bytes:
        return self._remote.read_range(shard.name, start, stop)

    def entropy_model(self, folder: Path) -> None:
        """Asked for once, not for each shard: there it takes a request or two."""
        digest = self.index.info.entropy
        if not digest:
            return
        if self._process != os.getpid():
            self._begin()  # forked, perhaps while a thread of the other process held the lock
        with self._lock:
            if self._model is None:
                self._model = self._remote.read(beside(digest), ENTROPY_BYTES) or b""
        if self._model:
            (folder / beside(digest)).write_bytes(self._model)


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
