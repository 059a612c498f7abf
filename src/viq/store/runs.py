"""Runs of bytes of memory-mapped files: any of them copied side by side, in one call.

What belongs to a sample lies together in its shard, but neighbours in a batch come from all over
the mapped shards. Arrow's `take` for byte strings is the loop over copies of memory that this
needs, so the range of addresses that the files span is given to it as one array of strings: those
that are taken, and between them gaps that never are. Nothing is read outside of the files: who
makes `Runs` has checked that its ends lie inside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

# Room that Arrow should make for a run, in means of all; it doubles what is too little.
_SPARE = 1.25
_MOST_EMPTY = 16  # empty strings for each run, where gaps are so large that it would make too much
# Groups that are together no further apart than so many times what all of them hold are one array.
# Of several arrays all would be copied twice: from each, and then into their order.
_FAR = 8


@dataclass(frozen=True)
class Group:
    """Runs that lie one after another.

    Attributes:
        address: of the memory that `ends` counts from.
        ends: int64 (runs + 1,), bytes: where the first begins, and where each ends.
    """

    address: int
    ends: np.ndarray


class Runs:
    """Groups of runs, which are numbered through.

    Args:
        groups: by rising addresses.
        owner: what keeps the memory mapped.
    """

    def __init__(self, groups: Sequence[Group], owner: Any) -> None:
        counts = np.array([len(group.ends) - 1 for group in groups], np.int64)
        self._clusters: list[pa.Array] = []
        self._cluster = np.zeros(int(counts.sum()), np.int32)  # of each run
        self._place = np.empty(len(self._cluster), np.int64)  # there
        spans = np.array(
            [(g.address + g.ends[0], g.address + g.ends[-1]) for g in groups], np.int64
        )
        firsts = np.concatenate([[0], np.cumsum(counts)])
        for begin, end in _near(spans.reshape(-1, 2)):
            members = groups[begin:end]
            here = slice(int(firsts[begin]), int(firsts[end]))
            # Between two groups there is one gap, and before the first the one of `_array`.
            gaps = np.repeat(np.arange(1, end - begin + 1), counts[begin:end])
            self._place[here] = np.arange(here.stop - here.start) + gaps
            self._cluster[here] = len(self._clusters)
            taken = int(sum(group.ends[-1] - group.ends[0] for group in members))
            self._clusters.append(_array(members, taken, owner))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """The bytes of runs, one after another: uint8, in memory of its own."""
        import pyarrow as pa

        places = self._place[numbers]
        if len(self._clusters) == 1:
            return _bytes(self._clusters[0].take(pa.array(places)))
        cluster = self._cluster[numbers]
        order = np.argsort(cluster, kind="stable")
        cuts = np.searchsorted(cluster[order], np.arange(len(self._clusters) + 1)).tolist()
        parts = [
            array.take(pa.array(places[order[start:stop]]))
            for array, start, stop in zip(self._clusters, cuts[:-1], cuts[1:], strict=True)
            if start < stop
        ]
        if not parts:
            return np.empty(0, np.uint8)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return _bytes(pa.concat_arrays(parts).take(pa.array(back)))


def _near(spans: np.ndarray) -> list[tuple[int, int]]:
    """Groups (first, one past the last) that are taken as one array."""
    most = (_FAR + 1) * int((spans[:, 1] - spans[:, 0]).sum())
    found, begin = list[tuple[int, int]](), 0
    for number, (_, end) in enumerate(spans.tolist()):
        if end - spans[begin, 0] > most:
            found.append((begin, number))
            begin = number
    return [*found, (begin, len(spans))] if len(spans) else []


def _array(groups: Sequence[Group], taken: int, owner: Any) -> pa.Array:
    """One array of byte strings: a gap, the runs of the first group, a gap, and so on.

    Arrow makes room for as many strings as are taken of the mean length of all. The first gap, or
    empty strings at the end, see to it that this is enough, and not far too much.
    """
    import pyarrow as pa

    parts = [group.address + group.ends for group in groups]
    runs = sum(len(part) - 1 for part in parts)
    first, last = int(parts[0][0]), int(parts[-1][-1])
    wanted = int(_SPARE * taken / max(runs, 1) * (runs + len(parts)))
    base = max(0, first - max(0, wanted - (last - first)))
    empty = max(0, last - base) * runs / (_SPARE * taken) if taken else 0
    empty = int(min(max(0, empty - runs - len(parts)), _MOST_EMPTY * runs))
    ends = np.concatenate([[base], *parts, np.full(empty, last)]) - base
    data = pa.foreign_buffer(base, last - base, owner)
    return pa.Array.from_buffers(
        pa.large_binary(), len(ends) - 1, [None, pa.py_buffer(np.ascontiguousarray(ends)), data]
    )


class _Memory:
    """A buffer that Arrow has just made, as numpy may write to it: nobody else knows of it."""

    def __init__(self, buffer: pa.Buffer) -> None:
        self._buffer = buffer
        self.__array_interface__ = {
            "data": (buffer.address, False),
            "shape": (buffer.size,),
            "typestr": "|u1",
            "version": 3,
        }


def _bytes(strings: pa.Array) -> np.ndarray:
    data = strings.buffers()[2]
    return np.asarray(_Memory(data)) if data and data.size else np.empty(0, np.uint8)
