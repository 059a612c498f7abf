"""Fit the tables of `viq.codec.class_tables` to codes, by counting; no training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from viq.codec.class_tables import ClassTables, Parts, Shape, corners
from viq.codec.phases import PHASES, Step, steps_of
from viq.core.codes import Codes
from viq.core.types import CODES_PER_PATCH, ViqError
from viq.models.tokenizer.semantic import PHASES as KINDS
from viq.models.tokenizer.transform_quantizer import TransformQuantizer

_BUCKETS = 8  # of each of the two coordinates of classes
_COORDINATE = 1 << 12  # the greatest coordinate
_PATCHES = 1 << 16  # counted at a time
_STRENGTH = 30  # patches that a coarser table counts for, where a finer one has few of its own
_GREATEST = 60_000  # count in a file


def fit_class_tables(
    codes: Sequence[Codes], quantizer: TransformQuantizer, fingerprint: str
) -> ClassTables:
    """Fit tables to the codes of a tokenizer with a transform code.

    Each table is counted, and where it has few patches it leans on one that knows less: that of all
    phases together, which leans on that of all contexts together.

    Raises:
        ViqError: not a single picture whose codes an encoder can have given.
    """
    blank = _blank(quantizer, fingerprint)
    usual = [item for item in codes if blank.fits(split_all(blank, [item])).all()]
    if not usual:
        raise ViqError("tables need the codes of at least one picture")
    blank = _laid_out(blank, usual)
    tensors = blank.tensors | {name: _integers(part) for name, part in _count(blank, usual).items()}
    return ClassTables(tensors, blank.levels, fingerprint)


def _blank(quantizer: TransformQuantizer, fingerprint: str) -> ClassTables:
    """Tables that know no more than how codes are put together."""
    config, meaning = quantizer.code.config, quantizer.meaning
    coarse, fine = config.means
    low = math.isqrt(config.classes - 1) + 1
    kinds, meanings = (KINDS, meaning.fsq.codebook_size) if meaning else (0, 0)
    shape = Shape(coarse, fine, config.first, config.detail, kinds, meanings, low)
    sizes = quantizer.code.radices.long().prod(2).cpu().numpy().astype(np.int32)
    return _with_counts(
        {
            "shape": np.array(shape, np.int32),
            "sizes": sizes,
            "coordinates": np.zeros((len(sizes), 2), np.int16),
            "cuts": np.zeros((2, _BUCKETS - 1), np.int32),
        },
        quantizer.levels,
        fingerprint,
    )


def _with_counts(
    tensors: dict[str, np.ndarray], levels: Sequence[int], fingerprint: str
) -> ClassTables:
    s, classes = Shape(*tensors["shape"].tolist()), len(tensors["sizes"])
    means, buckets, high = s.coarse * s.fine, _BUCKETS**2, -(-classes // s.low)
    shapes = {
        "coarse": (PHASES, means, s.coarse), "fine": (PHASES, means, s.coarse, s.fine),
        "high": (PHASES, buckets, high), "low": (PHASES, buckets, high, s.low),
        "kind": (len(corners([(4, 4)])), 1 + s.kinds),
    }  # fmt: skip
    counts = {name: np.ones(shape, np.uint16) for name, shape in shapes.items()}
    return ClassTables(tensors | counts, levels, fingerprint)


def _laid_out(blank: ClassTables, codes: Sequence[Codes]) -> ClassTables:
    """With coordinates of classes and the cuts of buckets, each of as many patches.

    Coordinates are the two leading ones of a correspondence analysis of classes and the classes of
    their neighbours.
    """
    classes = len(blank.tensors["sizes"])
    together = np.full((classes, classes), 0.1)
    for parts, steps in batches_of(blank, codes):
        class_U = np.pad(parts.class_T + 1, (1, 0))
        for step in steps:
            near_4n = class_U[step.neighbours_4n]
            own_4n = np.broadcast_to(parts.class_T[step.places_n], near_4n.shape)
            there = near_4n > 0
            np.add.at(together, (near_4n[there] - 1, own_4n[there]), 1)
    together /= together.sum()
    ends = np.sqrt(together.sum(1)), np.sqrt(together.sum(0))
    left = np.linalg.svd(together / np.outer(*ends))[0][:, 1:3] / ends[0][:, None]
    # What is rare lies far out: it must not take the room of the rest.
    reach = np.quantile(np.abs(left), 0.99, axis=0)
    whole = np.clip(np.rint(left / reach * _COORDINATE), -_COORDINATE, _COORDINATE)
    found = blank.tensors | {"coordinates": whole.astype(np.int16)}
    moved = ClassTables(found, blank.levels, blank.fingerprint)
    near = [
        moved.classes_near(step, np.pad(parts.class_T + 1, (1, 0)))
        for parts, steps in batches_of(moved, codes)
        for step in steps
        if step.phase
    ] or [np.zeros((2, 1))]
    shares = np.arange(1, _BUCKETS) / _BUCKETS
    cuts = np.quantile(np.concatenate(near, 1), shares, axis=1).T.astype(np.int32)
    return ClassTables(found | {"cuts": cuts}, blank.levels, blank.fingerprint)


def _count(model: ClassTables, codes: Sequence[Codes]) -> dict[str, np.ndarray]:
    """Probabilities of each table."""
    s, tensors = model.shape, model.tensors
    means, buckets, classes = s.coarse * s.fine, tensors["high"].shape[1], len(tensors["sizes"])
    high = tensors["high"].shape[2]
    mean = np.zeros((PHASES, means, means))
    kind = np.zeros((1, len(tensors["kind"]), 1 + s.kinds))
    group = np.zeros((PHASES, buckets, high * s.low))
    for parts, steps in batches_of(model, codes):
        mean_U, class_U = np.pad(parts.mean_T, (1, 0)), np.pad(parts.class_T + 1, (1, 0))
        for step in steps:
            near_n, own_n = model.means_near(step, mean_U), parts.mean_T[step.places_n]
            np.add.at(mean[step.phase], (near_n, own_n), 1)
            bucket_n = model.buckets(model.classes_near(step, class_U))
            np.add.at(group[step.phase], (bucket_n, parts.class_T[step.places_n]), 1)
    grids = [item.grid for item in codes]
    np.add.at(kind[0], (corners(grids), split_all(model, codes).kind_T), 1)
    fine = mean.reshape(PHASES, means, s.coarse, s.fine)
    group = _smooth(group, classes)
    low = group.reshape(PHASES, buckets, high, s.low)
    return {
        "coarse": _smooth(fine.sum(3)),
        "fine": _smooth(fine.reshape(PHASES, -1, s.fine)).reshape(fine.shape),
        "high": low.sum(3),
        "low": low,
        "kind": _smooth(kind)[0],
    }


def _smooth(counts: np.ndarray, symbols: int | None = None) -> np.ndarray:
    """Probabilities of counts (phases, contexts, symbols); symbols from that number on are none."""
    there = np.arange(counts.shape[2]) < (symbols or counts.shape[2])
    each = there / there.sum()
    for axes in ((0, 1), (0,), ()):
        pooled = counts.sum(axes, keepdims=True) + _STRENGTH * each
        each = pooled / pooled.sum(2, keepdims=True)
    return each


def _integers(probabilities: np.ndarray) -> np.ndarray:
    """As counts from 1 to _GREATEST along the last axis, uint16."""
    most = np.maximum(probabilities.max(-1, keepdims=True), 1e-30)
    return np.maximum(1, np.rint(probabilities / most * _GREATEST)).astype(np.uint16)


def split_all(model: ClassTables, codes: Sequence[Codes]) -> Parts:
    """What the codes of some pictures say, together."""
    return model.split(np.concatenate([item.ids.reshape(-1, CODES_PER_PATCH) for item in codes]))


def batches_of(model: ClassTables, codes: Sequence[Codes]) -> Iterator[tuple[Parts, list[Step]]]:
    """Parts and phases of some pictures at a time."""
    start = count = 0
    for i, item in enumerate([*codes, None]):
        size = item.ids.shape[0] * item.ids.shape[1] if item else _PATCHES
        if i > start and count + size > _PATCHES:
            some = codes[start:i]
            yield split_all(model, some), steps_of([one.grid for one in some])
            start, count = i, 0
        count += size
