"""The head of a model that draws: exact likelihoods, and sampling from them."""

import itertools
from typing import Any

import pytest
import torch

from viq.core.types import ViqError
from viq.mllm.level_head import LevelHead, Sampling, draw_level

pytest.importorskip("transformers")
LIKELIEST = Sampling(temperature=0)


def test_the_likelihood_sums_to_one() -> None:
    torch.manual_seed(0)
    head = LevelHead(8, (2, 3), 16)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    every = torch.tensor(list(itertools.product(*(range(n) for n in (2, 3) * 4))))
    nats = head(torch.randn(1, 8).expand(len(every), 8), every)
    assert len(every) == 6**4
    assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_sampling_draws_from_that_likelihood() -> None:
    torch.manual_seed(0)
    head = LevelHead(8, (2, 3), 16)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    hidden = torch.randn(1, 8)
    drawn = head.sample(hidden.expand(4000, 8), None, Sampling(), torch.Generator().manual_seed(0))
    assert (drawn.amax(0) < torch.tensor([2, 3] * 4)).all()
    # Mean surprise of what was drawn is the entropy: compare with an exact sum.
    every = torch.tensor(list(itertools.product(*(range(n) for n in (2, 3) * 4))))
    nats = head(hidden.expand(len(every), 8), every)
    entropy = (nats.neg().exp() * nats).sum().item()
    assert head(hidden.expand(4000, 8), drawn).mean().item() == pytest.approx(entropy, rel=0.03)


def test_temperature_top_p_and_guidance() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.4, 0.0]]).log().expand(500, 4)
    seed = torch.Generator().manual_seed(0)
    assert set(draw_level([logits], LIKELIEST, seed).tolist()) == {1}
    assert set(draw_level([logits], Sampling(top_p=0.85), seed).tolist()) == {1, 2}
    assert set(draw_level([logits], Sampling(), seed).tolist()) == {0, 1, 2}
    assert set(draw_level([logits], Sampling(top_p=0.01), seed).tolist()) == {1}
    head = LevelHead(8, (2, 3), 16)
    asked, unconditional = torch.randn(2, 5, 8)
    plain = head.sample(asked, None, LIKELIEST, None)
    # Guidance 0 draws as if nothing had been asked.
    unasked = head.sample(asked, unconditional, Sampling(temperature=0, guidance=0), None)
    assert torch.equal(unasked, head.sample(unconditional, None, LIKELIEST, None))
    same = head.sample(asked, asked, Sampling(temperature=0, guidance=3), None)
    assert torch.equal(same, plain)
    bad: list[dict[str, Any]] = [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"guidance": -1},
    ]
    for each in bad:
        with pytest.raises(ViqError, match="use temperature"):
            Sampling(**each)
