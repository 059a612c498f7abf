"""Files of a store behind a URL, copied to this machine one after another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock, RLock
from typing import Any
from weakref import finalize

from viq.codec.entropy_model import ENTROPY_BYTES, beside
from viq.core.files import cache_home
from viq.core.names import hashed
from viq.core.remote import RemoteFolder
from viq.store.cache_folder import CacheFolder

PARQUET = ".parquet"
_HELD = 4 << 30  # bytes of files that are kept for whoever asks again


class FetchedFiles:
    """Local copies of files of a remote folder, in a folder of the cache that goes with this.

    Args:
        remote: where they are.
        cache: the folder of a cache; None for that of the user.
    """

    def __init__(self, remote: RemoteFolder, cache: CacheFolder | None = None) -> None:
        self.remote = remote
        self._cache = cache or CacheFolder(cache_home())
        self._here: Path | None = None
        self._end: finalize | None = None
        self._held: dict[str, int] = {}  # bytes by name, oldest first
        self._used = Counter[str]()  # by how many threads
        self._lock = RLock()  # of the two above
        self._fetching: dict[str, Lock] = {}  # each file by one thread

    def __reduce__(self) -> Any:
        return FetchedFiles, (self.remote, self._cache)  # another process has copies of its own

    @contextmanager
    def held(self, name: str, limit: int | None = None) -> Iterator[Path]:
        """The copy of a file, which stays until the block ends, whatever other threads ask for."""
        with self._lock:
            self._used[name] += 1
            fetching = self._fetching.setdefault(name, Lock())
        try:
            with fetching:
                if not self._path(name).is_file():  # others clear caches of what looks abandoned
                    self.forget(name)
                path = self.file(name, limit)
            yield path
        finally:
            with self._lock:
                self._used[name] -= 1

    @property
    def here(self) -> Path:
        """The folder of the copies."""
        with self._lock:
            if self._here is None:
                stack = ExitStack()
                self._here = stack.enter_context(self._cache.fetching())
                self._end = finalize(self, _close, stack, os.getpid())
            return self._here

    def file(self, name: str, limit: int | None = None) -> Path:
        """The copy of a file; it stays while few others are asked for.

        Args:
            name: one that was checked.
            limit: bytes that it may have.
        """
        path = self._path(name)
        if name not in self._held:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.remote.get(name, path, limit)
            with self._lock:
                self._held[name] = path.stat().st_size
                self._make_room(name)
        return path

    def entropy_model(self, digest: str) -> None:
        """Put the entropy model that compressed the codes, if it lies there, beside the copies."""
        name = beside(digest)
        if digest and name not in self._held and self.remote.size(name) is not None:
            self.file(name, ENTROPY_BYTES)

    def close(self) -> None:
        """Remove all copies."""
        if self._end is not None:
            self._end()
        self._here, self._held = None, {}

    def forget(self, name: str) -> None:
        """Remove a copy."""
        with self._lock:
            if self._held.pop(name, None) is not None:
                self._path(name).unlink(missing_ok=True)  # made by `file`, in a folder of its own

    def _path(self, name: str) -> Path:
        folder, slash, last = name.rpartition("/")
        return self.here / hashed(folder) / last if slash else self.here / name

    def _make_room(self, name: str) -> None:
        models = [n for n in self._held if n.startswith("_")]
        for other in [n for n in self._held if n != name and n not in models and not self._used[n]]:
            if sum(self._held.values()) <= _HELD:
                return
            self.forget(other)


def _close(stack: ExitStack, process: int) -> None:
    if os.getpid() == process:  # not in one that was forked from it
        stack.close()
