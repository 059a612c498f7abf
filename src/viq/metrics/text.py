"""How much of a text is right, character by character."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Characters (or other items) to insert, delete or replace to make `b` of `a` (Levenshtein)."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            cost = min(row[j] + 1, row[j - 1] + 1, above_left + (one != other))
            above_left, row[j] = row[j], cost
    return row[-1]


def character_errors(read: str, wanted: str) -> tuple[int, int]:
    """Edits from `read` to `wanted`, and the characters of `wanted`.

    Case, and the kind and length of white space, do not count: they depend on how a reader joins
    lines rather than on what it sees.
    """
    ours, theirs = (" ".join(text.casefold().split()) for text in (read, wanted))
    return edit_distance(ours, theirs), len(theirs)
