"""Fit the tables of an entropy model of codes with counts (`viq.codec.counted_tables`).

P = patches of some pictures, G = groups of counts, J, Q, l as in the transform code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from viq.codec.class_tables import ClassTables, Parts
from viq.codec.completion import Completion
from viq.codec.counted_tables import GROUPS, UNIT, CountedTables, group_of
from viq.codec.phases import Step
from viq.core.codes import Codes
from viq.core.counts import codes_counted
from viq.models.tokenizer.refinement import Refinement, nearest_levels
from viq.models.tokenizer.transform_code import TransformCode
from viq.train.class_tables import batches_of

_ROUNDS = 3  # of proportional fitting
_PRIOR = 2.0  # patches that stand for a weight of 1
_LEAST, _MOST = 1 / 64, 63.0  # of weights


def fit_counted_tables(
    plain: ClassTables, codes: Sequence[Codes], code: TransformCode, refinement: Refinement
) -> CountedTables:
    """Tables for counted codes, from those for four codes a patch.

    Args:
        codes: some with counts, for the weights of classes; without any all weights are 1.
    """
    radices, nearest = completion_of(code, refinement)
    high, low = (plain.tensors[name].shape[2:] for name in ("high", "low"))
    tensors = plain.tensors | {
        "radices": radices,
        "nearest": nearest,
        "group_high": np.full((GROUPS, *high), UNIT, np.uint16),
        "group_low": np.full((GROUPS, *low), UNIT, np.uint16),
    }
    model = CountedTables(tensors, plain.levels, plain.fingerprint)
    counted = [item for item in codes if item.counts is not None]
    for _ in range(_ROUNDS if counted else 0):
        tensors |= _weights(model, counted)
        model = CountedTables(tensors, plain.levels, plain.fingerprint)
    return model


@torch.no_grad()
def completion_of(code: TransformCode, refinement: Refinement) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of `viq.codec.completion.Completion`, uint8."""
    found = []
    for slots, count in Completion.CASES:
        known_JQ, whole_JQ = code.counts(count), code.counts(slots)
        rest_JQ, said_JQl = whole_JQ // known_JQ, refinement.tables(code, count)
        places = []
        for level in range(int(known_JQ.max())):
            levels_JQ = torch.full_like(known_JQ, level)
            full_JQl = refinement.tables(code, slots)
            nearest_JQ = nearest_levels(said_JQl[..., level], levels_JQ, full_JQl, rest_JQ)
            places.append(nearest_JQ - level * rest_JQ)
        there_JQl = torch.arange(len(places), device=known_JQ.device) < known_JQ[..., None]
        found.append(torch.stack(places, 2)[there_JQl])
    nearest = torch.cat(found).cpu().numpy().astype(np.uint8)
    return code.radices.long().cpu().numpy().astype(np.uint8), nearest


def _weights(model: CountedTables, codes: Sequence[Codes]) -> dict[str, np.ndarray]:
    """Weights of classes with which the tables expect what is there (proportional fitting)."""
    names, tensors = ("high", "low"), model.tensors
    there = {name: np.full(tensors[f"group_{name}"].shape, _PRIOR) for name in names}
    expected = {name: there[name].copy() for name in names}
    for parts, steps, group_P in _counted(model, codes):
        class_U = np.pad(parts.class_T + 1, (1, 0))
        for step in steps:
            bucket_P = model.buckets(model.classes_near(step, class_U))
            high_P, low_P = np.divmod(parts.class_T[step.places_n], model.shape.low)
            rows_P = group_P[step.places_n]
            for name, own_P, places in (
                ("high", high_P, (rows_P,)), ("low", low_P, (rows_P, high_P))
            ):  # fmt: skip
                table = tensors[name][step.phase][(bucket_P, *places[1:])]
                likely_Pl = table * tensors[f"group_{name}"][places].astype(float)
                np.add.at(expected[name], places, likely_Pl / likely_Pl.sum(1, keepdims=True))
                np.add.at(there[name], (*places, own_P), 1)
    return {f"group_{name}": _integers(
        tensors[f"group_{name}"] * there[name] / expected[name]
    ) for name in names}  # fmt: skip


def _counted(
    model: CountedTables, codes: Sequence[Codes]
) -> Iterator[tuple[Parts, list[Step], np.ndarray]]:
    """As `batches_of`, with the groups of patches, picture by picture."""
    for item in codes:
        assert item.counts is not None
        ((parts, steps),) = batches_of(model, [item])
        if model.fits(parts).all():
            yield parts, steps, group_of(codes_counted(item.counts.ravel()))


def _integers(weights: np.ndarray) -> np.ndarray:
    """Weights in `UNIT`s, uint16; those of the first group change nothing."""
    whole = np.clip(weights, _LEAST * UNIT, _MOST * UNIT).round().astype(np.uint16)
    whole[0] = UNIT
    return whole
