"""Quantizers of one number for a transform code: the levels of each coefficient, their centres."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from viq.models.tokenizer.transform_code import CODEBOOK, TransformConfig

_SAMPLE = 8000  # values that a table is fitted to
# Mean squared error of the best quantizer of a Laplacian of variance 1 (Lloyd and Max), by levels.
_ERRORS = {
    1: 1.0, 2: 0.3634, 3: 0.1902, 4: 0.1175, 5: 0.0799, 6: 0.058, 7: 0.044, 8: 0.03454, 9: 0.0279,
    10: 0.0229, 12: 0.0162, 16: 0.0095, 20: 0.0062, 25: 0.0041, 32: 0.0025, 40: 0.0017, 64: 0.0007,
}  # fmt: skip


def allot(variances: Sequence[float], config: TransformConfig) -> list[list[int]]:
    """Radices of each coefficient in each of the four codes: one after another, a code gives the
    digit to the coefficient whose error it lowers most for the room that it takes."""
    levels, radices = [1] * len(variances), []
    for room in (config.first, CODEBOOK, CODEBOOK, config.detail):
        row = _digits(variances, levels, room, config.levels)
        levels = [count * radix for count, radix in zip(levels, row, strict=True)]
        radices.append(row)
    return radices


def _digits(variances: Sequence[float], levels: Sequence[int], room: int, most: int) -> list[int]:
    """Radices with a product of at most `room`, none making more than `most` levels."""
    radices, used = [1] * len(variances), 1

    def gain(i: int) -> float:
        before, after = levels[i] * radices[i], levels[i] * (radices[i] + 1)
        saved = variances[i] * (_error_of(before) - _error_of(after))
        return saved / math.log2((radices[i] + 1) / radices[i])

    heap = [(-gain(i), i) for i in range(len(variances))]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        larger = used // radices[i] * (radices[i] + 1)
        if larger <= room and levels[i] * (radices[i] + 1) <= most:
            used, radices[i] = larger, radices[i] + 1
            heapq.heappush(heap, (-gain(i), i))
    return radices


def _error_of(levels: int) -> float:
    """Relative error of the best quantizer with so many levels, between and beyond the table."""
    if levels in _ERRORS:
        return _ERRORS[levels]
    if levels > 64:
        return _ERRORS[64] * (64 / levels) ** 2
    below = max(k for k in _ERRORS if k < levels)
    above = min(k for k in _ERRORS if k > levels)
    share = math.log(levels / below) / math.log(above / below)
    return _ERRORS[below] ** (1 - share) * _ERRORS[above] ** share


def lloyd(values: Tensor, levels: int, generator: torch.Generator, rounds: int = 12) -> Tensor:
    """Ascending centres (levels,) that quantize values with the least squared error, near enough:
    Lloyd's algorithm in one dimension, on a sample, from its quantiles."""
    if not len(values):
        return torch.zeros(levels)
    if len(values) > _SAMPLE:
        values = values[torch.randperm(len(values), generator=generator)[:_SAMPLE]]
    ordered = values.sort().values
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.double().cumsum(0)])
    places = ((torch.arange(levels) + 0.5) / levels * len(ordered)).long()
    centres = ordered[places]
    for _ in range(rounds):
        edges = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = torch.cat([edges.new_zeros(1), edges, edges.new_tensor([len(ordered)])])
        counts = edges.diff()
        means = (sums[edges[1:]] - sums[edges[:-1]]) / counts.clamp_min(1)
        centres = torch.where(counts > 0, means.float(), centres)
    return centres.sort().values
