"""95% intervals of what is counted, and of what differs from seed to seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_DRAWS = 1000  # of a bootstrap
_Z_95 = 1.96
_T_95 = {
    2: 12.71,
    3: 4.303,
    4: 3.182,
    5: 2.776,
}  # Student's t by number of seeds; of more, at most that of 6


def of_share(count: int, of: int) -> dict[str, float]:
    """`count` in `of` as `percent`, and `interval`: half the width of Wilson's score interval.

    Wilson's interval is not centred on the share; the shares here are given with it all the same,
    as the difference is below a point where a hundred are counted.
    """
    z, share = _Z_95, count / of
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    return {"percent": round(100 * share, 1), "interval": round(100 * half, 1)}


def of_seeds(values: Sequence[float]) -> dict[str, Any]:
    """`mean` over seeds, `half_width` of its interval (Student's t), and each of the `seeds`."""
    mean, count = statistics.fmean(values), len(values)
    half = 0.0
    if count > 1:
        half = _T_95.get(count, 2.571) * statistics.stdev(values) / count**0.5
    return {
        "mean": round(mean, 2),
        "half_width": round(half, 2),
        "seeds": [round(value, 2) for value in values],
    }


def of_pairs(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """`of_seeds` of the differences first - second, seed by seed."""
    return of_seeds([a - b for a, b in zip(first, second, strict=True)])


def wilson(share: float, of: int) -> tuple[float, float]:
    """Wilson's score interval of a share of `of` answers, each right or wrong; ends are 0 to 1."""
    if not of:
        return 0.0, 1.0
    z = _Z_95
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    whole = 1 + z * z / of
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def bootstrap(statistic: Callable[[np.ndarray], float], of: int) -> tuple[float, float]:
    """Percentile interval of a statistic of `of` rows, over 1000 draws with replacement (seed 0).

    Args:
        statistic: takes the numbers of the drawn rows, (of,) int64.
    """
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(0, of, of)) for _ in range(_DRAWS)]
    low, high = np.percentile(drawn, (2.5, 97.5)).tolist()
    return low, high
