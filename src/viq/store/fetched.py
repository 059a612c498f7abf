"""Files of a store behind a URL, copied to this machine one after another."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
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

    @property
    def here(self) -> Path:
        """The folder of the copies."""
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
            self.remote.get(name, path, limit)
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
        if self._held.pop(name, None) is not None:
            self._path(name).unlink(missing_ok=True)  # made by `file`, in a folder of its own

    def _path(self, name: str) -> Path:
        return self.here / (f"{hashed(name)}{PARQUET}" if "/" in name else name)

    def _make_room(self, name: str) -> None:
        models = [n for n in self._held if n.startswith("_")]
        for other in [n for n in self._held if n != name and n not in models]:
            if sum(self._held.values()) <= _HELD:
                return
            self.forget(other)


def _close(stack: ExitStack, process: int) -> None:
    if os.getpid() == process:  # not in one that was forked from it
        stack.close()
