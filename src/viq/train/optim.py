"""Parameter groups and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from viq.core.types import ViqError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule. The defaults are the released recipe's."""

    learning_rate: float = 1e-4
    new_module_lr: float | None = None  # of parts that no earlier stage trained; None: the same
    discriminator_lr: float | None = None  # None: the same
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.05  # of the steps, linear from zero
    decay_ratio: float = 1.0  # of the steps, at the end, in which the rate falls
    min_lr_ratio: float = 0.1  # of the full rate, at the last step
    weight_decay: float = 1e-4  # matrices only
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0  # 0: never

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ViqError(f"schedule {self.schedule!r}: use cosine, linear or constant")


def factor(config: OptimConfig, step: int, steps: int) -> float:
    """Share of the full learning rate at `step` (0-based) of `steps`."""
    warmup = config.warmup_ratio * steps
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if config.schedule == "constant":
        return warm
    start = max(warmup, steps * (1 - config.decay_ratio))
    done = min(1.0, max(0.0, (step + 1 - start) / max(1.0, steps - start)))
    fall = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return warm * (config.min_lr_ratio + (1 - config.min_lr_ratio) * fall)


def make_optimizer(
    module: nn.Module, config: OptimConfig, new: Iterable[str] = ()
) -> torch.optim.AdamW:
    """AdamW over what requires a gradient; each group carries its full rate as `base`.

    Args:
        new: prefixes of parameter names that belong to parts which no earlier stage trained.
    """
    prefixes = tuple(new)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = config.learning_rate
        if name.startswith("discriminator."):
            rate = config.discriminator_lr or rate
        elif prefixes and name.startswith(prefixes):
            rate = config.new_module_lr or rate
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ViqError("nothing to train: every part is frozen")
    wanted: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "base": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    # On a CPU PyTorch goes from weight to weight by itself, which takes four times as long as its
    # one kernel for all; on a GPU it chooses among kernels.
    fused = None if torch.accelerator.is_available() else True
    return torch.optim.AdamW(wanted, lr=config.learning_rate, betas=config.betas, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, steps: int) -> float:
    """Set the rates for a step; gives the first group's."""
    share = factor(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * share
    return optimizer.param_groups[0]["lr"]
