"""Numbers about pictures: PSNR, SSIM, multi-scale SSIM, blockiness.

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
# Weights of the scales of MS-SSIM, from full size down (Wang, Simoncelli and Bovik 2003).
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_LUMA = np.array([0.299, 0.587, 0.114])
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
    return sum(_similarity(a[..., c], b[..., c])[0] for c in range(3)) / 3


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003), of the luma, 0 to 1.

    Five scales, each half of the one before by means of 2x2 px; the window of `ssim`. Contrast and
    structure below 0 count as 0. None for a picture with a side below 176 px, whose smallest scale
    is no window large.

    Args:
        a, b: uint8 (H, W, 3) of the same size; the order does not matter.

    Raises:
        ValueError: another dtype or shape, or pictures of different sizes.
    """
    _check(a, b)
    if min(a.shape[:2]) < _WINDOW * 2 ** (len(_SCALES) - 1):
        return None
    x, y = a @ _LUMA, b @ _LUMA
    result = 1.0
    for scale, weight in enumerate(_SCALES):
        whole, structure = _similarity(x, y)
        last = scale == len(_SCALES) - 1
        result *= max(0.0, whole if last else structure) ** weight
        x, y = _halved(x), _halved(y)
    return result


def blockiness(image: np.ndarray, original: np.ndarray, side: int = 16) -> float | None:
    """Steps of the luma across the borders of blocks, beside steps elsewhere: 1 is none.

    The mean absolute difference of neighbouring pixels across vertical and horizontal borders over
    that of all other neighbours, divided by the same ratio of the original.

    Args:
        image, original: uint8 (H, W, 3) of the same size.
        side: of a block, px; the first begins at the top left pixel.

    Returns:
        None if a picture has no border of blocks, or is of one colour within them.

    Raises:
        ValueError: another dtype or shape, or pictures of different sizes.
    """
    _check(image, original)
    if min(image.shape[:2]) <= side:
        return None
    ours, natural = _border_steps(image, side), _border_steps(original, side)
    return ours / natural if ours is not None and natural else None


def fidelity(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """psnr in dB, None if the pictures are equal, as JSON has no infinity; and ssim."""
    decibels = psnr(a, b)
    return {"psnr": decibels if math.isfinite(decibels) else None, "ssim": ssim(a, b)}


def _similarity(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Means of SSIM, and of its product of contrast and structure alone, over the windows inside
    two arrays (rows, cols) of values from 0 to 255."""
    height, width = a.shape
    side = min(_WINDOW, height, width)
    side -= 1 - side % 2
    weights = np.exp(-0.5 * ((np.arange(side) - side // 2) / _SIGMA) ** 2)
    weights /= weights.sum()
    rows, cols = height - side + 1, width - side + 1
    total = np.zeros(2)
    for top in range(0, rows, _BAND):
        band = slice(top, min(top + _BAND, rows) + side - 1)
        total += _ssim_sums(a[band], b[band], weights)
    whole, structure = (total / (rows * cols)).tolist()
    return whole, structure


def _ssim_sums(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Sums of both parts of `_similarity`."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    # Only the sum of the two variances is needed: four filters instead of five.
    moments = _filter(np.stack([x, y, x * x + y * y, x * y]), weights)
    mean_x, mean_y, squares, product = moments
    means, powers = mean_x * mean_y, mean_x**2 + mean_y**2
    structure = (2 * (product - means) + _C2) / (squares - powers + _C2)
    whole = (2 * means + _C1) / (powers + _C1) * structure
    return float(whole.sum()), float(structure.sum())


def _halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2; an odd last row or column is left out."""
    rows, cols = x.shape[0] // 2, x.shape[1] // 2
    return x[: 2 * rows, : 2 * cols].reshape(rows, 2, cols, 2).mean((1, 3))


def _border_steps(image: np.ndarray, side: int) -> float | None:
    """Mean step across borders over the mean step elsewhere; None if there are none elsewhere."""
    luma = image @ _LUMA
    borders, others = 0.0, 0.0
    for axis in (0, 1):
        steps = np.abs(np.diff(luma, axis=axis)).mean(1 - axis)
        at_border = np.arange(len(steps)) % side == side - 1
        borders += steps[at_border].mean()
        others += steps[~at_border].mean()
    return borders / others if others else None


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
