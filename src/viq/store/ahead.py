"""Fetch the shards of a remote store before they are needed, several at a time.

An object store takes a moment for each request, however small, and gives more to several at once.
So shards that are asked for together are fetched side by side, and those that the epoch comes to
next while the present ones are read: the rest of the block, and then the next block, as its first
batches need most of its shards at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from heapq import heappop, heappush
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from viq.core.types import ViqError
from viq.store.cache import FETCHED_AT_ONCE

if TYPE_CHECKING:
    from viq.store.cache import ShardCache

_AHEAD = 4  # shards, at least, that are fetched before the pass comes to them
_WANTED, _LATER = 0, 1


class Ahead:
    """Fetches shards of one pass through a data set.

    Args:
        shards: what maps them.
        blocks: all shards, by blocks, in the order in which the pass comes to them.
        turn: 0 to 1, where processes that go through the same blocks begin in each.
        pool: what fetches; None to fetch nothing.
    """

    def __init__(
        self,
        shards: ShardCache,
        blocks: Sequence[Sequence[int]],
        turn: float,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self._shards, self._turn, self._pool = shards, turn, pool
        self._order = [shard for block in blocks for shard in block]
        self._blocks = dict[int, tuple[int, int]]()  # where in that order the block of a shard is
        for block in blocks:
            start = len(self._blocks)
            self._blocks |= dict.fromkeys(block, (start, start + len(block)))
        self._followed = 0  # the end of the last block that was fetched as a whole
        self._waiting: list[tuple[int, int, int]] = []  # a heap: the least is fetched first
        self._tickets, self._lock = count(), Lock()
        self._asked, self._taken = dict[int, int](), set[int]()

    def want(self, shards: Sequence[int]) -> None:
        """Begin to fetch these shards, in this order, before all others.

        It does not wait: who asks `ShardCache` for one that is on its way does.
        """
        self._add(shards, _WANTED)

    def follow(self, shards: Sequence[int]) -> None:
        """Begin to fetch those that come after these, which are there."""
        if self._pool is None or not len(shards):
            return
        start, end = max(map(self._blocks.__getitem__, shards))
        if end == self._followed:
            return
        self._followed = end
        block, after = self._order[start:end], self._order[end : end + max(end - start, _AHEAD)]
        # What is fetched too early would drive out of the cache what is needed before.
        room = self._shards.max_bytes // 2 - sum(map(self._shards.bytes, block))
        fits = np.cumsum([self._shards.bytes(shard) for shard in after]) <= room
        for part in (block, after[: int(fits.sum())]):
            at = int(self._turn * len(part))
            self._add(part[at:] + part[:at], _LATER)

    def _add(self, shards: Sequence[int], turn: int) -> None:
        if self._pool is None:
            return
        new = [shard for shard in shards if self._asked.get(shard, turn + 1) > turn]
        with self._lock:
            for shard in new:
                self._asked[shard] = turn
                heappush(self._waiting, (turn, next(self._tickets), shard))
        for _ in new:
            self._pool.submit(self._fetch)

    def _fetch(self) -> None:
        with self._lock:
            _, _, shard = heappop(self._waiting)
            if shard in self._taken:  # it was first to come later, and then wanted
                return
            self._taken.add(shard)
        with suppress(ViqError):  # who needs the shard meets the error again
            self._shards[shard]


@contextmanager
def ahead_of(shards: ShardCache, blocks: Sequence[Sequence[int]], turn: float) -> Iterator[Ahead]:
    """For one pass through a data set; of a store on this machine, nothing is fetched."""
    if not shards.is_remote:
        yield Ahead(shards, (), turn, None)
        return
    pool = ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="viq-fetch")
    try:
        yield Ahead(shards, blocks, turn, pool)
    finally:
        pool.shutdown(cancel_futures=True)  # those that have begun leave whole files, or none
