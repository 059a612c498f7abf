"""Pictures that are nearly the same, found from their codes: `viq store near-duplicates`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from viq.core.codes import Codes
from viq.core.remote import Location
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.store.folder import Store

_HASHES, _ROWS = 96, 3  # of MinHash; bands of so many rows find likely pairs
_BANDS = _HASHES // _ROWS
_CROWD = 100  # images in one bucket, above which they are compared with its first alone
_HELD = 1 << 28  # codes, of 4 bytes, that are in memory at a time while pairs are compared
_TOGETHER = 1024  # images whose sketches lie in one array
_BLOCK = 1024  # pooled tokens compared at a time, with as many others
_MIX = np.uint64(0x9E3779B97F4A7C15)

Pair = tuple[float, str, str]


def by_overlap(path: Location, threshold: float = 0.5) -> dict[str, Any]:
    """Pairs of images that share codes: common codes over all codes of both, per slot.

    MinHash finds candidates, so time grows with the number of images and not with that of pairs;
    each candidate is then compared exactly. A pair at 0.5 is found with a probability of 98.6%, at
    0.7 with all but certainty.

    Memory is 260 bytes an image, 8 a candidate, the pairs that are found, and at most 1 GiB for the
    codes of candidates. Where that is not enough for all, the store is read once more for the rest.

    Raises:
        CodesError: no finished store, or damaged.
    """
    store = Store(path)
    sketches, sizes = _sketched(store)
    found: list[Pair] = []
    for pairs in _portions(_candidates(sketches, len(sizes)), sizes):
        found += _compared(store, pairs, threshold)
    return _report(len(sizes), threshold, found)


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
    del tokens
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    pairs: list[Pair] = []
    for first, second in _blocks(len(matrix)):
        similar = matrix[first : first + _BLOCK] @ matrix[second : second + _BLOCK].T
        for i, j in np.argwhere(similar >= threshold).tolist():
            a, b = first + i, second + j
            if a < b:
                pairs.append((float(similar[i, j]), names[a], names[b]))
    return _report(len(names), threshold, pairs)


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    """Where blocks of rows begin, each with all that follow and itself."""
    starts = range(0, count, _BLOCK)
    return ((first, second) for first in starts for second in starts if first <= second)


def _report(images: int, threshold: float, pairs: list[Pair]) -> dict[str, Any]:
    pairs.sort(key=lambda p: (-p[0], p[1], p[2]))
    return {
        "images": images,
        "threshold": threshold,
        "pairs": [{"a": a, "b": b, "similarity": round(value, 4)} for value, a, b in pairs],
    }


def _sketched(store: Store) -> tuple[list[np.ndarray], np.ndarray]:
    """Of all images: sketches, arrays of uint64 (bands, `_TOGETHER`); and how many different codes
    each has, int32 (images,)."""
    draw = np.random.default_rng(0)
    factors = draw.integers(1, 1 << 63, _HASHES, dtype=np.uint64) | np.uint64(1)
    sketches, sizes = list[np.ndarray](), array("i")
    for number, (_, codes) in enumerate(store):
        if number % _TOGETHER == 0:
            sketches.append(np.empty((_BANDS, _TOGETHER), np.uint64))
        different = code_set(codes)
        sketches[-1][:, number % _TOGETHER] = _sketch(different, factors)
        sizes.append(len(different))
    return sketches, np.array(sizes, np.int32)


def _sketch(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """A number for each band of the MinHash signature of a set, uint64 (bands,)."""
    # Each code is mixed once; for each hash, one more product is enough then.
    mixed = codes.astype(np.uint64) * _MIX
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX
    mixed ^= mixed >> np.uint64(32)
    lowest = (mixed[:, None] * factors).min(0) >> np.uint64(32)
    first, *others = lowest.reshape(_BANDS, _ROWS).T
    for column in others:
        first = first * _MIX + column
    return first


def _candidates(sketches: list[np.ndarray], images: int) -> np.ndarray:
    """Pairs of images, int64 (pairs, 2), the first the lower, that agree in a band; sorted."""
    found = np.empty(0, np.int64)
    for band in range(_BANDS if images else 0):
        column = np.concatenate([each[band] for each in sketches])[:images]
        first, second = _alike(column)
        found = np.union1d(found, first * images + second)
    return np.stack(np.divmod(found, max(images, 1)), axis=1)


def _alike(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of places with equal values, the lower first; of crowds those with their first."""
    order = np.argsort(column, kind="stable")
    begins = np.flatnonzero(np.diff(column[order], prepend=~column[order[:1]]))
    counts = np.diff(begins, append=len(order))
    crowd = np.repeat(counts > _CROWD, counts)
    leader = np.repeat(order[begins], counts)
    pairs = [(leader[crowd], order[crowd])]
    few = order[np.repeat((counts > 1) & (counts <= _CROWD), counts)]
    for apart in range(1, min(_CROWD, len(few))):
        same = column[few[apart:]] == column[few[:-apart]]
        if not same.any():
            break
        pairs.append((few[:-apart][same], few[apart:][same]))
    first, second = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return first[first < second], second[first < second]


def _portions(pairs: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs one after another, as many together as have their codes in memory."""
    while len(pairs):
        images, first = np.unique(pairs, return_index=True)  # in the order of a, b, a, b, ..
        added = np.zeros(pairs.size, np.int64)
        added[first] = sizes[images]
        held = np.cumsum(added.reshape(-1, 2).sum(1))
        stop = max(1, int(np.searchsorted(held, _HELD, side="right")))
        yield pairs[:stop]
        pairs = pairs[stop:]


def _compared(store: Store, pairs: np.ndarray, threshold: float) -> list[Pair]:
    """Those of some pairs that are alike enough."""
    wanted = set(np.unique(pairs).tolist())
    known = {
        number: (key, code_set(codes))
        for number, (key, codes) in enumerate(store)
        if number in wanted
    }
    found = []
    for a, b in pairs.tolist():
        (first, codes), (second, others) = known[a], known[b]
        value = overlap(codes, others)
        if value >= threshold:
            found.append((value, first, second))
    return found


def code_set(codes: Codes) -> np.ndarray:
    """The different codes of an image, each with its slot; sorted uint32."""
    slots = np.arange(codes.ids.shape[-1], dtype=np.uint32) << np.uint32(16)
    return np.unique(codes.ids.astype(np.uint32) | slots)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Common codes over all codes of two sets, 0 to 1."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
