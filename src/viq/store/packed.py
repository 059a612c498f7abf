"""Packed batches: the codes of many samples one after another, as arrays, gathered all at once.

Several batches are gathered together (`Gathered`), as what a call of numpy or Arrow costs by itself
is more than copying the codes of one; then each batch is slices of the same arrays. Nothing is made
for a sample. `CodeSample` is the plain twin; tests hold both against each other.

P = patches, I = images, S = samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from viq.core.types import CODES_PER_PATCH, CodesError, grid_of
from viq.store.runs import Runs

if TYPE_CHECKING:
    import pyarrow as pa

    from viq.store.views import ShardView

_PATCH = 2 * CODES_PER_PATCH  # bytes of the codes of a patch


@dataclass(frozen=True)
class PackedColumn:
    """A column that rides along, of samples one after another.

    Attributes:
        values: those of the first sample, then those of the second; UTF-8 as uint8 for texts.
        offsets: int64 (S + 1,): where in `values` each sample begins, and where the last ends.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, place: int) -> np.ndarray:
        """The values of a sample of the batch."""
        return self.values[self.offsets[place] : self.offsets[place + 1]]


@dataclass(frozen=True, kw_only=True)
class PackedCodes:
    """A batch: the codes of samples one after another, and where each begins.

    Attributes:
        ids: uint16 (P, 4), patches of all images, in raster order each.
        offsets: int64 (I + 1,): where in `ids` each image begins, and where the last ends.
        grids_hw: int32 (I, 2), rows and columns of patches of each image.
        sizes_hw: int32 (I, 2), px, of the original images.
        tiles: int32 (I,), as `Codes.tile`.
        images: int64 (S + 1,): which is the first image of each sample, and one past the last.
        samples: int64 (S,), numbers of the samples: `data[number]` is one of them by itself.
        columns: those of `CodeDataset(columns=..)` that are numbers, texts, or lists of numbers.
    """

    ids: np.ndarray
    offsets: np.ndarray
    grids_hw: np.ndarray
    sizes_hw: np.ndarray
    tiles: np.ndarray
    images: np.ndarray
    samples: np.ndarray
    columns: Mapping[str, PackedColumn] = field(default_factory=dict)

    def __len__(self) -> int:
        """Samples."""
        return len(self.samples)

    def __repr__(self) -> str:
        return (
            f"PackedCodes({len(self.ids)} patches, {len(self.grids_hw)} images, {len(self)} "
            f"samples, columns={list(self.columns)})"
        )


@dataclass(frozen=True)
class Gathered:
    """Some batches that were gathered together.

    Attributes:
        whole: all of them as one.
        counts: samples of each batch.
        positions: of each, in the epoch; see `CodeDataset`.
    """

    whole: PackedCodes
    counts: Sequence[int]
    positions: Sequence[int]

    def batches(self) -> Iterator[tuple[int, PackedCodes]]:
        """(position, batch), in order."""
        whole = self.whole
        samples = offsets_of(self.counts)
        images = whole.images[samples]
        cuts = samples.tolist(), images.tolist(), whole.offsets[images].tolist()
        columns = [
            (name, column, column.offsets[samples].tolist())
            for name, column in whole.columns.items()
        ]
        for i, position in enumerate(self.positions):
            (s, s_end), (k, k_end), (p, p_end) = (cut[i : i + 2] for cut in cuts)
            yield (
                position,
                PackedCodes(
                    ids=whole.ids[p:p_end],
                    offsets=whole.offsets[k : k_end + 1] - p,
                    grids_hw=whole.grids_hw[k:k_end],
                    sizes_hw=whole.sizes_hw[k:k_end],
                    tiles=whole.tiles[k:k_end],
                    images=whole.images[s : s_end + 1] - k,
                    samples=whole.samples[s:s_end],
                    columns={
                        name: PackedColumn(
                            column.values[at[i] : at[i + 1]],
                            column.offsets[s : s_end + 1] - at[i],
                        )
                        for name, column, at in columns
                    },
                ),
            )


