"""Which epoch a data set is in, counted by its process and by the workers of DataLoaders alike.

A DataLoader gives each worker a copy of the data set and never hears of it again, and workers begin
a pass one by one, or not at all if the loop is left early. So the count lies in shared memory, and
a worker that begins looks whether others have begun the same pass: their epoch is its own. What
tells one pass from another is the seed that the loader draws for its workers, and how often this
worker has begun under it.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

_BITS = 24
_EPOCHS = (1 << _BITS) - 1
MOST_EPOCHS = _EPOCHS - 1
_PLACES = 256  # workers that are told apart; what others write in one place is the same
_SET, _BEGUN, _ENDED, _WORKERS = range(4)  # rows


class Epochs:
    """Where one data set stands. Copies in workers, forked or sent, share it.

    Every value is one 64-bit word, which is written at once, and each worker writes places of its
    own. So there is no lock that a killed worker could keep. What has begun and ended are passes: a
    hash of the pass above, and the number of the epoch after it in the lower bits.
    """

    def __init__(self) -> None:
        self.__setstate__({"words": torch.zeros(4, _PLACES, dtype=torch.int64)})

    def __getstate__(self) -> dict[str, Any]:
        # Memory that is not shared yet would be moved as it is sent, away from `_words`.
        return {"words": self._shared if self._shared.is_shared() else self._words.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._shared = torch.as_tensor(state["words"])
        with suppress(RuntimeError):  # no shared memory here: workers forget what they count
            self._shared.share_memory_()  # nothing if it is shared already
        self._words = self._shared.numpy()
        # Where in the epoch that was set: one word, to be written often.
        self.position = self._words[_SET, 1:2]
        self._seen: tuple[int, int] = (0, 0)  # seed of the loader, passes begun under it
        self._mine = 0  # the pass that this worker has begun

    def now(self) -> tuple[int, int]:
        """Epoch and position to go on with; of an epoch that workers have begun, until its end."""
        epoch, position = self._words[_SET, :2].tolist()
        begun, ended = self._words[_BEGUN], self._words[_ENDED]
        latest = int(begun[_epoch_after(begun).argmax()])
        after = latest & _EPOCHS
        if after <= epoch:
            return epoch, position
        workers = int(self._words[_WORKERS][begun == latest].max())
        now = after if int((ended == latest).sum()) >= min(workers, _PLACES) else after - 1
        return now, position if now == epoch else 0

    def go_to(self, epoch: int, position: int = 0) -> None:
        """Let the next pass begin there, and the one after with the epoch that follows."""
        self._words[_BEGUN:] = 0
        self._words[_SET, :2] = epoch, position

    def join(self, epoch: int, position: int) -> None:
        """As `go_to`, from a worker whose fellows do the same, some of whom may have begun."""
        self._words[_SET, :2] = epoch, position

    def begin(self) -> tuple[int, int]:
        """Epoch and position of the pass that this process, or this worker, begins."""
        worker = get_worker_info()
        if worker is None:
            self.go_to(*self.now())
            return self.now()
        mark, place = self._pass(worker), worker.id % _PLACES
        begun = self._words[_BEGUN].copy()
        first, position = self._words[_SET, :2].tolist()
        same = begun[begun >> _BITS == mark]
        after = int(_epoch_after(same).max()) if len(same) else max(
            first, int(_epoch_after(begun).max())) + 1  # fmt: skip
        self._words[_WORKERS, place] = worker.num_workers
        self._words[_BEGUN, place] = self._mine = mark << _BITS | after
        return after - 1, position if after - 1 == first else 0

    def end(self) -> None:
        """This process, or this worker, is through with the epoch that it began."""
        worker = get_worker_info()
        if worker is None:
            self.go_to(self.now()[0] + 1)
        else:
            self._words[_ENDED, worker.id % _PLACES] = self._mine

    def _pass(self, worker: Any) -> int:
        """A hash of the pass that a worker begins, the same in all its workers."""
        seed = worker.seed - worker.id
        times = self._seen[1] + 1 if self._seen[0] == seed else 1
        self._seen = seed, times
        digest = hashlib.blake2b(f"{seed} {times}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") | 1


def _epoch_after(words: np.ndarray) -> np.ndarray:
    return words & _EPOCHS
