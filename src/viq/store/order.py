"""The one order of a data set that all ranks and workers share, and its cut into batches.

Samples have numbers 0..n-1 in the order of the store. An epoch is a sequence of positions; what
stands at a position is a function of (seed, epoch) alone. Shards are shuffled, neighbours in that
order make blocks, and samples are shuffled within a block: so only the shards of one block need to
be at hand, and small stores are shuffled as a whole. `CodeDataset` goes through an order block by
block, training (`viq.data.batching.mixture`) asks it for one position after the other.

Batches are runs of positions, cut one after another. Ranks take them in turn and so do workers, so
the number of either changes who gets a batch and never what is in it, and "where we are" is one
number: the position up to which all batches are taken.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from viq.core.types import ViqError
from viq.core.untrusted import printable

BLOCK = 1 << 17  # samples, by default
_FIRST_PIECE, _LAST_PIECE = 16, 1 << 14  # samples whose patches are asked for together
_RECENT = 4  # blocks: those who ask by turns are rarely more than one apart


@dataclass(frozen=True, kw_only=True)
class Order:
    """How an epoch goes.

    Attributes:
        samples: in each shard.
        seed: of the shuffle; None for the order of the store.
        block: samples that are shuffled together, at least; rounded up to whole shards.
    """

    samples: Sequence[int]
    seed: int | None = None
    block: int = BLOCK
    _recent: deque[tuple[int, int, np.ndarray]] = field(
        default_factory=lambda: deque(maxlen=_RECENT), init=False, repr=False, compare=False
    )

    @cached_property
    def total(self) -> int:
        """Samples of an epoch."""
        return sum(self.samples)

    def at(self, epoch: int, position: int) -> int:
        """The number of the sample at a position, 0 to `total` - 1, of an epoch.

        Blocks that were asked for last are remembered, so it takes a moment but where one begins.
        """
        for of, first, found in tuple(self._recent):  # a copy, as other threads may add to it
            if of == epoch and 0 <= position - first < len(found):
                return int(found[position - first])
        first, found = next(self.blocks(epoch, position))
        self._recent.append((epoch, first, found))
        return int(found[position - first])

    def blocks(self, epoch: int, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, sample numbers) of all blocks of an epoch that reach beyond `start`."""
        firsts = np.concatenate([[0], np.cumsum(self.samples)]).astype(np.int64)
        position = 0
        for number, members in enumerate(self.groups(epoch)):
            size = sum(self.samples[shard] for shard in members)
            if position + size > start:
                found = np.concatenate([np.arange(firsts[s], firsts[s + 1]) for s in members])
                if self.seed is not None:
                    self._draw(epoch, number).shuffle(found)
                yield position, found
            position += size

    def shards(self, epoch: int) -> np.ndarray:
        """All shards, in the order in which an epoch comes to them."""
        shards = np.arange(len(self.samples))
        return shards if self.seed is None else self._draw(epoch).permutation(shards)

    def groups(self, epoch: int) -> Iterator[list[int]]:
        """The shards of each block, in the order in which an epoch comes to them."""
        group, size = list[int](), 0
        for shard in self.shards(epoch).tolist():
            group.append(shard)
            size += self.samples[shard]
            if size >= self.block or self.seed is None:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _draw(self, epoch: int, block: int | None = None) -> np.random.Generator:
        # numpy keeps the bits of Philox from release to release, but may change what `permutation`
        # and `shuffle` make of them (NEP 19). We use them all the same: sorting the bits ourselves
        # would be another order, in which no epoch in progress could go on. A test of a small order
        # shows it if numpy changes.
        keys = [self.seed or 0, epoch] + ([] if block is None else [block])
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(keys)))


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], mend: str) -> None:
    """Refuse to go on in another order than the one that a position belongs to.

    Args:
        before: what a saved state says of the data and their order, perhaps damaged.
        now: what must be the same, by name.
        mend: what to do else.

    Raises:
        ViqError: names the first difference.
    """
    for name, value in now.items():
        found = before.get(name)
        if type(found) is not type(value) or found != value:
            raise ViqError(
                f"cannot resume: {name} was {printable(str(found), 80)}, is {value}; {mend}"
            )


@dataclass(frozen=True)
class Batch:
    """A run of positions, and the numbers of the samples that stand there."""

    start: int
    stop: int
    samples: np.ndarray


def cut(
    order: Order,
    epoch: int,
    start: int,
    *,
    patches_of: Callable[[np.ndarray], np.ndarray],
    tokens: int | None = None,
    samples: int | None = None,
) -> Iterator[Batch]:
    """Batches of an epoch from position `start` on.

    A batch takes the next samples as long as it stays within both limits. One sample that is above
    `tokens` by itself comes alone.

    Args:
        patches_of: patches of samples, by their numbers; only asked with `tokens`.
        tokens: limit of patches in a batch.
        samples: limit of samples in a batch.
    """
    waiting, at = np.empty(0, np.int64), start
    ends = [0]  # patches before each of those that wait, and after the last
    pieces = _pieces(order.blocks(epoch, start), start)
    more = True
    while more:
        found = next(pieces, None)
        more = found is not None
        if found is not None:
            waiting = np.concatenate([waiting, found])
            patches = patches_of(found) if tokens else np.zeros(len(found), np.int64)
            ends += (ends[-1] + np.cumsum(patches)).tolist()
        taken = 0
        while taken < len(waiting):
            stop = len(waiting) if samples is None else taken + samples
            if tokens:
                # A list, as numpy takes ten times as long to find one number.
                fits = bisect_right(ends, ends[taken] + tokens, taken) - 1
                stop = min(stop, max(fits, taken + 1))
            if stop >= len(waiting) and more:
                break  # the next block may still add to this batch
            stop = min(stop, len(waiting))
            yield Batch(at, at + stop - taken, waiting[taken:stop])
            at, taken = at + stop - taken, stop
        waiting, ends = waiting[taken:], ends[taken:]


def _pieces(blocks: Iterable[tuple[int, np.ndarray]], start: int) -> Iterator[np.ndarray]:
    """The samples of blocks from a position on, few at first and then ever more at a time.

    To know their patches, shards must be at hand, and the first batch is not to wait for all of its
    block.
    """
    size = _FIRST_PIECE
    for position, found in blocks:
        at = max(0, start - position)
        while at < len(found):
            yield found[at : at + size]
            at, size = at + size, min(2 * size, _LAST_PIECE)
