"""Short training without a run folder, on the CPU of one process: probes and entropy models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from viq.data.batching.mixture import Position
from viq.models.layers.ambient import tiny_as_zero
from viq.train.loop import Hooks, LoopConfig, train
from viq.train.loss_terms import Objective
from viq.train.optim import OptimConfig


def cosine_loop(
    steps: int,
    losses: Mapping[str, float],
    learning_rate: float,
    *,
    warmup_ratio: float,
    weight_decay: float,
    records: int,
) -> LoopConfig:
    """A rate that rises and falls to 0 along a cosine; logs about `records` times."""
    return LoopConfig(
        steps=steps,
        losses=losses,
        optim=OptimConfig(
            learning_rate=learning_rate,
            warmup_ratio=warmup_ratio,
            min_lr_ratio=0.0,
            weight_decay=weight_decay,
            betas=(0.9, 0.99),
        ),
        log_every=max(1, steps // records),
    )


@tiny_as_zero()
def train_in_memory(
    objective: Objective,
    batches: Iterator[Any],
    config: LoopConfig,
    *,
    name: str,
    seed: int,
    log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Train what requires a gradient in `objective`, in place; nothing is written.

    Args:
        batches: endless; each with `counts` and `to`, as micro-batches have them.
        log: called with means of the numbers of every `config.log_every` steps.

    Raises:
        TrainingError: loss or gradient is not finite.
    """
    train(
        objective,
        lambda resumed: _OneLane(batches),
        config,
        None,
        name=name,
        seed=seed,
        accelerator=SingleProcess(),
        hooks=Hooks(log=log),
    )


class _OneLane:
    """Batches as the loop takes them: one a step."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.lanes, self._batches = [0], batches

    def steps(self, first: int, last: int) -> Iterator[tuple[list[Any], dict[int, Position]]]:
        for _ in range(first, last):
            yield [next(self._batches)], {}


class SingleProcess:
    """One process on the CPU in float32, in the words of accelerate's Accelerator.

    That has one state for the whole program, which may be of GPUs and half precision: what is
    trained in memory must not depend on what else was trained before.
    """

    is_main_process, num_processes, distributed_type = True, 1, "NO"
    device = torch.device("cpu")

    def prepare(self, *parts: Any) -> tuple[Any, ...]:
        return parts

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: Sequence[Tensor], norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, norm)
