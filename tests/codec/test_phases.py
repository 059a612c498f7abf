"""Phases: every patch once, after all of its neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq.codec import phases
from viq.codec.phases import steps_of

GRIDS = st.lists(st.tuples(st.integers(1, 13), st.integers(1, 13)), min_size=1, max_size=4)
DISTANCE = {1: (2, 2), 2: (0, 2), 3: (1, 1), 4: (0, 1)}  # of neighbours in rows and columns


@given(GRIDS)
def test_each_patch_is_coded_once_after_its_neighbours(grids: list[tuple[int, int]]) -> None:
    total = sum(rows * cols for rows, cols in grids)
    image = np.repeat(np.arange(len(grids)), [rows * cols for rows, cols in grids])
    place = np.concatenate([np.moveaxis(np.indices(grid), 0, -1).reshape(-1, 2) for grid in grids])
    known = np.zeros(total, int)
    for step in steps_of(grids):
        assert [a for a, *_ in step.parts] == sorted({int(i) for i in image[step.places_n]})
        for number, a, b in step.parts:
            assert (image[step.places_n[a:b]] == number).all()
        for own, near_4 in zip(step.places_n, step.neighbours_4n.T, strict=True):
            assert step.phase == 0 or near_4.any()
            for near in near_4[near_4 > 0] - 1:
                assert known[near] and image[near] == image[own]
                apart = np.abs(place[near] - place[own])
                assert tuple(sorted(apart.tolist())) == DISTANCE[step.phase]
        known[step.places_n] += 1
    assert (known == 1).all()


def test_neighbours_are_missing_only_at_the_borders() -> None:
    for step in steps_of([(40, 40)]):
        missing = (step.neighbours_4n == 0).any(0)
        y, x = np.divmod(step.places_n[missing], 40)
        near_border = (np.minimum(y, x) < 2) | (np.maximum(y, x) > 37)
        assert step.phase == 0 or near_border.all()


def test_large_images_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "_CACHED", 5)
    before = phases._cached.cache_info().currsize
    assert len(steps_of([(3, 3), (3, 3)])) == 5
    assert phases._cached.cache_info().currsize == before
