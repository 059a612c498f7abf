"""Fit what a variable number of codes needs (`viq.models.tokenizer.refinement`) to pictures.

    tokenizer.refinement = fit_refinement(tokenizer, crops, RefinementConfig())

Closed form again: means of what shares a level, eigenvectors of what the tokenizer's own decoder
leaves, and counts of how often each symbol comes. Two minutes on one core.

P = patches of all crops, V, J, Q, l as in the transform code, K as in the refinement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from viq.codec.range_coder import TOTAL, WORD_BITS
from viq.core.types import PATCH_SIZE, ViqError
from viq.image.patches import normalize, patchify, unpatchify
from viq.models.tokenizer.refinement import (
    SHORT,
    Refinement,
    RefinementConfig,
    indices,
    to_digits,
)
from viq.models.tokenizer.refinement_stream import (
    BUCKETS,
    LEVELS,
    MAGNITUDES,
    STEPS,
    UNIT,
    Walk,
    initial_tables,
)
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_code import Analysed, TransformCode
from viq.models.tokenizer.transform_quantizer import TransformQuantizer

_LEAST_SIDE = 4 * PATCH_SIZE  # px; patches at the border of a crop are not like others
_SHORT_ROUNDS = 3
_ROUNDS = 3  # of counting symbols
_PRIOR_PATCHES = 24  # that all classes count in the sizes of one
_PRIOR_SYMBOLS = 40  # that a bucket counts in each of its levels
_SLOPES = (2.0, 6.0, 18.0, 54.0, 160.0)  # squared grey levels that a word has to save, for modes


@dataclass(frozen=True, kw_only=True)
class RefinementFitConfig:
    """What a refinement is fitted to."""

    crops: int = 600
    crop: int = 256  # px a side, at most
    page_ratio: float = 0.3  # of the crops are of pages, charts and print
    patches: int = 8000  # of all, whose symbols are counted
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.crops, self.patches) < 1 or self.crop < _LEAST_SIDE:
            raise ViqError(f"crops of at least {_LEAST_SIDE} px, and at least one patch")


@dataclass
class _Left:
    """What a tokenizer leaves of patches, and what it saw of them."""

    rest_PD: Tensor  # in the domain of the lapped filter
    classes_P: Tensor
    seen: Analysed


@torch.no_grad()
def fit_refinement(
    tokenizer: VisualTokenizer,
    crops: Sequence[np.ndarray],
    config: RefinementConfig,
    fit: RefinementFitConfig | None = None,
    report: Callable[[dict[str, float]], None] = lambda record: None,
) -> Refinement:
    """A refinement of a tokenizer with a transform code and a decoder, as both are now.

    Args:
        crops: uint8 (H, W, 3), of whole patches; those with a side below 64 px are left out.
        report: told of each part of the fit.

    Raises:
        ViqError: a tokenizer of another kind, or no crop that is large enough.
    """
    fit = fit or RefinementFitConfig()
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, TransformQuantizer) or tokenizer.decoder is None:
        raise ViqError(
            f"{tokenizer.config.name}: a refinement needs a transform code and a decoder"
        )
    large = [crop for crop in crops if min(crop.shape[:2]) >= _LEAST_SIDE]
    if not large:
        raise ViqError(f"no crop of {_LEAST_SIDE} px a side: give larger pictures")
    left = _all_left(tokenizer, quantizer.code, large)
    rng = np.random.default_rng(fit.seed)
    refinement = Refinement(config, quantizer.code.config)
    some = torch.from_numpy(rng.permutation(len(left.rest_PD))[: 4 * fit.patches])
    seen = Analysed(*(part[some] for part in left.seen))
    for count in range(1, SHORT + 1):
        error = _fit_short(refinement, quantizer.code, seen, count)
        report({"codes": count, "psnr": float(10 * np.log10(4 / error))})
    coefficients_PK = _fit_basis(refinement, left)
    chosen = rng.permutation(len(coefficients_PK))[: fit.patches]
    values, classes = coefficients_PK[chosen].numpy(), left.classes_P[chosen].numpy()
    _fit_symbols(refinement, values, classes)
    bits = _fit_modes(refinement, values, classes)
    report({"patches": len(coefficients_PK), "bits_of_mode": bits})
    return refinement.eval()


def _all_left(
    tokenizer: VisualTokenizer, code: TransformCode, crops: Sequence[np.ndarray]
) -> _Left:
    rests, classes, seen = [], [], []
    for crop in crops:
        pixels = normalize(crop)
        grid = (crop.shape[0] // PATCH_SIZE, crop.shape[1] // PATCH_SIZE)
        ids_TS = code.ids(patchify(pixels), [grid])
        painted = tokenizer.reconstruct(tokenizer.features(ids_TS, [grid]), [grid])
        rest_TD = patchify(code.lapped(pixels - unpatchify(painted, crop.shape[:2])))

        def inner(values: Tensor, grid: tuple[int, int] = grid) -> Tensor:
            return values.unflatten(0, grid)[1:-1, 1:-1].flatten(0, 1)

        rests.append(inner(rest_TD).half())
        classes.append(inner(code.classes(ids_TS)))
        seen.append(Analysed(*map(inner, code.analyse(patchify(pixels), grid))))
    parts = (torch.cat(part) for part in zip(*seen, strict=True))
    return _Left(torch.cat(rests).float(), torch.cat(classes), Analysed(*parts))


def _fit_short(refinement: Refinement, code: TransformCode, seen: Analysed, count: int) -> float:
    """Tables of levels for patches of `count` codes; mean squared error of a value with them."""
    table_JQl = refinement.short_values[count - 1]
    table_JQl.copy_(_cell_means(code, count))
    error = 0.0
    for number in range(_SHORT_ROUNDS + 1):
        ids_PS = code.chosen(seen, table_JQl, count)
        found = indices(code, ids_PS, count)
        picked_PQ = table_JQl[found.classes_T].gather(2, found.levels_TQ[..., None])[..., 0]
        z_PQ = torch.bmm(seen.values_TV[:, None], code.directions[found.classes_T])[:, 0]
        saved_P = (z_PQ.square() - (z_PQ - picked_PQ).square()).sum(1)
        error = float((seen.energy_T - saved_P).mean()) / (3 * PATCH_SIZE**2)
        if number < _SHORT_ROUNDS:
            flat, places = table_JQl.flatten(), _flat(found.classes_T, found.levels_TQ, table_JQl)
            counts = torch.bincount(places, minlength=len(flat))
            sums = torch.zeros_like(flat).index_add_(0, places, z_PQ.flatten())
            mean = (sums + flat * 4) / (counts + 4)
            table_JQl.copy_(mean.unflatten(0, table_JQl.shape).cummax(2).values)
    return error


def _flat(classes_P: Tensor, levels_PQ: Tensor, table_JQl: Tensor) -> Tensor:
    """Places (P * Q,) of levels in a flattened table."""
    _, coefficients, levels = table_JQl.shape
    rows_PQ = classes_P[:, None] * coefficients + torch.arange(coefficients)
    return (rows_PQ * levels + levels_PQ).flatten()


def _cell_means(code: TransformCode, count: int) -> Tensor:
    """For levels of `count` codes, the mean of the levels (J, Q, l) that each stands for."""
    rest_JQ = code.counts(4) // code.counts(count)
    levels = torch.arange(code.values.shape[2])
    cells_JQl = (levels // rest_JQ[..., None]).clamp_max(len(levels) - 1)
    real_JQl = (levels < code.counts(4)[..., None]).to(code.values.dtype)
    sums = torch.zeros_like(code.values).scatter_add_(2, cells_JQl, code.values * real_JQl)
    counts = torch.zeros_like(code.values).scatter_add_(2, cells_JQl, real_JQl)
    means = torch.where(counts > 0, sums / counts.clamp_min(1), -torch.inf)
    return means.cummax(2).values


def _fit_basis(refinement: Refinement, left: _Left) -> Tensor:
    """Basis and sizes; coefficients (P, K)."""
    directions = torch.linalg.eigh(left.rest_PD.T @ left.rest_PD)[1].flip(1)
    refinement.basis.copy_(directions[:, : refinement.config.directions])
    values_PK = refinement.coefficients(left.rest_PD)
    classes, count = left.classes_P, len(refinement.sizes)
    sums_JK = torch.zeros_like(refinement.sizes).index_add_(0, classes, values_PK.square())
    members_J1 = torch.bincount(classes, minlength=count)[:, None]
    all_K = values_PK.square().mean(0)
    share_J1 = sums_JK.sum(1, keepdim=True) / members_J1.clamp_min(1) / all_K.sum()
    prior_JK = all_K * torch.where(members_J1 > 0, share_J1, 1.0)
    variance = (sums_JK + _PRIOR_PATCHES * prior_JK) / (members_J1 + _PRIOR_PATCHES)
    quarters = 4 * (variance.clamp_min(1e-12).sqrt() * 127.5).log2()
    refinement.sizes.copy_(quarters.round().clamp(-60, 60))
    return values_PK


def _fit_symbols(refinement: Refinement, values_NK: np.ndarray, classes_N: np.ndarray) -> None:
    """Frequencies of magnitudes, what is expected, and where in their cells values lie."""
    frequencies, expected = initial_tables()
    refinement.modes.copy_(to_digits(_counted(np.ones(refinement.modes.shape[:2]))))
    for _ in range(_ROUNDS):
        refinement.frequencies.copy_(to_digits(frequencies))
        refinement.expected.copy_(to_digits(expected))
        counts = np.zeros(BUCKETS * LEVELS * MAGNITUDES, np.int64)
        shape = (BUCKETS, LEVELS, MAGNITUDES)

        def seen(bucket: np.ndarray, level: np.ndarray, magnitude: np.ndarray) -> None:
            places = np.ravel_multi_index((bucket, level, magnitude), shape)  # noqa: B023
            counts.__iadd__(np.bincount(places, minlength=len(counts)))  # noqa: B023

        stream, places = refinement.stream(), np.zeros((2, BUCKETS * MAGNITUDES))
        for start in range(0, len(values_NK), 512):
            part = slice(start, start + 512)
            room = WORD_BITS * refinement.config.words
            walk = Walk(stream, values_NK[part], classes_N[part], room, seen)
            walk.run()
            places += walk.remainders()
        table = counts.reshape(shape).astype(float)
        frequencies, expected = _smoothed(table, frequencies), _means(table, expected)
        refinement.offsets.copy_(_offsets(places))


def _smoothed(table: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Frequencies of counts; rare buckets lean on what was before, rare levels on their bucket."""
    usual = before.mean(1, keepdims=True) / TOTAL
    bucket = table.sum(1, keepdims=True) + _PRIOR_SYMBOLS * usual
    bucket /= bucket.sum(2, keepdims=True)
    return _counted(table + _PRIOR_SYMBOLS * bucket, even=True)


