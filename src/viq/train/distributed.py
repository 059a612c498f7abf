"""Processes that train together: the accelerator, and what is reduced over them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from viq.core.errors import require
from viq.core.types import ViqError
from viq.models.layers.ambient import tiny_as_zero
from viq.models.layers.blocks import Block


def make_accelerator(precision: Literal["auto", "float32", "bfloat16"] = "auto") -> Any:
    """accelerate's Accelerator; "auto" takes bfloat16 on accelerators that have it.

    On CPUs bfloat16 is slower than fp32 and is never chosen. FSDP (version 2) keeps fp32 weights
    and computes under autocast, as every other way does.

    Raises:
        ViqError: accelerate is missing, or launched with the first version of FSDP.
    """
    with require("accelerate", "train", "training"):
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.utils import DistributedType
    cuda = torch.cuda.is_available()
    half = precision == "bfloat16" or (
        precision == "auto" and cuda and torch.cuda.is_bf16_supported()
    )
    with _whole_models():
        accelerator = Accelerator(
            cpu=not cuda and not torch.backends.mps.is_available(),
            mixed_precision="bf16" if half else "no",
            # A micro-batch without images, or without text, leaves parts of the model out.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise ViqError("FSDP of version 1 is not supported: launch with --fsdp_version 2")
        plugin: Any = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = None
    return accelerator


@contextmanager
def process_settings() -> Iterator[None]:
    """What training wants of its process, which is as it was before afterwards."""
    with tiny_as_zero(), _whole_models():
        yield


@contextmanager
def _whole_models() -> Iterator[None]:
    """Every process loads the whole model; transformers would leave those of all but one empty."""
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)  # accelerate may have removed it
        else:
            os.environ[name] = before


def _shard_by_layer(accelerator: Any, module: nn.Module) -> None:
    """Have FSDP gather one layer of the model at a time; accelerate would ask the root alone."""
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
    from transformers.modeling_layers import GradientCheckpointingLayer  # of language models

    layers = (Block, GradientCheckpointingLayer)
    plugin = accelerator.state.fsdp_plugin
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted(
        {type(part).__name__ for part in module.modules() if isinstance(part, layers)}
    )


def _reduced(values: Mapping[str, Tensor], accelerator: Any) -> dict[str, float]:
    """Sums over all processes. Every process has the same names."""
    names = sorted(values)
    if accelerator.num_processes == 1:
        return {name: float(values[name]) for name in names}
    stacked = torch.stack([values[name].double() for name in names]).to(accelerator.device)
    return dict(zip(names, accelerator.reduce(stacked, "sum").tolist(), strict=True))


def _on_host(
    totals: Mapping[str, Tensor], norms: Sequence[Tensor], accelerator: Any
) -> tuple[dict[str, float], list[float]]:
    """Sums over all processes, and norms that each process has whole, in one transfer."""
    names = sorted(totals)
    stacked = torch.stack([totals[name] for name in names])
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked.double(), "sum")
    values = torch.cat([stacked, *(norm.to(stacked).reshape(1) for norm in norms)]).tolist()
    return dict(zip(names, values, strict=False)), values[len(names) :]


def _gathered(reached: Mapping[int, Any], accelerator: Any) -> dict[int, Any]:
    """Positions of the lanes of all processes."""
    if accelerator.num_processes == 1:
        return dict(reached)
    from accelerate.utils import gather_object

    return dict(gather_object(list(reached.items())))


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
