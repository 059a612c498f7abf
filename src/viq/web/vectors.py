"""Vectors of the rows of a store, to search by what pictures show.

A thread of its own computes them from the first search on, file after file in an order that is
drawn once. They are kept in memory until the server ends, 2 bytes a number. A search looks at those
there are and says how many.
"""

from __future__ import annotations

import threading
import time
from itertools import islice

import numpy as np

from viq.core.codes import Codes
from viq.core.errors import ViqError, first_line
from viq.core.untrusted import printable
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import Store

_ROWS = 64  # read between two looks at whether to stop; the tokenizer takes small ones together


class Vectors:
    """`image_embeds` of up to so many rows.

    Args:
        tokenizer: what made the codes, with a text head.
        most: rows; of a larger store, those of some files.

    Attributes:
        seen: rows read so far.
        total: rows to read.
        trouble: what the first file that could not be read said; "" for none.
    """

    def __init__(self, store: Store, tokenizer: VisualTokenizer, most: int) -> None:
        self._store, self._tokenizer, self._most = store, tokenizer, most
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []  # numbers (n,), vectors (n, E)
        self._ended, self._stop = threading.Event(), threading.Event()
        self._begun = time.monotonic()
        self.seen, self.total, self.trouble = 0, min(len(store), most), ""
        self._thread = threading.Thread(target=self._go, daemon=True, name="viq-web-vectors")
        self._thread.start()

    @property
    def is_complete(self) -> bool:
        """Whether no further rows will be read."""
        return self._ended.is_set()

    @property
    def seconds_left(self) -> float:
        """Until it is complete, as fast as so far."""
        return (time.monotonic() - self._begun) * (self.total / max(1, self.seen) - 1)

    def wait(self, seconds: float) -> bool:
        """Whether it is complete, after so long at most."""
        return self._ended.wait(seconds)

    def nearest(self, vector: np.ndarray, count: int) -> list[tuple[int, float]]:
        """Rows, by number, that point most the way of a unit vector (E,), and the cosines."""
        blocks = list(self._blocks)
        if not blocks:
            return []
        similar = np.concatenate([block.astype(np.float32) @ vector for _, block in blocks])
        numbers = np.concatenate([numbers for numbers, _ in blocks])
        best = np.argsort(-similar, kind="stable")[:count]
        return list(zip(numbers[best].tolist(), similar[best].tolist(), strict=True))

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5)

    def _go(self) -> None:
        try:
            self._read()
        except Exception as error:  # a fault of ours: searches say so, the server goes on
            self.trouble = f"{type(error).__name__}: {first_line(error)}"
        finally:
            self._ended.set()

    def _read(self) -> None:
        shards = self._store.shards
        firsts = np.cumsum([0, *(shard.rows for shard in shards)])
        for place in np.random.default_rng(0).permutation(len(shards)).tolist():
            try:
                with self._store.reader(shards[place]) as reader:
                    rows = enumerate(reader.rows(columns=()), start=int(firsts[place]))
                    while group := list(islice(rows, min(_ROWS, self._most - self.seen))):
                        self._add([(n, row.codes) for n, row in group if row.codes is not None])
                        self.seen += len(group)
                        if self._stop.is_set():
                            return
            except ViqError as error:  # the rest of this file
                self.trouble = self.trouble or printable(str(error), 300)
            if self.seen >= self._most:
                return

    def _add(self, rows: list[tuple[int, Codes]]) -> None:
        if rows:
            vectors = self._tokenizer.image_embeds([codes for _, codes in rows])
            numbers = np.array([number for number, _ in rows])
            self._blocks.append((numbers, vectors.cpu().numpy().astype(np.float16)))