def _means(table: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Mean magnitudes of buckets in `UNIT`s; of rare ones, what was before."""
    counts = table.sum((1, 2))
    means = UNIT * (table.sum(1) * np.arange(MAGNITUDES)).sum(1) / np.maximum(counts, 1)
    return np.where(counts > 200, np.round(means), before).astype(np.int64)


def _offsets(places: np.ndarray) -> Tensor:
    """From remainders, their sums and counts (2, BUCKETS * MAGNITUDES)."""
    offsets = (places[0] / (places[1] + 10)).reshape(BUCKETS, MAGNITUDES)
    offsets[:, [0, -1]] = 0
    return torch.from_numpy(offsets).float()


def _counted(weights: np.ndarray, *, even: bool = False) -> np.ndarray:
    """Whole frequencies, above 0, that sum to `TOTAL` along the last axis; all but the first even
    if wanted."""
    unit = 2 if even else 1
    shares = weights / weights.sum(-1, keepdims=True)
    room = TOTAL // unit - weights.shape[-1]
    whole = unit * (1 + np.floor(shares * room).astype(np.int64))
    rest = TOTAL - whole.sum(-1)
    largest = whole.argmax(-1)[..., None]
    filled = np.take_along_axis(whole, largest, -1) + rest[..., None]
    np.put_along_axis(whole, largest, filled, -1)
    return whole


def _fit_modes(refinement: Refinement, values_NK: np.ndarray, classes_N: np.ndarray) -> float:
    """Frequencies of modes, by the words of a patch; gives the bits that one takes."""
    words = refinement.config.words
    gains, modes = refinement.stream().search(values_NK, classes_N, words)
    counts = np.zeros((words, STEPS * (refinement.modes.shape[1] // STEPS)))
    for slope in _SLOPES:
        best = (gains * 127.5**2 - slope * 3 * np.arange(words + 1)).argmax(1)
        used = np.flatnonzero(best)
        np.add.at(counts, (best[used] - 1, modes[used, best[used]]), 1)
    near = sum(np.roll(counts, shift, 0) / (1 + abs(shift)) for shift in (-2, -1, 0, 1, 2))
    weights = counts + near + 0.5 * counts.sum(0) / max(1, counts.sum()) + 0.02
    frequencies = _counted(weights)
    refinement.modes.copy_(to_digits(frequencies))
    bits = -np.log2(frequencies / TOTAL)
    return float((counts * bits).sum() / max(1, counts.sum()))


def refined(
    tokenizer: VisualTokenizer,
    crops: Sequence[np.ndarray],
    config: RefinementConfig,
    fit: RefinementFitConfig | None = None,
    report: Callable[[dict[str, float]], None] = lambda record: None,
) -> VisualTokenizer:
    """A copy of a tokenizer with a refinement, in place of any that it has; as `fit_refinement`."""
    refinement = fit_refinement(tokenizer, crops, config, fit, report)
    copy = VisualTokenizer(replace(tokenizer.config, refinement=config))
    copy.load_state_dict({
        **{k: v for k, v in tokenizer.state_dict().items() if not k.startswith("refinement.")},
        **{f"refinement.{k}": v for k, v in refinement.state_dict().items()},
    })  # fmt: skip
    copy.entropy_file = tokenizer.entropy_file
    return copy.requires_grad_(False).eval()
