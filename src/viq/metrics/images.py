"""Numbers about pictures: PSNR and SSIM.

numpy in float64 and exact integers, in bands of rows: a result depends neither on a device nor on
the number of threads, and memory stays small beside the pictures.

H, W = height and width in px.
"""

from __future__ import annotations

import math

import numpy as np

from viq.core.types import ViqError

_WINDOW, _SIGMA = 11, 1.5  # px; Wang et al. 2004
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_BAND = 32  # rows filtered at a time: the band stays in cache, twice as fast as whole pictures


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, over all pixels and channels; inf if equal.

    Args:
        a, b: uint8 (H, W, 3) of the same size; the order does not matter.

    Raises:
        ValueError: another dtype or shape, or pictures of different sizes.
    """
    _check(a, b)
    total = sum(
        int(np.square(row.astype(np.int32) - other).sum()) for row, other in zip(a, b, strict=True)
    )
    return 10 * math.log10(255**2 * a.size / total) if total else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), at most 1; the mean of the three channels' values.

    Gaussian window of 11x11 px with sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, and
    only windows that lie inside the picture. For a picture with a side below 11 px the window
    shrinks to the largest odd size that fits, sigma stays; such values compare only with
    each other.

    Args:
        a, b: uint8 (H, W, 3) of the same size; the order does not matter.

    Raises:
        ValueError: another dtype or shape, or pictures of different sizes.
    """
    _check(a, b)
    height, width, channels = a.shape
    side = min(_WINDOW, height, width)
    side -= 1 - side % 2
    weights = np.exp(-0.5 * ((np.arange(side) - side // 2) / _SIGMA) ** 2)
    weights /= weights.sum()
    rows, cols = height - side + 1, width - side + 1
    total = 0.0
    for channel in range(channels):
        for top in range(0, rows, _BAND):
            band = slice(top, min(top + _BAND, rows) + side - 1)
            total += _ssim_sum(a[band, :, channel], b[band, :, channel], weights)
    return total / (rows * cols * channels)


def fidelity(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """psnr in dB, None if the pictures are equal, as JSON has no infinity; and ssim."""
    decibels = psnr(a, b)
    return {"psnr": decibels if math.isfinite(decibels) else None, "ssim": ssim(a, b)}


def _ssim_sum(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Sum of SSIM over the windows inside two uint8 arrays (rows, cols)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    # Only the sum of the two variances is needed: four filters instead of five.
    moments = _filter(np.stack([x, y, x * x + y * y, x * y]), weights)
    mean_x, mean_y, squares, product = moments
    means, powers = mean_x * mean_y, mean_x**2 + mean_y**2
    above = (2 * means + _C1) * (2 * (product - means) + _C2)
    below = (powers + _C1) * (squares - powers + _C2)
    return float((above / below).sum())


def _filter(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Filter (n, rows, cols) by `weights` down and across; borders are cut off."""
    n, rows, cols = x.shape[0], x.shape[1] - len(weights) + 1, x.shape[2] - len(weights) + 1
    down, across = np.zeros((n, rows, x.shape[2])), np.zeros((n, rows, cols))
    for i, weight in enumerate(weights):
        down += weight * x[:, i : i + rows]
    for i, weight in enumerate(weights):
        across += weight * down[:, :, i : i + cols]
    return across


def _check(a: np.ndarray, b: np.ndarray) -> None:
    for picture in (a, b):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ViqError(
                f"pictures must be uint8 of shape (H, W, 3), got {picture.dtype} {picture.shape}"
            )
    if a.shape != b.shape or not a.size:
        raise ViqError(
            f"pictures must have the same size, at least 1x1 px, got {a.shape} and {b.shape}"
        )
