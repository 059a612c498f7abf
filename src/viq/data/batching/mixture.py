"""Corpora mixed by weight into packed micro-batches, resumable at any of them.

A step of training accumulates the gradients of some micro-batches (`gradient_accumulation` of the
configs), one from each lane. A lane is a stream of its own, in which draw number n is a function of
(seed, lane, n) and of how often each corpus was drawn before; lanes share every corpus without
overlap. So the data of a step do not depend on how many processes share the lanes, and the position
of a lane, a few integers, is all that a checkpoint must hold.

What comes when in a corpus is for `viq.store.order.Order` to say, as for a `CodeDataset`: epoch
after epoch, each in a new order of blocks of shards.

A sample that cannot be used (a broken picture, a wrong conversation) is passed over and listed.

From corpora to training: `Mixture` draws, `Packer` packs what one lane has drawn, `Stream` gives
the micro-batches of all lanes of a process, step by step.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from viq.core.types import ViqError
from viq.data.corpora.corpora import Corpus
from viq.store.order import BLOCK, Order, require_same

T = TypeVar("T")  # a prepared example
M = TypeVar("M")  # a micro-batch
_AHEAD = 8  # examples made ahead of each lane, on threads
_HOPELESS = 1000  # bad samples in a row


@dataclass(frozen=True, kw_only=True)
class Part:
    """One corpus and its share of the draws."""

    corpus: Corpus
    weight: float


@dataclass(frozen=True)
class Position:
    """Where a lane stands: how many examples it has drawn, in all and from each corpus.

    Attributes:
        orders: `Mixture.digest` of what was drawn from; "" as of release 0.1, which had none.
    """

    drawn: int = 0
    taken: tuple[int, ...] = ()
    orders: str = ""

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"drawn": self.drawn, "taken": list(self.taken), "orders": self.orders}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Position:
        """What `as_json` gave, in this release or 0.1."""
        return cls(values["drawn"], tuple(values["taken"]), values.get("orders", ""))


@dataclass
class Skipped:
    """Samples that could not be used: (key, reason), each once."""

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, error: Exception) -> None:
        self.reasons.setdefault(key, str(error))


class Mixture:
    """Examples of several corpora, drawn by weight.

    Args:
        lanes: streams that share the corpora.
        block: examples of a corpus that are shuffled together, at least.
    """

    def __init__(self, parts: Sequence[Part], *, seed: int, lanes: int, block: int = BLOCK) -> None:
        weights = np.array([part.weight for part in parts], float)
        if not len(parts) or weights.min() < 0 or not weights.sum():
            raise ViqError("a mixture needs at least one corpus with a weight above 0")
        self.parts, self.seed, self.lanes = list(parts), seed, lanes
        self._weights = weights / weights.sum()
        self._orders = [
            Order(samples=part.corpus.samples, seed=seed * len(parts) + number, block=block)
            if part.corpus.samples is not None
            else None
            for number, part in enumerate(parts)
        ]

    @cached_property
    def digest(self) -> str:
        """16 hex digits that tell these corpora, and the orders they are drawn in, from others."""
        orders = [order and [order.seed, order.block, *order.samples] for order in self._orders]
        text = json.dumps([self.seed, self.lanes, orders])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def start(self) -> Position:
        """The beginning of a lane."""
        return Position(0, (0,) * len(self.parts), self.digest)

    def resumed(self, position: Position) -> Position:
        """Where a lane goes on that stood at `position`, maybe in a run of release 0.1.

        Raises:
            ViqError: it belongs to other data, or to another order of them.
        """
        if position == Position():  # text-to-image training of release 0.1 counted steps alone
            return self.start()
        count, order = "number of corpora", "order of the data"
        require_same(
            {count: len(position.taken), order: position.orders or self.digest},
            {count: len(self.parts), order: self.digest},
            "go on with the same data",
        )
        return replace(position, orders=self.digest)

    def reorders(self, positions: Iterable[Position]) -> bool:
        """Whether these are of release 0.1, which shuffled in another way, and that matters."""
        return any(self._orders) and not all(position.orders for position in positions)

    def draw(self, lane: int, position: Position) -> tuple[int, int, Position]:
        """(part, index in its corpus, position after it) of the next example of a lane."""
        part = self._part(lane, position.drawn)
        number = position.taken[part] * self.lanes + lane
        taken = (*position.taken[:part], position.taken[part] + 1, *position.taken[part + 1 :])
        after = Position(position.drawn + 1, taken, position.orders)
        return part, self._index(part, number), after

    def example(self, lane: int, draw: int, part: int, index: int) -> Any:
        """Make the example of one draw; raises what its corpus raises for a bad one."""
        rng = random.Random(f"{self.seed} {lane} {draw}")
        return self.parts[part].corpus.example(index, rng)

    def _part(self, lane: int, draw: int) -> int:
        if len(self.parts) == 1:  # a generator takes longer to make than all else of a draw
            return 0
        rng = np.random.default_rng([self.seed, lane, draw])
        return int(rng.choice(len(self.parts), p=self._weights))

    def _index(self, part: int, number: int) -> int:
        """Finite corpora are shuffled anew each time they have been gone through."""
        order = self._orders[part]
        return number if order is None else order.at(*divmod(number, order.total))


class Packer(Generic[T]):
    """The micro-batches of one lane: prepared examples, as many as fit a budget.

    Args:
        prepare: makes an example ready (on a thread); raises ViqError for a bad one.
        cost: of a prepared example, in the units of the budgets; one value a budget.
        budgets: what a micro-batch may cost at most; a single example may exceed them.

    Raises:
        ViqError: the position belongs to other data.
    """

    def __init__(
        self,
        mixture: Mixture,
        lane: int,
        position: Position,
        *,
        prepare: Callable[[Any], T],
        cost: Callable[[T], tuple[int, ...]],
        budgets: tuple[int, ...],
        skipped: Skipped,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.mixture, self.lane = mixture, lane
        self._prepare, self._cost, self._budgets = prepare, cost, budgets
        self._skipped, self._pool = skipped, pool
        self._next = mixture.resumed(position)  # of the next draw to be sent to a thread
        self._queue: deque[tuple[Position, Position, str, Future[T]]] = deque()

    def __iter__(self) -> Iterator[tuple[list[T], Position]]:
        """Micro-batches, each with the position from which the lane goes on after it."""
        held: list[T] = []
        used = (0,) * len(self._budgets)
        failed = 0
        while True:
            before, after, key, future = self._take()
            try:
                item = future.result()
            except ViqError as error:
                self._skipped.add(key, error)
                failed += 1
                if failed >= _HOPELESS:
                    raise ViqError(
                        f"{failed} samples in a row cannot be used, the last: {error}"
                    ) from None
                continue
            failed = 0
            total = tuple(u + c for u, c in zip(used, self._cost(item), strict=True))
            if held and any(t > b for t, b in zip(total, self._budgets, strict=True)):
                yield held, before
                held, total = [], self._cost(item)
            held.append(item)
            used = total

    def _take(self) -> tuple[Position, Position, str, Future[T]]:
        while len(self._queue) < _AHEAD:
            before = self._next
            part, index, after = self.mixture.draw(self.lane, before)
            key = self.mixture.parts[part].corpus.key(index)
            future = self._pool.submit(self._make, before.drawn, part, index)
            self._queue.append((before, after, key, future))
            self._next = after
        return self._queue.popleft()

    def _make(self, draw: int, part: int, index: int) -> T:
        return self._prepare(self.mixture.example(self.lane, draw, part, index))


class Stream(ABC, Generic[T, M]):
    """The endless micro-batches of a stage, for the lanes of one process.

    Args:
        mixture: what is drawn from; None: nothing, micro-batches are made of their number alone.
        lanes: numbers of the lanes of this process.
        all_lanes: how many lanes a step has in all processes.
        budgets: of a micro-batch, in the units of `_cost`.
        positions: of all lanes, from a checkpoint; else the start.
        threads: that prepare examples.

    Attributes:
        skipped: samples that could not be used.
        reordered: whether a run of release 0.1 goes on here in another order of its data.
    """

    def __init__(
        self,
        mixture: Mixture | None,
        *,
        lanes: Sequence[int],
        all_lanes: int,
        budgets: tuple[int, ...],
        positions: Mapping[int, Position] | None = None,
        threads: int = 1,
    ) -> None:
        self.mixture, self.lanes = mixture, list(lanes)
        self.skipped = Skipped()
        self._all_lanes, self._budgets, self._threads = all_lanes, budgets, threads
        self._positions = dict(positions or {})
        self.reordered = mixture is not None and mixture.reorders(self._positions.values())

    def steps(self, first: int, last: int) -> Iterator[tuple[list[M], dict[int, Position]]]:
        """For each step from `first` to `last` (excluded): micro-batches, and positions after it.

        The next step is made on a thread while the caller works on this one.
        """
        with ThreadPoolExecutor(self._threads) as pool, ThreadPoolExecutor(1) as ahead:
            packers = {lane: iter(self._packer(lane, pool)) for lane in self.lanes}
            future = ahead.submit(self._step, packers, first) if first < last else None
            for step in range(first, last):
                assert future is not None
                made = future.result()
                if step + 1 < last:
                    future = ahead.submit(self._step, packers, step + 1)
                yield made

    @abstractmethod
    def _prepare(self, example: Any) -> T:
        """Make an example ready, on a thread. Raises ViqError for a bad one."""

    @abstractmethod
    def _cost(self, item: T) -> tuple[int, ...]:
        """What a prepared example takes of each budget."""

    @abstractmethod
    def _collate(self, items: Sequence[T], number: int) -> M:
        """Micro-batch `number` of the stage."""

    def _packer(self, lane: int, pool: ThreadPoolExecutor) -> Iterator[Any]:
        if self.mixture is None:
            return iter(())
        return iter(
            Packer(
                self.mixture,
                lane,
                self._positions.get(lane, self.mixture.start()),
                prepare=self._prepare,
                cost=self._cost,
                budgets=self._budgets,
                skipped=self.skipped,
                pool=pool,
            )
        )

    def _step(
        self, packers: Mapping[int, Iterator[Any]], step: int
    ) -> tuple[list[M], dict[int, Position]]:
        micros, positions = [], {}
        for lane in self.lanes:
            items, positions[lane] = next(packers[lane], ([], Position()))
            micros.append(self._collate(items, step * self._all_lanes + lane))
        return micros, positions
