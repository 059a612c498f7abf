"""An order of coding in which most patches of an image can be coded at once.

Patches are coded in five phases, from a coarse lattice to a fine one. Each patch of a phase has
up to four neighbours that earlier phases coded, at equal distance around it:

    0  every fourth row and column               1/16 of the patches, no neighbours
    1  the middle of four of those               1/16, diagonal, two rows away
    2  the rest of every second row and column   1/8, straight, two rows away
    3  the middle of four of those               1/4, diagonal, one row away
    4  the rest                                  1/2, straight, one row away

n = patches of one phase of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from viq.core.types import Grid

_DIAGONAL, _STRAIGHT = ((-1, -1), (-1, 1), (1, -1), (1, 1)), ((-1, 0), (0, -1), (0, 1), (1, 0))
_OFFSETS = (
    ((0, 0),) * 4,
    tuple((2 * y, 2 * x) for y, x in _DIAGONAL),
    tuple((2 * y, 2 * x) for y, x in _STRAIGHT),
    _DIAGONAL,
    _STRAIGHT,
)
PHASES, NEIGHBOURS = len(_OFFSETS), 4
_MARGIN = 2  # patches that the farthest neighbour is away
_CACHED = 1 << 14  # patches of an image whose places are kept: stores have many of one size

Part = tuple[int, int, int]  # of a step: image, start, stop


class Step(NamedTuple):
    """One phase of several images.

    Attributes:
        phase: its number.
        places_n: of its patches among those of all images, image by image in raster order.
        neighbours_4n: places of the neighbours plus 1; 0 where there is none.
        parts: of images that have patches in this phase: (image, start, stop) among the n.
    """

    phase: int
    places_n: np.ndarray
    neighbours_4n: np.ndarray
    parts: list[Part]


def steps_of(grids: Sequence[Grid]) -> list[Step]:
    """The phases of images of these grids, in the order of coding."""
    starts = [0, *accumulate(rows * cols for rows, cols in grids)]
    found = [_cached(grid) if grid[0] * grid[1] <= _CACHED else _phases(grid) for grid in grids]
    steps = []
    for phase in range(PHASES):
        parts, places, neighbours, end = [], [], [], 0
        for image, (start, phases) in enumerate(zip(starts, found, strict=False)):
            place, near = phases[phase]
            if len(place):
                parts.append((image, end, end := end + len(place)))
                places.append(place + start)
                neighbours.append(np.where(near > 0, near + start, 0))
        if parts:
            steps.append(Step(phase, np.concatenate(places), np.concatenate(neighbours, 1), parts))
    return steps


def _phases(grid: Grid) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places (n,) and neighbours (4, n), each plus 1, of each phase of one image."""
    rows, cols = grid
    numbers = np.pad(np.arange(1, rows * cols + 1).reshape(grid), _MARGIN)
    y, x = (part.ravel() for part in np.indices(grid))
    phase = _phase_of(y, x)
    found = []
    for number, offsets in enumerate(_OFFSETS):
        places = np.flatnonzero(phase == number)
        v, u = y[places] + _MARGIN, x[places] + _MARGIN
        near = np.stack([numbers[v + dy, u + dx] for dy, dx in offsets])
        found.append((places, near if number else np.zeros_like(near)))
    return found


_cached = lru_cache(maxsize=64)(_phases)


def _phase_of(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Phase of patches in rows y and columns x."""
    even, halved = (y % 2 == 0) & (x % 2 == 0), (y // 2 % 2) * 2 + x // 2 % 2
    coarse = np.choose(halved, [0, 2, 2, 1])
    return np.where(even, coarse, np.where((y + x) % 2 == 1, 4, 3))
