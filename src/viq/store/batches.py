"""The batches of one epoch that fall to one rank, made here or in the workers of a DataLoader."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from viq.core.types import CODES_PER_PATCH, ViqError
from viq.store.early import Early
from viq.store.packed import Gathered, Packer
from viq.store.views import CodeSample

if TYPE_CHECKING:
    from viq.store.dataset import CodeDataset

Collate = Callable[[list[CodeSample]], Any]

# Gathered together: 1 MiB of codes, which stays in a core's own cache while it is filled, and makes
# up for what the calls cost by themselves. Without a limit of tokens, so many samples.
_PATCHES_TOGETHER = 1 << 17
_SAMPLES_TOGETHER = 256
_AHEAD = 2  # items that a worker makes before they are asked for, as torch has it by default


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
    if workers and collate is None:
        import pyarrow.compute  # noqa: F401  # once, and not in each worker before its first batch
    slots = _Slots(workers) if workers and collate is None else None
    mine: Any = _Batches(data, limits, collate, slots)
    if workers:
        mine = DataLoader(mine, batch_size=None, num_workers=workers, prefetch_factor=_AHEAD)
    with _stopped_in_order(iter(mine)) as found:
        for position, batch in found:
            if isinstance(batch, ViqError):
                raise batch
            if isinstance(batch, Gathered):
                if slots:
                    batch = slots.taken(batch)
                yield from batch.batches()
            else:
                yield position, batch


class _Slots:
    """Shared memory through which workers hand over codes: a copy in, and a copy out.

    Made anew for each batch, as torch does by itself, shared memory costs ten times as much as the
    copies, for its pages. A worker makes item n + `_AHEAD` at the earliest when item n has been
    taken from its queue, and that is copied before the next is asked for; so it has one slot more
    than that and uses them in turn.
    """

    def __init__(self, workers: int) -> None:
        shape = (workers, _AHEAD + 1, _PATCHES_TOGETHER, CODES_PER_PATCH)
        self._slots: torch.Tensor | None = torch.empty(shape, dtype=torch.int16)
        try:
            self._slots.share_memory_()
        except RuntimeError:  # there is none here: codes go through a pipe, as all else does
            self._slots = None

    def put(self, gathered: Gathered, worker: int, number: int) -> Gathered:
        """What a worker hands over, for its item of this number."""
        ids = gathered.whole.ids
        if self._slots is None or len(ids) > self._slots.shape[2]:
            return gathered
        slot = number % (_AHEAD + 1)
        self._slots[worker, slot, : len(ids)].numpy()[...] = ids.view(np.int16)
        at: Any = _Slot(worker, slot, len(ids))
        return replace(gathered, whole=replace(gathered.whole, ids=at))

    def taken(self, gathered: Gathered) -> Gathered:
        """The same with its codes."""
        at: Any = gathered.whole.ids
        if not isinstance(at, _Slot) or self._slots is None:
            return gathered
        ids = self._slots[at.worker, at.slot, : at.patches].numpy().view(np.uint16).copy()
        return replace(gathered, whole=replace(gathered.whole, ids=ids))


@dataclass(frozen=True)
class _Slot:
    worker: int
    slot: int
    patches: int


@contextmanager
def _stopped_in_order(batches: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Let workers end what they are writing when the block ends, or the process.

    At the end of a process multiprocessing kills workers that are still there, as after an
    interrupt, when a traceback holds their loader; what one unpacks then stays half-written.
    """
    # Of a loader, it waits seconds at most; a generator in this process lets go of its threads.
    stop = getattr(batches, "_shutdown_workers", None) or batches.close  # type: ignore[attr-defined]
    atexit.register(stop)
    unregister = atexit.unregister  # modules are empty by when a script's own generators end
    try:
        yield batches
    finally:
        unregister(stop)
        stop()


class _Batches(IterableDataset):
    """Of one rank: (position after the round, batch), or (0, some packed batches together).

    Workers take what this yields in turn, so nothing of it depends on their number.
    """

    def __init__(
        self,
        data: CodeDataset,
        limits: Cut,
        collate: Collate | None,
        slots: _Slots | None = None,
    ) -> None:
        self._data, self._limits, self._collate, self._slots = data, limits, collate, slots
        self._at = data.begin_epoch()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        worker = get_worker_info()
        step, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        early = self._data.early()
        turns = self._turns(early)
        try:
            if self._collate is None:
                packer, number = self._data.packer(), 0
                # Few at first, so that the first batch does not wait for others.
                while some := list(islice(turns, min(1 << number, self._limits.together))):
                    gathered = None
                    if number % step == mine:
                        gathered = _gathered(early, packer, some)
                        if self._slots and worker:
                            gathered = self._slots.put(gathered, mine, number // step)
                    early.catch_up()
                    if gathered is not None:
                        yield 0, gathered
                    number += 1
                return
            for number, (position, samples) in enumerate(turns):
                found = None
                if number % step == mine:
                    found = early.samples(samples) or [self._data[n] for n in samples.tolist()]
                early.catch_up()
                if found is not None:
                    yield position, self._collate(found)
        except ViqError as error:  # raised in a worker, it would arrive as pages of traceback
            yield 0, error
        finally:
            turns.close()  # a traceback that somebody holds would keep it, and what it fetches
            early.close()

    def _turns(self, early: Early) -> Generator[tuple[int, np.ndarray]]:
        """(position after the round, samples) of each batch of this rank."""
        place, limits = self._data.place, self._limits
        batches = self._data.cut(limits.tokens, limits.samples, self._at, early)
        if place.world == 1:
            yield from ((batch.stop, batch.samples) for batch in batches)
            return
        while turn := list(islice(batches, place.world)):
            if len(turn) < place.world and limits.even:
                return
            if place.rank < len(turn):
                yield turn[-1].stop, turn[place.rank].samples


def _gathered(early: Early, packer: Packer, some: list[tuple[int, np.ndarray]]) -> Gathered:
    positions, samples = zip(*some, strict=True)
    numbers = np.concatenate(samples)
    whole = early.gather(numbers)
    whole = packer.gather(numbers) if whole is None else whole
    return Gathered(whole, [len(part) for part in samples], positions)
