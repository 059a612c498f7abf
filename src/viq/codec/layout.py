"""The order in which patches are coded, and what each is coded from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from viq.core.types import CODES_PER_PATCH, Grid

WEIGHT_UNIT, VALUE_UNIT = 256, 128  # steps in 1 of weights and of values


CAP = 4 * VALUE_UNIT - 1  # hidden values are clipped to 0..CAP


LEVEL_UNIT = VALUE_UNIT // 4  # half the step from one level to the next


_NEIGHBOURS = 3


EXACT = 1 << 24  # float32 holds every integer up to here


@dataclass(frozen=True)
class Layout:
    """Patches of several images in coding order: by anti-diagonal, then image, then raster.

    T = patches of all images; each has 3 neighbours: left, above, above left.

    Attributes:
        image_T, step_T: image and anti-diagonal of each patch.
        neighbours_T3: rows of `values`; 0 where there is no neighbour.
        places: for each image, where its patches are, in raster order.
    """

    image_T: np.ndarray
    step_T: np.ndarray
    neighbours_T3: np.ndarray
    places: list[np.ndarray]

    @classmethod
    def of(cls, grids: Sequence[Grid]) -> Layout:
        """The layout of images of these grids."""
        counts = [rows * cols for rows, cols in grids]
        image = np.repeat(np.arange(len(grids)), counts)
        step = np.concatenate([np.add(*np.indices(grid)).ravel() for grid in grids])
        order = np.lexsort((image, step))
        place = np.empty(len(order), np.intp)
        place[order] = np.arange(len(order))
        places = np.split(place, np.cumsum(counts)[:-1])
        neighbours = []
        for grid, mine in zip(grids, places, strict=True):
            row = np.pad(mine.reshape(grid) + 1, ((1, 0), (1, 0)))
            near = (row[1:, :-1], row[:-1, 1:], row[:-1, :-1])
            neighbours.append(np.stack(near, axis=-1).reshape(-1, len(near)))
        return cls(image[order], step[order], np.concatenate(neighbours)[order], places)

    def steps(self) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
        """(start, stop) of each anti-diagonal, and its images as (image, start, stop) within."""
        ends = [*np.flatnonzero(np.diff(self.step_T)) + 1, len(self.step_T)]
        for start, stop in zip([0, *ends], ends, strict=False):
            images = self.image_T[start:stop]
            cuts = [*np.flatnonzero(np.diff(images)) + 1, len(images)]
            yield start, stop, [(images[a], a, b) for a, b in zip([0, *cuts], cuts, strict=False)]

    def levels(self, ids: Sequence[np.ndarray], levels: Sequence[int]) -> np.ndarray:
        """Levels (T, K), int32, of the ids (rows, cols, 4) of each image."""
        ids_TS = np.concatenate([item.reshape(-1, CODES_PER_PATCH) for item in ids])
        ordered = np.empty_like(ids_TS)
        ordered[np.concatenate(self.places)] = ids_TS
        basis = np.cumprod([1, *levels[:-1]])
        return (
            (ordered[..., None] // basis % np.array(levels)).reshape(len(ids_TS), -1).astype("i4")
        )

    def values(self, levels_TK: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """What the network reads of patches, (1 + T, K + 1) float32: centred levels, and 1.

        Row 0, all zero, is the neighbour that does not exist.
        """
        values = np.zeros((len(levels_TK) + 1, len(sizes) + 1), np.float32)
        values[1:, :-1] = _centred(levels_TK, sizes)
        values[1:, -1] = VALUE_UNIT
        return values


def _centred(levels_TK: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return (2 * levels_TK - (sizes - 1)) * LEVEL_UNIT
