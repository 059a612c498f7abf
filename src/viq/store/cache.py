"""Random access to the shards of a store, here or remote, through a cache of unpacked shards.

Parquet is made to be read in groups of rows: to see one image, its whole group is decompressed.
So a shard that is read at random is written once as an uncompressed Arrow file into a cache folder
of bounded size, and mapped from there by all processes of the machine. Shards of remote stores come
the same way. docs/codes.md has what that gains.

Processes share the cache without locks: files are named after what they hold and are whole or
absent, two processes that unpack a shard write the same, and one that misses it unpacks it again.
Threads of one process wait for each other, so that each shard is unpacked once.

A shard is filed under the SHA-256 that the index lists only if it has that SHA-256, so no store can
put anything in the place of a shard of another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

from viq.core.files import written_aside
from viq.core.remote import location
from viq.core.types import CodesError, ViqError
from viq.store.cache_folder import CacheFolder
from viq.store.folder import Shard
from viq.store.places import open_place
from viq.store.ranges import Ranges, fetching_ranges
from viq.store.rows import CodesReader
from viq.store.unpacked import RottenError, write
from viq.store.views import CodeSample, ShardView

FETCHED_AT_ONCE = 8  # shards: an object store gives more to several requests than to one
_TRIES = 4  # to map a file that other processes may remove at any moment
_MANY_ROWS = 1 << 20  # of a shard, which are not believed before its file has been opened


class ShardCache:
    """The shards of a store, unpacked and mapped when they are asked for; by any thread.

    Args:
        path: a store, a Parquet file, or the URL of one, as fsspec takes it.
        columns: of the extras; None for all.
        folder: for unpacked shards, shared by all stores and processes; they lie in a folder of
            their own inside it.
        max_bytes: what that may hold; what is in use stays, even if it is more.

    Attributes:
        index: what the store says of itself.
        samples: how many each shard has.
        is_remote: whether shards are fetched from another machine.
        can_fetch_ranges: whether groups of their rows can be, each row being a sample.

    Raises:
        CodesError: no finished store.
        ViqError: the folder cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Sequence[str] | None,
        folder: Path,
        max_bytes: int,
    ) -> None:
        self._name, self._columns = str(path), columns
        self._folder, self.max_bytes = CacheFolder(folder), max_bytes
        self._files = open_place(path, self._folder)
        self.is_remote = isinstance(location(path), str)
        self.index = self._files.index
        self._begin()
        self.samples = self._count()
        shards = self.index.shards
        self.can_fetch_ranges = self._files.can_fetch_ranges and all(
            shard.sha256 and shard.rows == count
            for shard, count in zip(shards, self.samples, strict=True)
        )

    def _begin(self) -> None:
        self._views: dict[int, ShardView] = {}
        self._used: dict[int, int] = {}  # when each view was asked for last
        self._clock = count()
        self._make_locks()

    def _make_locks(self) -> None:
        self._lock = Lock()  # held for moments: while views and locks change
        self._unpacking: dict[int, Lock] = {}
        self._process = os.getpid()

    def __getitem__(self, number: int) -> ShardView:
        """The view of a shard.

        Raises:
            CodesError: the shard is missing or damaged, or lacks a column.
        """
        view = self._views.get(number)
        if view is None:
            view = self._added(number)
        self._used[number] = next(self._clock)
        return view

    def sample(self, number: int, place: int) -> CodeSample:
        """The sample at `place` of a shard. Raises as `__getitem__`."""
        try:
            return self[number].sample(place)
        except RottenError:  # bits of the unpacked file have changed since it was written
            self._drop(number)
            return self[number].sample(place)

    def verified(self, number: int, group: int, view: ShardView) -> bool:
        """Whether the codes of a group of rows of a view are as they were written; if they are not,
        the shard is unpacked anew when it is asked for next."""
        try:
            view.require(group)
        except RottenError:
            self._drop(number)
            return False
        return True

    def is_at_hand(self, number: int) -> bool:
        """Whether a shard need not be fetched, as far as can be told without asking for it."""
        sha256 = self.index.shards[number].sha256
        return number in self._views or bool(sha256 and self._folder.file(sha256).is_file())

    def ranges(self) -> AbstractContextManager[Ranges]:
        """What fetches groups of rows, if `can_fetch_ranges`, until the block ends."""
        return fetching_ranges(self._files, self._columns, self._folder, self._name)

    def bytes(self, number: int) -> int:
        """Of the file of a shard, as the index says."""
        return self.index.shards[number].bytes

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes, which map files themselves."""
        ours = ("_views", "_used", "_clock", "_lock", "_unpacking", "_process")
        return {name: value for name, value in self.__dict__.items() if name not in ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def keys(self, number: int) -> list[str]:
        """Keys of the samples of a shard, without unpacking it."""
        with self._reader(self.index.shards[number]) as reader:
            pairs = zip(reader.keys(), reader.begins_sample(), strict=True)
            return [key for key, begins in pairs if begins]

    def _count(self) -> list[int]:
        told = [self._told(shard) for shard in self.index.shards]
        with ThreadPoolExecutor(FETCHED_AT_ONCE if self.is_remote else 1) as pool:
            found = [
                pool.submit(self._counted, shard) if count is None else count
                for shard, count in zip(self.index.shards, told, strict=True)
            ]
            return [count if isinstance(count, int) else count.result() for count in found]

    def _told(self, shard: Shard) -> int | None:
        """Samples of a shard by what the index says, which is checked when the shard is mapped;
        None if it does not say."""
        totals, (first, last) = self.index.totals, shard.inputs
        if not {"rows", "failures"} <= totals.keys() or shard.rows > _MANY_ROWS:
            return None
        if totals["rows"] == self.index.inputs - totals["failures"]:  # a row each
            return shard.rows
        return last - first if not totals["failures"] and last - first <= shard.rows else None

    def _counted(self, shard: Shard) -> int:
        with self._reader(shard) as reader:
            return int(reader.begins_sample().sum())

    def _added(self, number: int) -> ShardView:
        if self._process != os.getpid():
            self._make_locks()  # forked, perhaps while a thread of the other process held one
        with self._lock:
            unpacking = self._unpacking.setdefault(number, Lock())
        with unpacking:
            view = self._views.get(number)
            if view is None:
                view = self._map(number)
                with self._lock:
                    self._views[number], self._used[number] = view, next(self._clock)
                    self._unmap_others(number)
        return view

    def _unmap_others(self, number: int) -> None:
        """Let go of the views that were used longest ago, until the rest is small enough."""
        others = sorted((self._used[n], n) for n in self._views if n != number)
        total = sum(view.nbytes for view in self._views.values())
        for _, other in others:
            if total <= self.max_bytes:
                break
            total -= self._views.pop(other).nbytes

    def _drop(self, number: int) -> None:
        """Let go of a view, and remove its file."""
        with self._lock:
            self._views.pop(number, None)
        self._folder.remove(self._folder.file(self._files.digest(self.index.shards[number])))

    def _map(self, number: int) -> ShardView:
        shard = self.index.shards[number]
        path = self._folder.file(self._files.digest(shard))
        for _ in range(_TRIES):
            try:
                os.utime(path)  # in use, so the last to be removed
                info = self.index.info
                view = ShardView(path, info.fingerprint, self._columns, self._name, info.dtype)
            except RottenError:
                self._folder.remove(path)
            except OSError:
                self._unpack(shard, path)
            else:
                self._require_listed(view, shard, self.samples[number])
                return view
        raise ViqError(f"{path}: cannot be written and mapped; give another folder as cache")

    def _require_listed(self, view: ShardView, shard: Shard, samples: int) -> None:
        found = view.metadata, view.rows, len(view)
        wanted = replace(self.index.info, entropy="").metadata(), shard.rows, samples
        if found != wanted:
            raise self._not_listed(shard)

    def _not_listed(self, shard: Shard) -> CodesError:
        return CodesError(
            f"{self._name}: {shard.name} is not the file that the index lists; write a new index "
            "with viq store index"
        )

    @contextmanager
    def _reader(self, shard: Shard, *, verified: bool = False) -> Iterator[CodesReader]:
        """Open a shard; `verified` if it has the SHA-256 that the index lists."""
        with self._files.fetched(shard, verified) as file, CodesReader(file) as reader:
            if reader.info != self.index.info or len(reader) != shard.rows:
                raise self._not_listed(shard)
            yield reader

    def _unpack(self, shard: Shard, path: Path) -> None:
        with self._reader(shard, verified=True) as reader:
            try:
                with written_aside(path) as aside:
                    write(aside, reader.plain_schema(reader.extras), reader.batches(reader.extras))
                    self._folder.make_room(aside.stat().st_size, self.max_bytes)
            except OSError as error:
                raise ViqError(
                    f"{path.parent}: cannot be written ({error.strerror}); give another folder as "
                    "cache"
                ) from None
