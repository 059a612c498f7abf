"""The batches of one epoch that fall to one rank, made here or in the workers of a DataLoader."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from viq.core.types import ViqError
from viq.store.packed import Gathered, Packer
from viq.store.views import CodeSample

if TYPE_CHECKING:
    from viq.store.dataset import CodeDataset

Collate = Callable[[list[CodeSample]], Any]

# Gathered together: 1 MiB of codes, which stays in a core's own cache while it is filled, and makes
# up for what the calls cost by themselves. Without a limit of tokens, so many samples.
_PATCHES_TOGETHER = 1 << 17
_SAMPLES_TOGETHER = 256


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How batches are cut, as `CodeDataset.batches` takes it."""

    tokens: int | None
    samples: int | None
    even: bool

    def __post_init__(self) -> None:
        tokens, samples = self.tokens, self.samples
        if not (tokens or samples) or (tokens or 1) < 1 or (samples or 1) < 1:
            raise ViqError(f"batches of {tokens} tokens, {samples} samples: give one above 0")

    @property
    def together(self) -> int:
        """Packed batches that are gathered together."""
        by_tokens = _PATCHES_TOGETHER // self.tokens if self.tokens else _SAMPLES_TOGETHER
        by_samples = _SAMPLES_TOGETHER // self.samples if self.samples else by_tokens
        return max(1, min(by_tokens, by_samples))


def batches_of(
    data: CodeDataset, limits: Cut, collate: Collate | None, workers: int
) -> Iterator[tuple[int, Any]]:
    """(position of all ranks after it, batch), in order; packed batches without `collate`.

    Raises:
        ViqError: a shard is missing or damaged.
    """
    mine: Any = _Batches(data, limits, collate)
    if workers:
        mine = DataLoader(mine, batch_size=None, num_workers=workers)
    with _stopped_in_order(iter(mine)) as found:
        for position, batch in found:
            if isinstance(batch, ViqError):
                raise batch
            if isinstance(batch, Gathered):
                yield from _here(batch).batches()
            else:
                yield position, batch


@contextmanager
def _stopped_in_order(batches: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Let workers end what they are writing when the block ends, or the process.

    At the end of a process multiprocessing kills workers that are still there, as after an
    interrupt, when a traceback holds their loader; what one unpacks then stays half-written.
    """
    stop = getattr(batches, "_shutdown_workers", None)  # waits seconds at most
    if stop is None:
        yield batches
        return
    atexit.register(stop)
    try:
        yield batches
    finally:
        atexit.unregister(stop)
        stop()


class _Batches(IterableDataset):
    """Of one rank: (position after the round, batch), or (0, some packed batches together).

    Workers take what this yields in turn, so nothing of it depends on their number.
    """

    def __init__(self, data: CodeDataset, limits: Cut, collate: Collate | None) -> None:
        self._data, self._limits, self._collate = data, limits, collate
        self._at = data.begin_epoch()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        worker = get_worker_info()
        step, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        turns = self._turns()
        try:
            if self._collate is None:
                packer, number = self._data.packer(), 0
                while some := list(islice(turns, self._limits.together)):
                    if number % step == mine:
                        yield 0, self._gathered(packer, some, away=worker is not None)
                    number += 1
                return
            for number, (position, samples) in enumerate(turns):
                if number % step == mine:
                    yield position, self._collate([self._data[n] for n in samples.tolist()])
        except ViqError as error:  # raised in a worker, it would arrive as pages of traceback
            yield 0, error

    def _turns(self) -> Iterator[tuple[int, np.ndarray]]:
        """(position after the round, samples) of each batch of this rank."""
        place, limits = self._data.place, self._limits
        batches = self._data.cut(limits.tokens, limits.samples, self._at)
        if place.world == 1:
            yield from ((batch.stop, batch.samples) for batch in batches)
            return
        while turn := list(islice(batches, place.world)):
            if len(turn) < place.world and limits.even:
                return
            if place.rank < len(turn):
                yield turn[-1].stop, turn[place.rank].samples

    def _gathered(
        self, packer: Packer, some: list[tuple[int, np.ndarray]], away: bool
    ) -> Gathered:
        positions, samples = zip(*some, strict=True)
        whole = packer.gather(np.concatenate(samples))
        if away:  # torch hands its tensors over in shared memory, where numpy copies its arrays
            whole = replace(whole, ids=torch.from_numpy(whole.ids.view(np.int16)))
        return Gathered(whole, [len(part) for part in samples], positions)


def _here(gathered: Gathered) -> Gathered:
    """The same as it was before it came from a worker."""
    ids: Any = gathered.whole.ids
    if isinstance(ids, np.ndarray):
        return gathered
    whole = replace(gathered.whole, ids=ids.numpy().view(np.uint16))
    return replace(gathered, whole=whole)
