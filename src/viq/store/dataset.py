"""Codes as a PyTorch data set: random access, and epochs shared by ranks and workers.

```python
data = viq.CodeDataset("codes/", shuffle=0)
data[5], data["photos/a.jpg"]                    # by number, by key
for batch in data.batches(tokens=8192, workers=4, packed=True):
    ...                                          # PackedCodes; without `packed`, lists of samples
    state = data.state_dict()                    # resumes here, on any number of ranks
```
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from viq.core.notebook import html_table
from viq.core.process import place_among
from viq.core.types import ViqError
from viq.core.untrusted import whole_number
from viq.store.ahead import ahead_of
from viq.store.batches import Collate, Cut, batches_of
from viq.store.cache import ShardCache
from viq.store.early import Early
from viq.store.epochs import MOST_EPOCHS, Epochs
from viq.store.order import BLOCK, Batch, Order, cut, require_same
from viq.store.packed import PackedCodes, Packer
from viq.store.views import CodeSample

_Collated = TypeVar("_Collated")


class CodeDataset(IterableDataset):
    """The samples of a store, of one Parquet file, or of either behind a URL.

    Iterating gives the samples of one epoch that fall to this rank and DataLoader worker, from
    where it stands to the end, and the next time those of the next epoch, with and without
    workers. `batches` gives batches, with workers of its own; only then does `state_dict` know what
    workers have handed over. `len` is the number of samples of this rank.

    Args:
        path: store, file, or URL as fsspec takes it (s3://, gs://, https://, ..).
        columns: of what rides along; None for all, () for none, which is fastest.
        shuffle: seed; None for the order of the store.
        block: samples that are shuffled together. Larger needs more of the cache at a time.
        rank, world: of this process; None takes them from torchrun or Slurm, else 0 of 1.
        cache: folder for unpacked shards, which all processes of a machine share; by default
            $XDG_CACHE_HOME/viq or ~/.cache/viq.
        cache_bytes: what it may hold.

    Attributes:
        samples: how many each shard has.
        total: samples of the whole store.
        info: who made the codes.
        options: of encoding, as the store notes them; empty for a single file.

    Raises:
        CodesError: no finished store, or a damaged one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        shuffle: int | None = None,
        block: int = BLOCK,
        rank: int | None = None,
        world: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int = 16 << 30,
    ) -> None:
        self.place = place_among(rank, world)
        self._path = os.fspath(path)
        self._columns = None if columns is None else tuple(columns)
        self._shards = ShardCache(path, columns, _cache_folder(cache), cache_bytes)
        self.info = self._shards.index.info
        self.options = self._shards.index.options
        self.samples = self._shards.samples
        self._order = Order(samples=self.samples, seed=shuffle, block=block)
        self._firsts = [0, *np.cumsum(self.samples, dtype=np.int64).tolist()]
        self._by_key: tuple[np.ndarray, np.ndarray] | None = None  # sorted hashes, samples
        self.total = self._firsts[-1]
        self._epochs = Epochs()  # and the position: all before it are taken, by whatever rank
        # Of a worker: its epoch, where its pass began, and the samples it has given since; and
        # those that it gave before it was resumed.
        self._of_worker, self._skipped = (0, 0, 0), 0

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in self._facts().items())
        return f"CodeDataset({facts})"

    def _repr_html_(self) -> str:
        return html_table("CodeDataset", self._facts())

    def _facts(self) -> dict[str, Any]:
        rank, world = self.place.rank, self.place.world
        return {
            "path": self._path,
            "samples": self.total,
            "shards": len(self.samples),
            "model": self.info.model,
            "fingerprint": self.info.fingerprint,
            **({"rank": rank, "world": world} if world > 1 else {}),
        }

    @property
    def epoch(self) -> int:
        """The epoch that iterating goes on with; of one that workers have begun, until its end."""
        return self._epochs.now()[0]

    def set_epoch(self, epoch: int) -> None:
        """Go on with an epoch: with its begin, or where it stands if it is the present one.

        Raises:
            ViqError: it is no number of an epoch.
        """
        now, position = self._epochs.now()
        whole_number(epoch, "epoch", 0, MOST_EPOCHS)
        self._epochs.go_to(epoch, position if epoch == now else 0)

    def __len__(self) -> int:
        """Samples of a whole epoch that fall to this rank."""
        return len(range(self.place.rank, self.total, self.place.world))

    def __getitem__(self, which: int | str) -> CodeSample:
        """A sample by its number in the order of the store, or by its key.

        Raises:
            IndexError, KeyError: there is none.
        """
        number = self._find(which) if isinstance(which, str) else which
        number = number + self.total if number < 0 else number
        if not 0 <= number < self.total:
            raise IndexError(f"sample {which} of {self.total}")
        shard = bisect_right(self._firsts, number) - 1
        return self._shards.sample(shard, number - self._firsts[shard])

    def map_style(self) -> MapStyleCodes:
        """The same samples as a map-style data set, for samplers and `Trainer`."""
        return MapStyleCodes(self)

    def keys(self) -> Iterator[str]:
        """The keys of all samples, in the order of the store, without reading codes."""
        return (key for shard in range(len(self.samples)) for key in self._shards.keys(shard))

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and self._find(key) >= 0
        except KeyError:
            return False

    def __iter__(self) -> Iterator[CodeSample]:
        # Not a generator: a worker is to count its epochs when a pass begins, not when the first
        # sample is asked for.
        return self._samples(*self._epochs.begin())

    def _samples(self, epoch: int, start: int) -> Iterator[CodeSample]:
        worker = get_worker_info()
        step, mine = self.place.world, self.place.rank
        reached = self._epochs.position
        if worker is not None:
            step, mine = step * worker.num_workers, mine + step * worker.id
            reached = np.zeros(1, np.int64)  # what a worker has read, nobody has been handed yet
        taken, self._skipped = self._skipped, 0
        self._of_worker = epoch, start, taken
        begin = start + mine + taken * step
        for position, numbers in self._order.blocks(epoch, start):
            first = max(position, begin)
            first += (begin - first) % step
            for at in range(first, position + len(numbers), step):
                reached[0] = min(at - mine + step, self.total)
                taken += 1
                self._of_worker = epoch, start, taken
                yield self[int(numbers[at - position])]
        self._of_worker = epoch + 1, 0, 0
        self._epochs.end()

    @overload
    def batches(
        self,
        *,
        tokens: int | None = None,
        samples: int | None = None,
        workers: int = 0,
        even: bool = True,
    ) -> Iterator[list[CodeSample]]: ...

    @overload
    def batches(
        self,
        *,
        tokens: int | None = None,
        samples: int | None = None,
        workers: int = 0,
        collate: Callable[[list[CodeSample]], _Collated],
        even: bool = True,
    ) -> Iterator[_Collated]: ...

    @overload
    def batches(
        self,
        *,
        tokens: int | None = None,
        samples: int | None = None,
        workers: int = 0,
        packed: Literal[True],
        even: bool = True,
    ) -> Iterator[PackedCodes]: ...

    def batches(
        self,
        *,
        tokens: int | None = None,
        samples: int | None = None,
        workers: int = 0,
        collate: Collate | None = None,
        packed: bool = False,
        even: bool = True,
    ) -> Iterator[Any]:
        """The batches of one epoch that fall to this rank, from where it stands to the end.

        All ranks together go through one sequence of batches, whatever their number and that of
        their workers.

        Args:
            tokens: limit of patches in a batch, which a single larger sample may exceed.
            samples: limit of samples in a batch.
            workers: processes that read ahead; 0 reads in this one. From Python 3.14 on a script
                calls this under `if __name__ == "__main__":`, and `collate` is no lambda.
            collate: makes a batch of its samples, in the worker; by default a list.
            packed: give `PackedCodes`, arrays of the whole batch: the same samples in the same
                order, many times as fast as a list of them.
            even: leave out the last batches of an epoch if they are not one for each rank, so
                that all ranks take equally many steps.

        Raises:
            ViqError: no limit; a shard is missing or damaged; a column that cannot be packed.
        """
        limits = Cut(tokens=tokens, samples=samples, even=even)
        if packed and collate:
            raise ViqError("packed batches have no samples to collate: leave out one of the two")
        for position, batch in batches_of(
            self, limits, None if packed else collate or list, workers
        ):
            self._epochs.position[0] = position
            yield batch
        self._epochs.end()

    def begin_epoch(self) -> tuple[int, int]:
        """Epoch and position of the pass that begins now; `batches` asks."""
        return self._epochs.begin()

    def packer(self) -> Packer:
        """What gathers packed batches, for one thread."""
        return Packer(self._shards, self._firsts, self._columns)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands, counting what was handed over last; JSON-able.

        It is that of all ranks, if they have taken equally many batches. Inside a worker, where
        torchdata's `StatefulDataLoader` asks, it is that of the worker alone.
        """
        worker = get_worker_info()
        if worker is not None:
            epoch, position, taken = self._of_worker
            more = {"workers": worker.num_workers, "taken": taken}
            return {**self._identity(), "epoch": epoch, "position": position, **more}
        epoch, position = self._epochs.now()
        return {**self._identity(), "epoch": epoch, "position": position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            ViqError: it is of another store, or of another order; names the difference.
        """
        if not isinstance(state, Mapping):
            raise ViqError(f"cannot resume: a state is a mapping, got {type(state).__name__}")
        require_same(state, self._identity(), "open the data set as it was")
        epoch = whole_number(state.get("epoch"), "cannot resume: epoch", 0, MOST_EPOCHS)
        position = whole_number(state.get("position"), "cannot resume: position", 0, self.total)
        worker = get_worker_info()
        if worker is None:
            self._epochs.go_to(epoch, position)
            return
        require_same(state, {"workers": worker.num_workers}, "give as many workers as before")
        taken = whole_number(state.get("taken"), "cannot resume: taken", 0, self.total)
        self._of_worker, self._skipped = (epoch, position, taken), taken
        self._epochs.join(epoch, position)

    def patches(self, numbers: np.ndarray) -> np.ndarray:
        """Patches of samples, int64, by their numbers."""
        shards = self._shards_of(numbers)
        patches = np.empty(len(numbers), np.int64)
        for shard in self._in_turn(shards):
            here = shards == shard
            patches[here] = self._shards[shard].patches[numbers[here] - self._firsts[shard]]
        return patches

    def _shards_of(self, numbers: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._firsts, numbers, side="right") - 1

    def _in_turn(self, shards: np.ndarray) -> list[int]:
        """Each of them once. Processes begin at different ones, so that at first they do not unpack
        the same."""
        wanted = np.unique(shards)
        return np.roll(wanted, -int(self._turn() * len(wanted))).tolist()

    def _turn(self) -> float:
        """0 to 1, which of all processes this is."""
        worker = get_worker_info()
        among, me = (worker.num_workers, worker.id) if worker else (1, 0)
        return (self.place.rank * among + me) / (self.place.world * among)

    def early(self) -> Early:
        """What fetches the first samples of a pass through a remote store, for one thread."""
        return Early(self._shards, self._columns)

    def cut(
        self, tokens: int | None, samples: int | None, at: tuple[int, int], early: Early
    ) -> Iterator[Batch]:
        """Batches of all ranks from `at`, epoch and position, on.

        Args:
            early: of the pass; `Early.catch_up` is to be called when a batch was made.
        """
        blocks = list(self._order.groups(at[0])) if self._shards.is_remote else []
        with ahead_of(self._shards, blocks, self._turn()) as ahead:

            def fetch(numbers: np.ndarray) -> bool:
                """Begin to; whether all are there already, by themselves."""
                early.fetch(numbers)
                shards = self._in_turn(self._shards_of(numbers))
                if early.has(numbers):  # the way of bytes is narrow: first the batch, then the rest
                    early.put_off(lambda: (ahead.want(shards), ahead.follow(shards)))
                    return True
                early.catch_up()
                ahead.want(shards)
                return False

            def patches_of(numbers: np.ndarray) -> np.ndarray:
                if fetch(numbers):
                    return early.patches(numbers)
                patches = self.patches(numbers)
                ahead.follow(self._shards_of(numbers).tolist())
                return patches

            limits = {"tokens": tokens, "samples": samples}
            for batch in cut(self._order, *at, patches_of=patches_of, **limits):
                if not tokens and self._shards.is_remote and not fetch(batch.samples):
                    ahead.follow(self._shards_of(batch.samples).tolist())
                yield batch

    def _identity(self) -> dict[str, Any]:
        return {
            "store": self._digest,
            "shuffle": self._order.seed,
            "block": self._order.block,
        }

    @cached_property
    def _digest(self) -> str:
        """16 hex digits that tell this store from others."""
        shards = [(shard.rows, shard.bytes, shard.sha256) for shard in self._shards.index.shards]
        return f"{_hash64(f'{self.info.fingerprint} {shards}'):016x}"

    def _find(self, key: str) -> int:
        if self._by_key is None:
            hashes = np.fromiter(map(_hash64, self.keys()), np.uint64)
            order = np.argsort(hashes)
            self._by_key = hashes[order], order
        hashes, order = self._by_key
        wanted = np.uint64(_hash64(key))
        first = int(np.searchsorted(hashes, wanted))
        for place in range(first, len(hashes)):
            if hashes[place] != wanted:
                break
            if self[int(order[place])].key == key:
                return int(order[place])
        raise KeyError(key)


class MapStyleCodes(Dataset):
    """All samples of a `CodeDataset` by number, in the order of the store.

    A PyTorch data set is either iterable or map-style, and a `DataLoader` takes a sampler for the
    latter alone. `CodeDataset` by itself unpacks each shard once an epoch; a sampler that draws
    from the whole of a store larger than the cache does not.
    """

    def __init__(self, data: CodeDataset) -> None:
        self._data = data

    def __len__(self) -> int:
        """Samples of the whole store, whatever the rank."""
        return self._data.total

    def __getitem__(self, index: int) -> CodeSample:
        return self._data[int(index)]


def _cache_folder(given: str | os.PathLike[str] | None) -> Path:
    if given is not None:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "viq"


def _hash64(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big"
    )
