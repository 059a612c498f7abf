"""The first batches of a pass through a remote store, of groups of rows that are fetched alone.

The samples of a batch in shuffled order lie in as many shards, and of each a few kilobytes are
needed. So as long as these are less than half of what whole shards would be, groups of rows are
fetched by ranges of bytes; whole shards, which come after, serve for the rest of the pass. A group
is checked against the sums that its file notes, not against the SHA-256 of the index, which is of
the whole file: so it is never filed in the cache.

For whom gathers, a group is a small shard: this holds for stores in which each row is a sample.
Where anything does not fit or fails, whole shards are fetched, and their errors are raised there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property

import numpy as np

from viq.core.types import ViqError
from viq.store.cache import ShardCache
from viq.store.packed import PackedCodes, Packer
from viq.store.ranges import Ranges
from viq.store.views import CodeSample, ShardView
from viq.store.writer import ROWS_PER_GROUP

_THREADS = 16  # what waits for an answer costs nothing
_WORTH = 2  # groups are fetched where they are at most one of so many of their shards


class Early:
    """Groups of rows of the shards of a remote store, for one pass and one thread.

    Args:
        shards: what has whole ones.
        columns: of the extras; None for all.
    """

    def __init__(self, shards: ShardCache, columns: Sequence[str] | None) -> None:
        self._shards, self._columns = shards, columns
        self._over = not shards.can_fetch_ranges
        self._views: dict[int, ShardView] = {}
        self._ranges: Ranges | None = None
        self._packer: Packer | None = None
        self._files = ExitStack()
        self._then: list[Callable[[], object]] = []

    def fetch(self, numbers: np.ndarray) -> None:
        """Fetch the groups of these samples, if that is far less than their shards."""
        if self._over:
            return
        groups = np.unique(self._groups_of(numbers)).tolist()
        shards = [self._shard_of(group) for group in groups]
        missing = [shard for shard in set(shards) if not self._shards.is_at_hand(shard)]
        if _WORTH * len(groups) > sum(self._counts[shard] for shard in missing):
            self.close()
            return
        new = [(g, shard) for g, shard in zip(groups, shards, strict=True) if g not in self._views]
        try:
            self._ranges = self._ranges or self._files.enter_context(self._shards.ranges())
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="viq-early") as pool:
                views = pool.map(self._fetched, *zip(*new, strict=True)) if new else ()
                self._views |= {g: view for (g, _), view in zip(new, views, strict=True)}
        except (ViqError, OSError):
            self.close()

    def has(self, numbers: np.ndarray) -> bool:
        """Whether the groups of all these samples were fetched."""
        return self._at_hand(numbers) is not None

    def put_off(self, then: Callable[[], object]) -> None:
        """Do this at the next `catch_up`: what would take bytes from the groups of a batch."""
        self._then.append(then)

    def catch_up(self) -> None:
        """Do what was put off, as no batch waits for groups any more."""
        while self._then:
            self._then.pop(0)()

    def patches(self, numbers: np.ndarray) -> np.ndarray:
        """Patches of samples that it `has`, int64."""
        groups = self._groups_of(numbers)
        patches = np.empty(len(numbers), np.int64)
        for group in np.unique(groups).tolist():
            here = groups == group
            patches[here] = self._views[group].patches[numbers[here] - self._firsts[group]]
        return patches

    def gather(self, samples: np.ndarray) -> PackedCodes | None:
        """As `Packer.gather`; None if not all were fetched."""
        if self._at_hand(samples) is None:
            return None
        try:
            self._packer = self._packer or Packer(self, self._firsts, self._columns)
            return self._packer.gather(samples)
        except ViqError:
            self.close()
            return None

    def samples(self, numbers: np.ndarray) -> list[CodeSample] | None:
        """Samples one by one; None if not all were fetched."""
        groups = self._at_hand(numbers)
        if groups is None:
            return None
        places = (numbers - self._firsts[groups]).tolist()
        try:
            return [self._views[g].sample(p) for g, p in zip(groups.tolist(), places, strict=True)]
        except ViqError:
            self.close()
            return None

    def close(self) -> None:
        """Let whole shards serve from now on."""
        self._over, self._packer, self._views = True, None, {}
        self._files.close()

    # What a packer asks of shards

    def __getitem__(self, number: int) -> ShardView:
        return self._views[number]

    def verified(self, number: int, group: int, view: ShardView) -> bool:
        """Raises `RottenError` if codes are not as they were written."""
        view.require(group)
        return True

    # Groups are numbered through the store, as samples are

    @cached_property
    def _counts(self) -> np.ndarray:
        """Groups of each shard."""
        return -(-np.asarray(self._shards.samples, np.int64) // ROWS_PER_GROUP)

    @cached_property
    def _starts(self) -> np.ndarray:
        """The first group of each shard."""
        return np.cumsum(self._counts) - self._counts

    @cached_property
    def _firsts(self) -> np.ndarray:
        """The first sample of each group, and one past the last."""
        samples = np.asarray(self._shards.samples, np.int64)
        places = np.arange(self._counts.sum()) - np.repeat(self._starts, self._counts)
        firsts = np.repeat(np.cumsum(samples) - samples, self._counts)
        return np.append(firsts + ROWS_PER_GROUP * places, samples.sum())

    def _groups_of(self, numbers: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._firsts, numbers, side="right") - 1

    def _shard_of(self, group: int) -> int:
        return int(np.searchsorted(self._starts, group, side="right")) - 1

    def _at_hand(self, numbers: np.ndarray) -> np.ndarray | None:
        """The groups of samples, if all were fetched."""
        if self._over or not self._views:
            return None
        groups = self._groups_of(numbers)
        return groups if set(groups.tolist()) <= self._views.keys() else None

    def _fetched(self, group: int, shard: int) -> ShardView:
        assert self._ranges is not None, "made by fetch"
        view = self._ranges.view(shard, group - int(self._starts[shard]))
        if len(view) != self._firsts[group + 1] - self._firsts[group]:
            raise ViqError("rows are no samples")  # for `fetch`, which lets whole shards serve
        return view
