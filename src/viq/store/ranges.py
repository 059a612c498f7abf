"""Groups of rows of shards behind a URL, fetched by ranges of bytes.

What is fetched of a shard lies at its place in a file with holes, which is read as any shard is:
its footer, and nothing but the groups that are there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from viq.core.types import CodesError
from viq.store.cache_folder import CacheFolder
from viq.store.footer import END, footer_bytes, group_ranges
from viq.store.index import Shard
from viq.store.places import Place
from viq.store.rows import CodesReader
from viq.store.unpacked import write
from viq.store.views import ShardView

_END = 1 << 16  # bytes of a file's end that are fetched at first; most footers are shorter


class Ranges:
    """Groups of rows of the shards of a store; for any number of threads.

    Args:
        place: where the store is; one that can fetch ranges.
        columns: of the extras; None for all.
        folder: for files, removed by whoever made it.
        where: the store, for errors.
    """

    def __init__(
        self, place: Place, columns: Sequence[str] | None, folder: Path, where: str
    ) -> None:
        self._place, self._columns, self._folder, self._where = place, columns, folder, where
        self._locks: defaultdict[int, Lock] = defaultdict(Lock)  # while footers are fetched
        self._lock = Lock()
        self._ranges: dict[int, list[tuple[int, int]]] = {}

    def view(self, number: int, group: int) -> ShardView:
        """A group of rows of a shard, as if it were a shard by itself.

        Raises:
            CodesError: it cannot be fetched, is damaged, or is not what the index lists; or no file
                as our writer makes it, whose groups can be read alone.
        """
        shard, index = self._place.index.shards[number], self._place.index
        with self._lock:
            lock = self._locks[number]
        file = self._folder / shard.name
        with lock:
            if number not in self._ranges:
                self._ranges[number] = self._begun(shard, file)
        ranges = self._ranges[number]
        with CodesReader(file) as reader:
            if reader.info != index.info or len(reader) != shard.rows or reader.sums is None:
                raise CodesError(f"{self._where}: {shard.name} cannot be read in parts")
            self._fetch(shard, file, *ranges[group])
            unpacked = self._folder / f"{number}-{group}.arrow"
            extras = reader.extras
            write(unpacked, reader.plain_schema(extras), reader.batches(extras, group=group))
        fingerprint, dtype = index.info.fingerprint, index.info.dtype
        return ShardView(unpacked, fingerprint, self._columns, self._where, dtype)

    def _begun(self, shard: Shard, file: Path) -> list[tuple[int, int]]:
        """Fetch the footer into a file with holes; where groups of rows begin and end."""
        self._place.entropy_model(self._folder)
        with file.open("xb") as made:
            made.truncate(shard.bytes)
        start = max(0, shard.bytes - _END)
        length = footer_bytes(self._fetch(shard, file, start, shard.bytes)[-END:])
        if length > shard.bytes:
            raise CodesError(f"{self._where}: {shard.name}: damaged (its footer cannot be read)")
        if shard.bytes - length < start:
            self._fetch(shard, file, shard.bytes - length, start)
        return group_ranges(file)

    def _fetch(self, shard: Shard, file: Path, start: int, stop: int) -> bytes:
        if not 0 <= start < stop <= shard.bytes:
            raise CodesError(f"{self._where}: {shard.name}: damaged (its footer cannot be read)")
        data = self._place.read_range(shard, start, stop)
        with file.open("r+b") as made:
            made.seek(start)
            made.write(data)
        return data


@contextmanager
def fetching_ranges(
    place: Place, columns: Sequence[str] | None, folder: CacheFolder, where: str
) -> Iterator[Ranges]:
    """`Ranges`, whose files are removed when the block ends."""
    with folder.fetching() as here:
        yield Ranges(place, columns, here, where)
