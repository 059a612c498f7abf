"""How codes use their codebook: counts, utilisation, perplexity, signs of collapse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from viq.core.levels import check_levels, codebook_size
from viq.core.types import ViqError


def code_counts(ids: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """How often each code occurs: int64 (codebook size), of ids of any shape.

    Raises:
        ValueError: ids that are not integers or lie outside the codebook, or unusable levels.
    """
    size = codebook_size(check_levels(levels))
    if not np.issubdtype(ids.dtype, np.integer):
        raise ViqError(f"codes must be integers, got {ids.dtype}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise ViqError(
            f"codes {int(ids.min())}..{int(ids.max())} are not in the codebook of {size}: pass the "
            "levels of the tokenizer that made them"
        )
    return np.bincount(ids.reshape(-1).astype(np.int64), minlength=size)


def code_use(ids: Iterable[np.ndarray], levels: Sequence[int]) -> dict[str, Any]:
    """How well a codebook is used by the codes of some images.

    Args:
        ids: integer arrays of any shapes, as in `Codes.ids`.
        levels: of the FSQ; their product is the size of the codebook.

    Returns:
        What `summarize_counts` gives.

    Raises:
        ValueError: no codes at all, or codes outside the codebook.
    """
    counts = np.zeros(codebook_size(check_levels(levels)), np.int64)
    for array in ids:
        counts += code_counts(array, levels)
    return summarize_counts(counts, levels)


def summarize_counts(counts: np.ndarray, levels: Sequence[int]) -> dict[str, Any]:
    """`code_use` of counts (codebook size), which add up over images.

    Returns:
        codes: codes counted.
        codebook: size of the codebook.
        used: different codes that occur.
        share: used / codebook. Few codes cannot reach a large codebook: never above
            codes / codebook.
        entropy_bits: bits a code, of the distribution over the codebook.
        perplexity: 2 ** entropy_bits, the size of an evenly used codebook of the same entropy.
        levels: for each FSQ dimension, how often each of its levels occurs.

    Raises:
        ValueError: counts of another codebook, or no codes at all.
    """
    levels = check_levels(levels)
    if counts.shape != (codebook_size(levels),):
        raise ViqError(f"levels {list(levels)} need counts of {codebook_size(levels)} codes")
    total, used = int(counts.sum()), int(np.count_nonzero(counts))
    if not total:
        raise ViqError("no codes to count: pass the codes of at least one image")
    share = counts[counts > 0] / total
    entropy = max(0.0, -float((share * np.log2(share)).sum()))
    # The first dimension is the least significant, so it is the last axis in C order.
    by_level = counts.reshape(levels[::-1])
    axes = range(by_level.ndim)
    histograms = [by_level.sum(axis=tuple(set(axes) - {axis})).tolist() for axis in reversed(axes)]
    return {
        "codes": total,
        "codebook": len(counts),
        "used": used,
        "share": used / len(counts),
        "entropy_bits": entropy,
        "perplexity": 2**entropy,
        "levels": histograms,
    }


# A dimension with 95% of its codes on one level keeps 0.43 of the 3 bits of 8 levels, if even that.
LEVEL_SHARE = 0.95


# Training viq-tiny, perplexity was 10% of what even use would give after ten steps, then 20-35%.
# 2% is far below that, and it leaves room for data of mostly blank paper.
PERPLEXITY_SHARE = 0.02


# A single plain picture may have one code; fewer codes than those of a few pictures say nothing.
ENOUGH_CODES = 1000


def even_perplexity(codes: int, codebook: int) -> float:
    """How many different codes this many codes would hit if all were equally likely.

    Perplexity never is above the number of codes seen, so it is judged by this.
    """
    return -codebook * math.expm1(codes * math.log1p(-1 / codebook))


def crowded_levels(record: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """(dimension, level, share) of levels that hold nearly all codes of their dimension."""
    tops = [max((count, level) for level, count in enumerate(dim)) for dim in record["levels"]]
    shares = [(dim, level, count / record["codes"]) for dim, (count, level) in enumerate(tops)]
    return [found for found in shares if found[2] > LEVEL_SHARE]


def collapse_warning(record: Mapping[str, Any]) -> str | None:
    """One line if the codes of a `code_use` record say too little, else None."""
    if record["codes"] < ENOUGH_CODES:
        return None
    troubles = [
        f"dimension {dim} has {share:.1%} of its codes on level {level}"
        for dim, level, share in crowded_levels(record)
    ]
    even = even_perplexity(record["codes"], record["codebook"])
    if record["perplexity"] < PERPLEXITY_SHARE * even:
        troubles.append(
            f"perplexity {record['perplexity']:,.1f} is {record['perplexity'] / even:.1%} of the "
            f"{even:,.0f} of even use"
        )
    return "code use collapses: " + "; ".join(troubles) if troubles else None