class Shards(Protocol):
    """What maps shards, as `ShardCache` does."""

    def __getitem__(self, number: int) -> ShardView: ...

    def verified(self, number: int, group: int, view: ShardView) -> bool: ...


class Packer:
    """Gathers samples of the shards of a store, by their numbers.

    Args:
        shards: what maps them.
        firsts: number of the first sample of each shard, and one past the last.
        columns: of the extras, by name; None for all that can be packed.
    """

    def __init__(
        self, shards: Shards, firsts: Sequence[int] | np.ndarray, columns: Sequence[str] | None
    ) -> None:
        self._shards, self._firsts = shards, np.asarray(firsts, np.int64)
        self._columns = columns
        self._table = _Table([], self._firsts, columns)

    def gather(self, samples: np.ndarray) -> PackedCodes:
        """Samples one after another.

        Raises:
            CodesError: a shard is missing or damaged; a column cannot be packed.
        """
        shards = np.searchsorted(self._firsts, samples, side="right") - 1
        used = np.unique(shards).tolist()
        views = {shard: self._shards[shard] for shard in used}
        if any(self._table.views.get(shard) is not view for shard, view in views.items()):
            self._renew(views)
        table = self._table
        for shard, group in table.unseen(samples, shards):
            if not self._shards.verified(shard, group, table.views[shard]):
                return self.gather(samples)  # unpacked anew
        table.used = set(used)
        return table.gather(samples, shards)

    def _renew(self, views: dict[int, ShardView]) -> None:
        """Tabulate these shards, and those that were used a moment ago and may be again."""
        recent = {shard: self._table.views[shard] for shard in self._table.used - views.keys()}
        self._table = _Table(sorted((recent | views).items()), self._firsts, self._columns)


class _Table:
    """Where the samples of some shards are: their rows, and the bytes of each row."""

    def __init__(
        self,
        views: Sequence[tuple[int, ShardView]],
        firsts: np.ndarray,
        columns: Sequence[str] | None,
    ) -> None:
        # By address, as `Runs` wants its groups.
        by_address = sorted(views, key=lambda pair: pair[1].address)
        self.views, self.used = dict(by_address), set[int]()
        found = [view for _, view in by_address]
        self._firsts = firsts
        rows = np.cumsum([0, *(view.rows for view in found)])
        starts = np.cumsum([0, *(len(view) + 1 for view in found)])
        # Of a sample, where in `_starts` its row is listed: its number and what its shard adds.
        self._shift = np.zeros(len(firsts), np.int64)
        for place, (shard, _) in enumerate(by_address):
            self._shift[shard] = starts[place] - firsts[shard]
        self._starts = _joined([v.starts + rows[i] for i, v in enumerate(found)], np.int64)
        self._numbers = _joined([view.numbers for view in found], np.int32, 4)
        groups = [group for view in found for group in view.groups("codes", 2)]
        self._group_of = np.repeat(np.arange(len(groups)), [len(g.ends) - 1 for g in groups])
        self._names = [(shard, n) for shard, view in by_address for n in range(view.group_count)]
        self._unseen = np.ones(len(groups), bool)
        self._runs = Runs(groups, found)
        grids = _grids(self._numbers[:, :2])
        patches = grids[:, 0].astype(np.int64) * grids[:, 1]
        lengths = _joined([np.diff(group.ends) for group in groups], np.int64)
        if not np.array_equal(lengths, _PATCH * patches):
            raise CodesError(
                f"{found[0].where}: codes and sizes of a shard do not fit: encode again"
            )
        self._columns = _column_readers(found, columns)

    def unseen(self, samples: np.ndarray, shards: np.ndarray) -> list[tuple[int, int]]:
        """(shard, group) of codes that nobody has asked this for before; after this, it was."""
        if not self._unseen.any():
            return []
        at = samples + self._shift[shards]
        touched = np.zeros(len(self._unseen) + 1, np.int64)
        # A sample of many images may reach into the groups that follow.
        np.add.at(touched, self._group_of[self._starts[at]], 1)
        np.add.at(touched, self._group_of[self._starts[at + 1] - 1] + 1, -1)
        found = np.flatnonzero((np.cumsum(touched)[:-1] > 0) & self._unseen)
        self._unseen[found] = False
        return [self._names[i] for i in found.tolist()]

    def gather(self, samples: np.ndarray, shards: np.ndarray) -> PackedCodes:
        at = samples + self._shift[shards]
        first = self._starts[at]
        counts = self._starts[at + 1] - first
        rows, images = first, np.arange(len(samples) + 1)
        if (counts != 1).any():
            images = offsets_of(counts)
            rows = np.arange(images[-1]) + np.repeat(first - images[:-1], counts)
        numbers = self._numbers[rows]
        if not numbers[:, 0].all():  # samples without images have a row all the same
            full = numbers[:, 0] > 0
            rows, numbers = rows[full], numbers[full]
            images = offsets_of(full)[images]
        sizes = numbers[:, :2]
        grids = _grids(sizes)
        patches = grids[:, 0].astype(np.int64) * grids[:, 1]
        ids = self._runs.take(rows).view(np.uint16).reshape(-1, CODES_PER_PATCH)
        return PackedCodes(
            ids=ids,
            offsets=offsets_of(patches),
            grids_hw=grids,
            sizes_hw=sizes,
            tiles=numbers[:, 2],
            images=images,
            samples=samples,
            columns={name: read(first) for name, read in self._columns.items()},
        )


