"""Where the files of a store are: in a folder here, or behind a URL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from viq.codec.entropy_model import ENTROPY_BYTES, beside
from viq.core.errors import require
from viq.core.files import sha256_of
from viq.core.types import CodesError
from viq.core.untrusted import INDEX_BYTES
from viq.store.cache_folder import CacheFolder
from viq.store.folder import INDEX, PARQUET, Index, Shard, Store


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
    return _Remote(str(path), folder) if "://" in str(path) else _Local(Path(path))


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
        with require("fsspec", "data", url):
            from fsspec.core import url_to_fs
        self._url, self._folder = url, folder
        with self._reported(""):
            self._fs, root = url_to_fs(url)
        self._root = root.rstrip("/")
        if url.endswith(PARQUET):
            self._root, _, self._single = self._root.rpartition("/")
            with self._fetch({self._single: None}) as here:
                self.index = Store(here / self._single).index
        else:
            with self._reported(INDEX), self._fs.open(self._path(INDEX), "rb") as file:
                data = file.read(INDEX_BYTES + 1)
            if len(data) > INDEX_BYTES:
                raise CodesError(f"{url}/{INDEX}: has more than {INDEX_BYTES:,} bytes")
            self.index = Index.from_json(data, f"{url}/{INDEX}")

    def digest(self, shard: Shard) -> str:
        if shard.sha256:
            return shard.sha256
        with self._reported(shard.name):
            return _digest(self._url, self._fs.ukey(self._path(shard.name)))

    @contextmanager
    def fetched(self, shard: Shard, verified: bool) -> Iterator[Path]:
        entropy = self.index.info.entropy
        models = {beside(entropy): ENTROPY_BYTES} if entropy else {}
        with self._fetch({shard.name: shard.bytes or None}, models) as here:
            if verified:
                _require(here / shard.name, shard, self._url)
            yield here / shard.name

    def _path(self, name: str) -> str:
        """`name` is the index, one that `Index.from_json` has checked, or of the user's URL."""
        return f"{self._root}/{name}"

    @contextmanager
    def _fetch(
        self, wanted: Mapping[str, int | None], optional: Mapping[str, int] | None = None
    ) -> Iterator[Path]:
        """A folder with these files, by name with the bytes that each may have."""
        with self._folder.fetching() as here:
            for name, limit in wanted.items():
                with self._reported(name):
                    self._get(name, here / name, limit)
            for name, limit in (optional or {}).items():
                with self._reported(name), suppress(FileNotFoundError):
                    self._get(name, here / name, limit)
            yield here

    def _get(self, name: str, to: Path, limit: int | None) -> None:
        from fsspec.callbacks import Callback

        class Limited(Callback):
            def call(self, *_: Any, **__: Any) -> None:
                if limit is not None and self.value > limit:
                    raise CodesError(f"it has more than the {limit:,} bytes that were expected")

        self._fs.get_file(self._path(name), str(to), callback=Limited())

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Every failure as one line; which library raises what, fsspec does not say."""
        try:
            yield
        except FileNotFoundError:
            raise CodesError(
                f"{self._url}: has no {name}; is it a finished store of codes?"
            ) from None
        except Exception as error:
            reason = " ".join(str(error).split())
            raise CodesError(
                f"{self._url}: {name} cannot be fetched ({type(error).__name__}: {reason})"
            ) from None


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
