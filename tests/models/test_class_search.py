"""The search for classes gives what its definition says, patch by patch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from viq.models.tokenizer.class_search import Levels, least_error

J, V, Q, LEVELS = 24, 9, 5, 6


def levels(seed: int) -> Levels:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, LEVELS + 1, (J, Q), generator=generator)
    values = torch.randn(J, Q, LEVELS, generator=generator).sort(2).values
    last = values.gather(2, counts[..., None] - 1)  # levels that are not used repeat the last
    values = torch.where(torch.arange(LEVELS) < counts[..., None], values, last)
    values[::3, 3:] = 0  # classes of fewer coefficients
    return Levels(values, counts)


def by_definition(
    x_V: Tensor, log: Tensor, directions: Tensor, window: Tensor, kind: Levels
) -> tuple[int, Tensor]:
    z_JQ = torch.einsum("v,jvq->jq", x_V, directions)
    low, high = kind.values_JQl[..., 0], kind.values_JQl[..., -1]
    step = (high - low) / (kind.counts_JQ - 1).clamp_min(1)
    inside = z_JQ.clamp(low, high)
    estimate = ((inside - z_JQ).square() - z_JQ.square()).sum(1) + step.square().sum(1) / 12
    tried = (window[:, 0] <= log) & (log <= window[:, 1])
    best = estimate.masked_fill(~tried, torch.inf).topk(6, largest=False).indices
    best = best[tried[best]]
    nearest = (kind.values_JQl - z_JQ[..., None]).abs().argmin(2)
    picked = kind.values_JQl.gather(2, nearest[..., None])[..., 0]
    error = ((picked - z_JQ).square() - z_JQ.square()).sum(1)[best]
    chosen = int(best[error.argmin()])
    return chosen, picked[chosen]


@pytest.mark.parametrize("count", [1, 2, 700])
def test_it_finds_the_class_of_least_error(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    directions = torch.randn(J, V, Q, generator=generator) / 3
    x_TV = torch.randn(count, V, generator=generator)
    x_TV *= torch.rand(count, 1, generator=generator) * 3 + 0.1
    log_T = x_TV.square().sum(1).log()
    middle = torch.linspace(float(log_T.min()), float(log_T.max()), J)
    window = torch.stack([middle - 4, middle + 4], 1)  # every patch has more than six to try
    kinds = [levels(1), levels(2)]
    kind_T = torch.randint(0, 2, (count,), generator=generator)
    classes_T, levels_TQ = least_error(x_TV, log_T, directions, window, kinds, kind_T)
    same = 0
    for number in range(count):
        kind = kinds[int(kind_T[number])]
        chosen, picked_Q = by_definition(x_TV[number], log_T[number], directions, window, kind)
        assert bool((levels_TQ[number] < kind.counts_JQ[classes_T[number]]).all())
        found_Q = kind.values_JQl[classes_T[number]].gather(1, levels_TQ[number, :, None])[:, 0]
        same += chosen == int(classes_T[number]) and torch.equal(found_Q, picked_Q)
    assert same >= count - 1  # sums of another order can tell two classes apart otherwise


def test_there_may_be_no_patch_and_no_class_of_a_patch() -> None:
    directions, window = torch.randn(J, V, Q), torch.tensor([[0.0, 1.0]]).expand(J, 2)
    kinds, none_T = [levels(1)], torch.zeros(0, dtype=torch.long)
    found = least_error(torch.zeros(0, V), torch.zeros(0), directions, window, kinds, none_T)
    assert found[0].shape == (0,) and found[1].shape == (0, Q)
    gap = least_error(
        torch.ones(3, V), torch.full((3,), 9.0), directions, window, kinds, none_T.new_zeros(3)
    )
    assert gap[0].shape == (3,) and gap[1].shape == (3, Q)