Reader = Callable[[np.ndarray], PackedColumn]  # of the rows where samples begin


def _column_readers(views: Sequence[ShardView], columns: Sequence[str] | None) -> dict[str, Reader]:
    """By name, what reads a column of all these shards."""
    if not views:
        return {}
    kinds = {name: kind for name, kind in views[0].kinds.items() if _width(kind) is not None}
    for view in views:
        for name in kinds if columns is None else columns:
            kind = view.kinds.get(name)
            if kind is None or kind != kinds.get(name):
                raise CodesError(
                    f"{view.where}: column {name} cannot be packed, as its type is "
                    f"{kind or 'that of no column'}: numbers, texts, and lists of numbers can; "
                    "name others than this (columns=..)"
                )
    return {
        name: _reader(views, name, kinds[name]) for name in (kinds if columns is None else columns)
    }


def _width(kind: pa.DataType) -> int | None:
    """Bytes of what is listed; 0 for plain numbers, None for what cannot be packed."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        return _width_of_number(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return 1
    return None if _width_of_number(kind) is None else 0


def _width_of_number(kind: pa.DataType) -> int | None:
    import pyarrow as pa

    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return kind.bit_width // 8 if number else None


def _reader(views: Sequence[ShardView], name: str, kind: pa.DataType) -> Reader:
    import pyarrow as pa

    width = _width(kind)
    if not width:
        values = _joined([view.values(name) for view in views], kind.to_pandas_dtype())
        return lambda rows: PackedColumn(values[rows], np.arange(len(rows) + 1))
    dtype = kind.value_type.to_pandas_dtype() if pa.types.is_list(kind) else np.uint8
    groups = [group for view in views for group in view.groups(name, width)]
    runs, lengths = Runs(groups, views), _joined([np.diff(g.ends) for g in groups], np.int64)

    def read(rows: np.ndarray) -> PackedColumn:
        offsets = offsets_of(lengths[rows] // width)
        return PackedColumn(runs.take(rows).view(dtype), offsets)

    return read


def _grids(sizes_hw: np.ndarray) -> np.ndarray:
    height, width = sizes_hw.T
    return np.stack(grid_of((height, width)), axis=1)  # arrays work as well


def offsets_of(lengths: np.ndarray | Sequence[int]) -> np.ndarray:
    """Where each of so many begins, and where the last ends, int64."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _joined(parts: Sequence[np.ndarray], dtype: Any, *width: int) -> np.ndarray:
    return np.concatenate([np.empty((0, *width), dtype), *parts]).astype(dtype, copy=False)
