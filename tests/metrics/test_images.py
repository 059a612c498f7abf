"""MS-SSIM, blockiness, and the distance between sets of features."""

from __future__ import annotations

import numpy as np
import pytest

from viq.core.types import ViqError
from viq.metrics.frechet import frechet_distance
from viq.metrics.images import blockiness, ms_ssim


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    values = 128 + 60 * np.sin(x / 9) + 50 * np.cos(y / 13)
    return np.repeat(values[..., None], 3, 2).astype(np.uint8)


def in_blocks(image: np.ndarray, side: int) -> np.ndarray:
    """Each block by its mean: steps lie at borders alone."""
    result = image.copy()
    for top in range(0, image.shape[0], side):
        for left in range(0, image.shape[1], side):
            block = np.s_[top : top + side, left : left + side]
            result[block] = image[block].mean((0, 1)).round()
    return result


def test_ms_ssim_of_equal_and_worse_pictures() -> None:
    a = smooth(200, 180)
    little, much = (
        np.clip(a + np.random.default_rng(1).normal(0, s, a.shape), 0, 255).astype(np.uint8)
        for s in (5, 40)
    )
    assert ms_ssim(a, a) == pytest.approx(1)
    first, second = ms_ssim(a, little), ms_ssim(a, much)
    assert first is not None and second is not None
    assert 1 > first > second > 0
    assert ms_ssim(a, little) == pytest.approx(ms_ssim(little, a), abs=1e-12)
    assert ms_ssim(noise(176, 176), 255 - noise(176, 176)) == 0  # structure is negative


def test_ms_ssim_needs_five_scales() -> None:
    assert ms_ssim(noise(175, 400), noise(175, 400)) is None
    assert ms_ssim(noise(176, 176), noise(176, 176)) == pytest.approx(1)


def test_blockiness_sees_borders_of_blocks_alone() -> None:
    image = smooth(96, 128)
    image = np.clip(image + np.random.default_rng(0).normal(0, 2, image.shape), 0, 255)
    image = image.astype(np.uint8)
    assert blockiness(image, image) == 1
    stepped = image.astype(int)
    stepped[:, 16:] += 20  # one border of each row
    found = blockiness(np.clip(stepped, 0, 255).astype(np.uint8), image)
    assert found is not None and found > 1.2
    moved = image.astype(int)
    moved[:, 20:] += 20  # the same step within a block
    found = blockiness(np.clip(moved, 0, 255).astype(np.uint8), image)
    assert found is not None and found < 1


def test_blockiness_of_what_has_no_steps() -> None:
    assert blockiness(noise(16, 200), noise(16, 200)) is None  # no border below
    flat = np.full((64, 64, 3), 7, np.uint8)
    assert blockiness(flat, noise(64, 64)) is None
    assert blockiness(in_blocks(noise(64, 64), 16), noise(64, 64)) is None  # nothing within


def test_frechet_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (200_000, 3)), rng.normal(0, 1, (200_000, 3)) * [1, 2, 3] + [1, 0, 0]
    # |(1, 0, 0)|^2 + sum of (1 - scale)^2.
    assert frechet_distance(a, b) == pytest.approx(1 + 0 + 1 + 4, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a[:5], b[:5]) == pytest.approx(frechet_distance(b[:5], a[:5]))


@pytest.mark.parametrize("shapes", [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5,))])
def test_frechet_distance_refuses_other_shapes(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ViqError, match="at least two rows"):
        frechet_distance(np.zeros(shapes[0]), np.zeros(shapes[1]))
