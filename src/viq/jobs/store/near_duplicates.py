"""Pictures that are nearly the same, found from their codes: `viq store near-duplicates`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np

from viq.core.codes import Codes
from viq.core.remote import Location
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import Store

_HASHES, _ROWS = 96, 3  # of MinHash; bands of so many rows find likely pairs
_CROWD = 100  # images in one bucket, above which they are compared with its first alone
_BLOCK = 1024  # pooled tokens compared at a time


def by_overlap(path: Location, threshold: float = 0.5) -> dict[str, Any]:
    """Pairs of images that share codes: common codes over all codes of both, per slot.

    MinHash finds candidates, so time grows with the number of images and not with that of pairs;
    each candidate is then compared exactly. A pair at 0.5 is found with a probability of 98.6%, at
    0.7 with all but certainty.

    Raises:
        CodesError: no finished store, or damaged.
    """
    draw = np.random.default_rng(0)
    factors = draw.integers(1, 1 << 32, (2, _HASHES), dtype=np.uint64) | np.uint64(1)
    names, sets, buckets = [], list[np.ndarray](), dict[bytes, list[int]]()
    for key, codes in Store(path):
        names.append(key)
        sets.append(code_set(codes))
        for band in _bands(sets[-1], factors):
            buckets.setdefault(band, []).append(len(names) - 1)
    candidates = {pair for group in buckets.values() for pair in _pairs(group)}
    pairs = [(overlap(sets[a], sets[b]), names[a], names[b]) for a, b in candidates]
    return _report(len(names), threshold, pairs)


def by_pooled(
    tokenizer: VisualTokenizer,
    path: Location,
    threshold: float = 0.95,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Pairs of images whose pooled tokens point the same way (cosine); all pairs are compared.

    Means something for models whose pooling head was trained.

    Raises:
        CodesError: no finished store, damaged, or made by another tokenizer.
    """
    names, tokens = [], []
    for key, codes in Store(path):
        names.append(key)
        tokens.append(tokenizer.pool(codes)[0].float().cpu().numpy())
        progress()
    matrix = np.stack(tokens) if tokens else np.empty((0, 1), np.float32)
    matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    pairs = []
    for start in range(0, len(matrix), _BLOCK):
        similar = matrix[start : start + _BLOCK] @ matrix[start:].T
        for a, b in zip(*np.nonzero(similar >= threshold), strict=True):
            if a < b:
                pairs.append((float(similar[a, b]), names[start + a], names[start + b]))
    return _report(len(names), threshold, pairs)


def _report(images: int, threshold: float, pairs: list[tuple[float, str, str]]) -> dict[str, Any]:
    kept = sorted((p for p in pairs if p[0] >= threshold), key=lambda p: (-p[0], p[1], p[2]))
    return {
        "images": images,
        "threshold": threshold,
        "pairs": [{"a": a, "b": b, "similarity": round(value, 4)} for value, a, b in kept],
    }


def _pairs(group: list[int]) -> Iterator[tuple[int, int]]:
    if len(group) <= _CROWD:
        return combinations(group, 2)
    return ((group[0], other) for other in group[1:])


def code_set(codes: Codes) -> np.ndarray:
    """The different codes of an image, each with its slot; sorted uint32."""
    slots = np.arange(codes.ids.shape[-1], dtype=np.uint32) << np.uint32(16)
    return np.unique(codes.ids.astype(np.uint32) | slots)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Common codes over all codes of two sets, 0 to 1."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _bands(codes: np.ndarray, factors: np.ndarray) -> Iterator[bytes]:
    """The bands of the MinHash signature of a set."""
    hashed = codes.astype(np.uint64)[:, None] * factors[0] + factors[1]
    hashed ^= hashed >> np.uint64(32)
    hashed *= np.uint64(0x9E3779B97F4A7C15)
    lowest = (hashed >> np.uint64(32)).min(0).astype(np.uint32)
    for band in range(0, _HASHES, _ROWS):
        yield band.to_bytes(2, "big") + lowest[band : band + _ROWS].tobytes()
