"""Fetch the shards of a remote store before they are needed, several at a time.

An object store takes a moment for each request, however small, and gives more to several at once.
So shards that are asked for together are fetched side by side, and those that the epoch comes to
next while the present ones are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from viq.core.types import ViqError

if TYPE_CHECKING:
    from viq.store.cache import ShardCache

_THREADS = 8
_AHEAD = 4  # shards that are fetched before the pass comes to them


class Ahead:
    """Fetches shards of one pass through a data set.

    Args:
        shards: what maps them.
        order: all shards, in the order in which the pass comes to them.
    """

    def __init__(
        self, shards: ShardCache, order: Sequence[int], pool: ThreadPoolExecutor | None
    ) -> None:
        self._shards, self._order, self._pool = shards, list(order), pool
        self._places = {shard: place for place, shard in enumerate(self._order)}
        self._asked = set[int]()

    def want(self, shards: Sequence[int]) -> None:
        """Begin to fetch these shards, in this order, before all others.

        It does not wait: who asks `ShardCache` for one that is on its way does.
        """
        if self._pool is not None:
            for shard in shards:
                if shard not in self._asked:
                    self._asked.add(shard)
                    self._pool.submit(self._fetch, shard)

    def follow(self, shards: Sequence[int]) -> None:
        """Begin to fetch those that come after these, which are there."""
        if self._pool is not None and len(shards):
            last = max(self._places[shard] for shard in shards)
            self.want(self._order[last + 1 : last + 1 + _AHEAD])

    def _fetch(self, shard: int) -> None:
        with suppress(ViqError):  # who needs the shard meets the error again
            self._shards[shard]


@contextmanager
def ahead_of(shards: ShardCache, order: Sequence[int]) -> Iterator[Ahead]:
    """For one pass through a data set; of a store on this machine, nothing is fetched."""
    if not shards.is_remote:
        yield Ahead(shards, order, None)
        return
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="viq-fetch")
    try:
        yield Ahead(shards, order, pool)
    finally:
        pool.shutdown(cancel_futures=True)  # those that have begun leave whole files, or none
