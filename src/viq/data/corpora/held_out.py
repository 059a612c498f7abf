"""Labelled photos of which a quarter is held out: what `viq eval naming` asks about.

What a photo is called alone says whether it is held out, so every model answers the same photos
however they are split into files. Whoever trains on such photos leaves those out.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

from viq.core.types import ViqError
from viq.data.sources.base import Source

HELD_OUT = 4  # one photo in so many
LEAST = 8  # photos of a label, else it is left out


def is_held_out(name: str) -> bool:
    """Whether a photo is held out: one in four, by the SHA-256 of what it is called
    (`Source.names`)."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()[-1] % HELD_OUT == 0


def labelled(
    source: Source, label: str = "label", where: Mapping[str, str] | None = None
) -> tuple[list[tuple[int, str, bool]], int]:
    """(row, name, held out) of all photos with a frequent label, and how many cannot be read.

    Args:
        label: the column that names what is in a photo; rows without it are left out.
        where: only rows whose columns have these values.
    """
    groups: dict[str, list[tuple[int, str, bool]]] = defaultdict(list)
    skipped = 0
    for index, name in enumerate(source.names()):
        try:
            columns = source[index].extras
        except ViqError:
            skipped += 1
            continue
        shown, wanted = columns.get(label), (where or {}).items()
        if shown and all(str(columns.get(column)) == value for column, value in wanted):
            groups[str(shown)].append((index, str(shown), is_held_out(name)))
    frequent = [group for _, group in sorted(groups.items()) if len(group) >= LEAST]
    return [row for group in frequent for row in group], skipped
