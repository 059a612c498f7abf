"""Labelled photos of which a quarter is held out: what `viq eval naming` asks about.

Photos with a label are split by their keys: of the photos of a label, in the order of the SHA-256
of their keys, the first quarter is held out. Whoever trains on such photos leaves those out by
`not_held_out`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

from viq.core.types import ViqError
from viq.data.sources.base import Source

HELD_OUT = 4  # one in so many of a label
LEAST = 8  # photos of a label, else it is left out


def labelled(
    source: Source, label: str = "label", where: Mapping[str, str] | None = None
) -> tuple[list[tuple[int, str, bool]], int]:
    """(row, name, held out) of all photos with a frequent label, and how many cannot be read.

    Args:
        label: the column that names what is in a photo; rows without it are left out.
        where: only rows whose columns have these values.
    """
    rows, skipped = _columns(source)
    return _split(rows, label, where or {}), skipped


def not_held_out(source: Source, label: str = "label", part: str = "source") -> list[int]:
    """Rows to train on: those that are held out neither when all are asked about, nor when only
    those with one value of the column `part` are; rows that cannot be read are left out too."""
    rows, _ = _columns(source)
    parts = {str(columns[part]) for _, _, columns in rows if columns.get(part)}
    wheres = [{}, *({part: value} for value in sorted(parts))]
    held = {row for where in wheres for row, _, is_held in _split(rows, label, where) if is_held}
    return [row for row, _, _ in rows if row not in held]


_Columns = list[tuple[int, str, Mapping[str, object]]]  # row, key, what rides along


def _columns(source: Source) -> tuple[_Columns, int]:
    rows: _Columns = []
    skipped = 0
    for index, key in enumerate(source.keys()):
        try:
            rows.append((index, key, source[index].extras))
        except ViqError:
            skipped += 1
    return rows, skipped


def _split(rows: _Columns, label: str, where: Mapping[str, str]) -> list[tuple[int, str, bool]]:
    groups: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for index, key, columns in rows:
        name = columns.get(label)
        if name and all(str(columns.get(column)) == value for column, value in where.items()):
            groups[str(name)].append((hashlib.sha256(key.encode()).hexdigest(), index))
    return [
        (index, name, place < len(found) // HELD_OUT)
        for name, found in sorted(groups.items())
        if len(found) >= LEAST
        for place, (_, index) in enumerate(sorted(found))
    ]
