"""Learning rates by hand, and which parameter gets which."""

import math

import pytest
import torch
from torch import nn

from viq.core.types import ViqError
from viq.train.optim import OptimConfig, factor, make_optimizer, set_rate


def test_linear_schedule_by_hand() -> None:
    config = OptimConfig(schedule="linear", warmup_ratio=0.1, decay_ratio=0.5, min_lr_ratio=0.2)
    # 100 steps: up to the 10th, level until the 50th, down to a fifth at the last.
    expected = {0: 0.1, 4: 0.5, 9: 1, 49: 1, 74: 0.6, 99: 0.2}
    assert {step: pytest.approx(factor(config, step, 100)) for step in expected} == expected


def test_cosine_schedule_by_hand() -> None:
    config = OptimConfig(warmup_ratio=0.2, min_lr_ratio=0.1)
    assert factor(config, 0, 10) == pytest.approx(0.5 * (0.1 + 0.9 * 1))
    assert factor(config, 1, 10) == pytest.approx(1)
    assert factor(config, 5, 10) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor(config, 7, 10) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.75)))
    assert factor(config, 9, 10) == pytest.approx(0.1)


def test_constant_schedule_and_no_warm_up() -> None:
    config = OptimConfig(schedule="constant", warmup_ratio=0.5)
    assert [factor(config, step, 4) for step in range(4)] == [0.5, 1, 1, 1]
    assert factor(OptimConfig(warmup_ratio=0, min_lr_ratio=1), 0, 3) == 1
    with pytest.raises(ViqError, match="schedule 'step': use cosine, linear or constant"):
        OptimConfig(schedule="step")  # type: ignore[arg-type]


def test_groups_by_rate_and_decay() -> None:
    model = nn.ModuleDict(
        {
            "encoder": nn.Linear(2, 2),
            "quantizer": nn.LayerNorm(2),
            "discriminator": nn.Linear(2, 1),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
        }
    )
    config = OptimConfig(
        learning_rate=1.0, new_module_lr=2.0, discriminator_lr=3.0, weight_decay=0.5
    )
    optimizer = make_optimizer(model, config, new=["quantizer."])
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["base"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found == {
        "encoder.weight": (1.0, 0.5),
        "encoder.bias": (1.0, 0.0),
        "quantizer.weight": (2.0, 0.0),
        "quantizer.bias": (2.0, 0.0),
        "discriminator.weight": (3.0, 0.5),
        "discriminator.bias": (3.0, 0.0),
    }
    assert set_rate(optimizer, OptimConfig(warmup_ratio=1.0, min_lr_ratio=1.0), 0, 4) == 0.25
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.25, 0.5, 0.75]


def test_nothing_to_train() -> None:
    with pytest.raises(ViqError, match="every part is frozen"):
        make_optimizer(nn.Linear(1, 1).requires_grad_(False), OptimConfig())


def test_other_rates_default_to_the_first() -> None:
    model = nn.ModuleDict({"discriminator": nn.Linear(1, 1), "new": nn.Linear(1, 1)})
    optimizer = make_optimizer(model, OptimConfig(learning_rate=0.5), new=["new."])
    assert {group["base"] for group in optimizer.param_groups} == {0.5}
    assert isinstance(optimizer, torch.optim.AdamW)
