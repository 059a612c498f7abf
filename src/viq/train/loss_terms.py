"""Loss terms: what each is counted in, and their weighted sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from viq.core.types import ViqError


class Objective(nn.Module):
    """What a stage optimises: takes a micro-batch, gives sums by name.

    Attributes:
        counted_in: of each sum, what it is divided by: a name in the `counts` of micro-batches.
        metrics: of sums that are only logged, never trained on, their names in the log.
    """

    counted_in: Mapping[str, str] = {}
    metrics: Mapping[str, str] = {}


def check_losses(stage: str, weights: Mapping[str, float], terms: Iterable[str]) -> None:
    """Weights are those of terms that a stage has.

    Raises:
        ViqError: it has no such terms.
    """
    known = list(terms)
    if unknown := sorted(weights.keys() - set(known)):
        raise ViqError(f"{stage}: no losses {unknown}: choose from {', '.join(known)}")


def weighted(
    sums: Mapping[str, Tensor],
    counts: Mapping[str, float],
    weights: Mapping[str, float],
    counted_in: Mapping[str, str],
) -> Tensor:
    """The loss: each term over its count, times its weight.

    Args:
        counted_in: see `Objective`.

    Raises:
        ViqError: a term is asked for that the stage does not have.
    """
    wanted = {name: weight for name, weight in weights.items() if weight}
    if missing := sorted(wanted.keys() - sums.keys()):
        raise ViqError(f"this stage has no losses {missing}, only {', '.join(sums) or 'none'}")
    return torch.stack(
        [
            sums[name].float() * (weight / max(1.0, counts[counted_in[name]]))
            for name, weight in wanted.items()
        ]
    ).sum()
