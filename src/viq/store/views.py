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
from viq.store.runs import Group
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
        address: of its first byte, in memory.
        numbers: int32 (rows, 4): height, width, tile and place in its sample of each image.
        starts: int64 (samples + 1,): rows where samples begin, and one past the last.
        kinds: Arrow types of the extras, by name, but for what fits no column.
        where: the store.

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
        self._file, self.where = Unpacked(path), where
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
        self.numbers = np.stack([np.concatenate(column) for column in numbers], axis=1)
        # Rows where samples begin, and one past the end.
        self.starts = np.append(np.flatnonzero(self.numbers[:, 3] == 0), len(self.numbers))
        self.nbytes, self.address = self._file.nbytes, self._file.address
        self.kinds = self._extras.types

    @property
    def rows(self) -> int:
        """Rows, not samples."""
        return len(self.numbers)

    def __len__(self) -> int:
        """Samples, not rows."""
        return len(self.starts) - 1

    @cached_property
    def patches(self) -> np.ndarray:
        """Patches of each sample, int64."""
        height, width = self.numbers[:, :2].astype(np.int64).T
        rows, cols = grid_of((height, width))  # arrays work as well
        patches = np.asarray(rows * cols)
        return np.add.reduceat(patches, self.starts[:-1]) if len(self) else patches

    @property
    def group_count(self) -> int:
        """Groups of rows, whose codes are checked together."""
        return len(self._batches)

    def require(self, group: int) -> None:
        """Look at the codes of a group, if that was not done before. Raises `RottenError`."""
        self._file.require(group)

    def values(self, name: str) -> np.ndarray:
        """A column of numbers, of each row. Raises `CodesError` if one is missing."""
        parts = [batch[name] for batch in self._batches]
        if any(part.null_count for part in parts):
            raise CodesError(
                f"{self.where}: column {name} lacks values in some rows, so it cannot be packed; "
                "name other columns (columns=..)"
            )
        return np.concatenate([np.empty(0), *(part.to_numpy() for part in parts)])

    def groups(self, name: str, width: int) -> list[Group]:
        """Where the values of a column of lists or texts lie in memory, by groups of rows.

        Args:
            width: bytes of a value.

        Raises:
            RottenError: not where they must be.
        """
        groups, last = [], self.address
        for batch in self._batches:
            array = batch[name]
            lists = hasattr(array, "values")
            _, ends, *rest = array.buffers()
            data = array.values.buffers()[1] if lists else rest[0]
            address = data.address if data and data.size else last
            counted = np.frombuffer(ends, np.int32)[array.offset :][: len(array) + 1]
            group = Group(address, counted.astype(np.int64) * width)
            first, end = address + int(group.ends[0]), address + int(group.ends[-1])
            inside = last <= first <= end <= self.address + self.nbytes
            if not inside or (np.diff(group.ends) < 0).any():
                raise self._file.rotten()
            groups.append(group)
            last = end
        return groups

    def sample(self, place: int) -> CodeSample:
        """The sample at `place`, 0 to len - 1. Its ids are read-only views of the file.

        Raises:
            RottenError: its codes are damaged; the file is to be unpacked again.
            CodesError: what rides along cannot be read.
        """
        start, stop = self.starts[place : place + 2].tolist()
        codes = [
            self._codes(number, height, width, tile)
            for number, (height, width, tile, _) in enumerate(
                self.numbers[start:stop].tolist(), start
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
                    f"{self.where}: sample {self._keys[group][row]!r} has extras that cannot be "
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
