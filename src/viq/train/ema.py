"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from viq.train import checkpoints as state


class _Average:
    """An exponential moving average of the trained weights."""

    def __init__(self, module: nn.Module, decay: float, saved: dict[str, Tensor] | None) -> None:
        self.decay = decay
        current = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
        self.values = {n: p.clone() for n, p in current.items()}
        self.updates = 0
        if saved is not None:
            self.updates = int(saved.pop("updates"))
            for name, value in saved.items():
                self.values[name].copy_(state.shard_like(value, self.values[name]))
        self.values["updates"] = torch.tensor(float(self.updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """One step. The decay grows to its full value, so that the start is soon forgotten."""
        self.updates += 1
        self.values["updates"] += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in module.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Put the average into the module."""
        for name, parameter in module.named_parameters():
            if name in self.values:
                parameter.copy_(self.values[name])

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """The average in the module for a while."""
        kept = {n: p.detach().clone() for n, p in module.named_parameters() if n in self.values}
        self.apply(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    if name in kept:
                        parameter.copy_(kept[name])
