"""The folder of unpacked shards: one that viq made and marked, so all that it removes is its own.

A cache may be given anywhere, and whatever lies there belongs to somebody else. So the files lie in
a folder `viq-cache` inside the given one, which is made here with a mark in it. A folder of that
name without the mark is refused, and so is that of another user, who could put other codes into it.
Even in ours nothing is removed but what has exactly the name of an unpacked shard, of one in the
making, or of a fetch.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from viq.core.files import age, folder_aside, is_plain, open_regular, remove_leftovers
from viq.core.types import ViqError

CACHE = "viq-cache"
MARK = "CACHEDIR.TAG"  # by the Cache Directory Tagging convention, so that backups pass over it
_MARK = b"""Signature: 8a477f597d28d172789f06886806bc55
# Made by viq, which removes unpacked shards and its own temporary files from this folder.
# It can be removed as a whole at any time. https://bford.info/cachedir/
"""
_LAYOUT = 2  # of unpacked files; part of their names
_UNPACKED = re.compile(r"[0-9a-f]{64}-\d{1,4}\.arrow")  # of any layout
_FETCH = re.compile(r"\.fetch-[0-9a-f]{16}")
_ABANDONED = 3600  # seconds after which nobody writes a half-written file any more


class CacheFolder:
    """The folder `viq-cache` inside a folder.

    Args:
        parent: made, when it is needed, if it does not exist.
    """

    def __init__(self, parent: Path) -> None:
        self._path = parent / CACHE

    def file(self, digest: str) -> Path:
        """Where the unpacked shard of this digest, 64 hex digits, is or goes.

        Raises:
            ViqError: the folder cannot be made, or there is one that is not ours.
        """
        self._ensure()
        return self._path / f"{digest}-{_LAYOUT}.arrow"

    def remove(self, path: Path) -> None:
        """Remove an unpacked shard; who has mapped it keeps it."""
        if path.parent == self._path and _UNPACKED.fullmatch(path.name) and is_plain(path):
            path.unlink(missing_ok=True)  # in our marked folder, and of a name we give

    @contextmanager
    def fetching(self) -> Iterator[Path]:
        """An empty folder for files that are on their way, removed when the block ends."""
        self._ensure()
        here = self._path / f".fetch-{secrets.token_hex(8)}"
        here.mkdir(mode=0o700)
        try:
            yield here
        finally:
            shutil.rmtree(here, ignore_errors=True)  # made above, by mkdir, which refuses others

    def make_room(self, wanted: int, max_bytes: int) -> None:
        """Remove what was used longest ago until `wanted` bytes fit, and what was abandoned."""
        remove_leftovers(self._path, _UNPACKED.fullmatch, older_than=_ABANDONED)
        files = []
        for path in self._path.iterdir():
            with suppress(FileNotFoundError):
                if _UNPACKED.fullmatch(path.name) and is_plain(path):
                    facts = path.stat()
                    files.append((facts.st_mtime, facts.st_size, path))
                elif _FETCH.fullmatch(path.name) and age(path) > _ABANDONED:
                    # A name of `fetching`, in our marked folder; links in it are not followed.
                    shutil.rmtree(path, ignore_errors=True)
        total = wanted + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= max_bytes:
                break
            self.remove(path)
            total -= size

    def _ensure(self) -> None:
        """Make the folder with its mark, if there is none."""
        try:
            if not os.path.lexists(self._path):
                self._make()
            with open_regular(self._path / MARK) as file:
                ours = file.read(len(_MARK) + 1) == _MARK and _is_mine(self._path)
        except FileNotFoundError:
            ours = False
        except (OSError, ViqError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ViqError(
                f"{self._path}: cannot be used ({reason}); give another folder as cache"
            ) from None
        if not ours:
            raise ViqError(
                f"{self._path}: was not made by viq for this user, and viq removes files from its "
                "cache; give another folder as cache"
            )

    def _make(self) -> None:
        try:
            with folder_aside(self._path) as aside:
                (aside / MARK).write_bytes(_MARK)
        except OSError:
            if not os.path.lexists(self._path):  # else another process has just made it
                raise


def _is_mine(folder: Path) -> bool:
    return not hasattr(os, "geteuid") or os.stat(folder).st_uid == os.geteuid()
