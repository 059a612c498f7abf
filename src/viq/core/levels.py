"""FSQ levels by name, and the size of their codebook."""

from __future__ import annotations

import math
from collections.abc import Sequence

PRESETS: dict[str, tuple[int, ...]] = {
    "2k": (8, 8, 4, 3, 3),
    "4k": (8, 8, 4, 4, 4),
    "8k": (8, 8, 8, 4, 4),
    "16k": (8, 8, 8, 6, 5),
    "64k": (8, 8, 8, 5, 5, 5),
}


def codebook_size(levels: Sequence[int]) -> int:
    """Number of different codes: the product of the levels."""
    return math.prod(levels)


def check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """Levels as a tuple of integers.

    Raises:
        ValueError: a level below 2, or a codebook above 65,536, which uint16 codes cannot index.
    """
    if len(levels) > 16:  # of at least 2 each: before a product of millions of them is formed
        raise ValueError(f"{len(levels)} FSQ levels: 16 at most fit into codes of 16 bits")
    levels = tuple(int(level) for level in levels)
    if not levels or min(levels) < 2:
        raise ValueError(f"FSQ levels must be at least 2 each, got {list(levels)}")
    if codebook_size(levels) > 65536:
        raise ValueError(
            f"FSQ levels {list(levels)} make {codebook_size(levels)} codes, but codes are stored "
            "in 16 bits: choose levels whose product is at most 65536"
        )
    return levels
