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

    P = patches of all images, N = 3 neighbours: left, above, above left.

    Attributes:
        image_P, step_P: image and anti-diagonal of each patch.
        neighbours_PN: rows of `values`; 0 where there is no neighbour.
        places: for each image, where its patches are, in raster order.
    """

    image_P: np.ndarray
    step_P: np.ndarray
    neighbours_PN: np.ndarray
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
        ends = [*np.flatnonzero(np.diff(self.step_P)) + 1, len(self.step_P)]
        for start, stop in zip([0, *ends], ends, strict=False):
            images = self.image_P[start:stop]
            cuts = [*np.flatnonzero(np.diff(images)) + 1, len(images)]
            yield start, stop, [(images[a], a, b) for a, b in zip([0, *cuts], cuts, strict=False)]

    def levels(self, ids: Sequence[np.ndarray], levels: Sequence[int]) -> np.ndarray:
        """Levels (P, D), int32, of the ids (rows, cols, 4) of each image."""
        ids_PS = np.concatenate([item.reshape(-1, CODES_PER_PATCH) for item in ids])
        ordered = np.empty_like(ids_PS)
        ordered[np.concatenate(self.places)] = ids_PS
        basis = np.cumprod([1, *levels[:-1]])
        return (
            (ordered[..., None] // basis % np.array(levels)).reshape(len(ids_PS), -1).astype("i4")
        )

    def values(self, levels_PD: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """What the network reads of patches, (1 + P, D + 1) float32: centred levels, and 1.

        Row 0, all zero, is the neighbour that does not exist.
        """
        values = np.zeros((len(levels_PD) + 1, len(sizes) + 1), np.float32)
        values[1:, :-1] = _centred(levels_PD, sizes)
        values[1:, -1] = VALUE_UNIT
        return values


def _centred(levels_PD: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return (2 * levels_PD - (sizes - 1)) * LEVEL_UNIT
