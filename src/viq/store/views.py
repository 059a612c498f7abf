"""One shard, unpacked and memory-mapped: any of its samples at once. See `store.cache`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viq.core.codes import Codes
from viq.core.types import FLOAT32, CodesError, grid_of
from viq.store.columns import Extras
from viq.store.schema import COLUMNS, COUNTED
from viq.store.unpacked import Unpacked

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = ("height", "width", "tile", "image_index")


@dataclass(frozen=True)
class CodeSample:
    """What was one input: the codes of its images, and what rides along.

    Attributes:
        codes: of its images, in their order; usually of one, of none in a sample of text alone.
        extras: the columns that came with it.
    """

    key: str
    codes: tuple[Codes, ...]
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def patches(self) -> int:
        """Patches of all its images: the tokens that a language model reads."""
        return sum(rows * cols for rows, cols in (item.grid for item in self.codes))


class ShardView:
    """One unpacked shard, memory-mapped: any of its samples at once; for any number of threads.

    Args:
        path: of a file of `store.unpacked`.
        columns: of the extras; None for all.
        where: the store, for errors.

    Attributes:
        metadata: of the file: who made the codes.
        nbytes: of the file.

    Raises:
        RottenError: the file is damaged.
        CodesError: it has no such column.
        OSError: it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        columns: Sequence[str] | None,
        where: str,
        dtype: str = FLOAT32,
    ) -> None:
        self._file, self._where = Unpacked(path), where
        self._batches = self._file.batches
        schema = self._file.schema
        self.metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
        counted = COUNTED if "viq.refinement" in self.metadata else ()
        extras = Extras(field for field in schema if field.name not in (*COLUMNS, *counted))
        self._extras = extras if columns is None else extras.only(columns, where)
        self._fingerprint, self._dtype = fingerprint, dtype
        self._firsts = [0, *np.cumsum([len(batch) for batch in self._batches]).tolist()]
        self._ends = [batch["codes"].offsets.to_numpy() for batch in self._batches]
        self._values = [batch["codes"].values.to_numpy() for batch in self._batches]
        self._keys = [_Texts(batch["key"]) for batch in self._batches]
        none = np.empty(0, np.int32)
        numbers = [[none, *(b[name].to_numpy() for b in self._batches)] for name in _NUMBERS]
        self._numbers = np.stack([np.concatenate(column) for column in numbers], axis=1)
        # Rows where samples begin, and one past the end.
        self._starts = np.append(np.flatnonzero(self._numbers[:, 3] == 0), len(self._numbers))
        self.nbytes = self._file.nbytes

    @property
    def rows(self) -> int:
        """Rows, not samples."""
        return len(self._numbers)

    def __len__(self) -> int:
        """Samples, not rows."""
        return len(self._starts) - 1

    @cached_property
    def patches(self) -> np.ndarray:
        """Patches of each sample, int64."""
        height, width = self._numbers[:, :2].astype(np.int64).T
        rows, cols = grid_of((height, width))  # arrays work as well
        patches = np.asarray(rows * cols)
        return np.add.reduceat(patches, self._starts[:-1]) if len(self) else patches

    def sample(self, place: int) -> CodeSample:
        """The sample at `place`, 0 to len - 1. Its ids are read-only views of the file.

        Raises:
            RottenError: its codes are damaged; the file is to be unpacked again.
            CodesError: what rides along cannot be read.
        """
        start, stop = self._starts[place : place + 2].tolist()
        codes = [
            self._codes(number, height, width, tile)
            for number, (height, width, tile, _) in enumerate(
                self._numbers[start:stop].tolist(), start
            )
            if height
        ]
        group, row = self._find(start)
        extras = {}
        if self._extras.fields:
            try:
                extras = self._extras.rows(self._batches[group].slice(row, 1))[0]
            except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
                reason = " ".join(str(error).split())
                raise CodesError(
                    f"{self._where}: sample {self._keys[group][row]!r} has extras that cannot be "
                    f"read ({reason}): the file is damaged"
                ) from None
        return CodeSample(self._keys[group][row], tuple(codes), extras)

    def _codes(self, number: int, height: int, width: int, tile: int) -> Codes:
        group, row = self._find(number)
        self._file.require(group)
        start, stop = self._ends[group][row : row + 2].tolist()
        ids = self._values[group][start:stop].reshape(*grid_of((height, width)), -1)
        return Codes(ids, (height, width), tile, self._fingerprint, self._dtype)

    def _find(self, row: int) -> tuple[int, int]:
        """Batch of a row, and its place there."""
        group = bisect_right(self._firsts, row) - 1
        return group, row - self._firsts[group]


class _Texts:
    """The strings of an Arrow array. Its own way to one of them takes as long as all else here."""

    def __init__(self, array: pa.Array) -> None:
        _, ends, data = array.buffers()
        first = array.offset
        self._ends = np.frombuffer(ends, np.int32)[first : first + len(array) + 1]
        self._data = memoryview(data or b"")  # no bytes where all are empty

    def __getitem__(self, place: int) -> str:
        start, stop = self._ends[place : place + 2].tolist()
        return str(self._data[start:stop], "utf-8")
