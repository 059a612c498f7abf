"""Checkpoints of a running stage: whole or absent, and complete enough to go on to the last bit.

`step-N/state.pt` holds the trained weights (frozen ones come from where they came from), the
optimizer, the moving average, the data position of every lane, and the step, from which schedule
and random numbers follow: the generators are seeded anew for each step. Files are read with
`weights_only`, so a foreign file can do no harm.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from viq.data.mixture import Position
from viq.types import ViqError

_KEEP = 2  # newest checkpoints
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Where a stage goes on."""

    step: int = 0
    positions: Mapping[int, Position]
    average: dict[str, Tensor] | None = None


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a stage, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def save(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    positions: Mapping[int, Position],
    average: Mapping[str, Tensor] | None,
    main: bool = True,
) -> None:
    """Write `step-N`; every process must call this, the main one writes."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, state = get_state_dict(module, optimizer, options=options)
    averaged = {k: whole_tensor(v) for k, v in average.items()} if average is not None else None
    if not main:
        return
    aside, final = folder / f".step-{step}", folder / f"step-{step}"
    for torn in folder.glob(".step-*"):
        shutil.rmtree(torn)
    aside.mkdir(parents=True)
    values = {
        "step": step,
        "weights": weights,
        "optimizer": state,
        "average": averaged,
        "positions": {lane: position.as_json() for lane, position in positions.items()},
    }
    with (aside / "state.pt").open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    for old in checkpoints(folder)[:-_KEEP]:
        shutil.rmtree(old)


def resume(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> Resumed:
    """Load the newest checkpoint in place, if there is one.

    Raises:
        ViqError: it is damaged, or belongs to a model of another shape.
    """
    found = checkpoints(folder)
    if not found:
        return Resumed(positions={})
    path = found[-1] / "state.pt"
    try:
        values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        trained = StateDictOptions(ignore_frozen_params=True)
        wanted = get_model_state_dict(module, options=trained).keys()
        if differing := sorted(wanted ^ values["weights"].keys()):
            raise RuntimeError(f"{len(differing)} weights do not fit, such as {differing[0]}")
        set_state_dict(
            module,
            optimizer,
            model_state_dict=values["weights"],
            optim_state_dict=values["optimizer"],
            options=StateDictOptions(full_state_dict=True, strict=False),
        )
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        first = (str(error).strip().splitlines() or ["unreadable"])[0]
        raise ViqError(
            f"{path}: cannot be resumed ({first}); delete {found[-1]} to go on from the one before"
        ) from None
    # A weight that never had a gradient has no state. PyTorch makes one, with a step too many.
    for name, parameter in module.named_parameters():
        if name.removeprefix("module.") not in values["optimizer"]["state"]:
            optimizer.state.pop(parameter, None)
    positions = {int(k): Position.from_json(v) for k, v in values["positions"].items()}
    return Resumed(step=values["step"], positions=positions, average=values["average"])


def load_trained(folder: Path, module: nn.Module) -> None:
    """Put what a stage has trained into a module like the one that was trained, on any device.

    That is the newest checkpoint's moving average, where there is one, and else its weights.

    Raises:
        ViqError: no checkpoint, or one of a module of another shape.
    """
    found = checkpoints(folder)
    if not found:
        raise ViqError(f"{folder}: holds no checkpoint; train the stage first")
    values = torch.load(found[-1] / "state.pt", map_location="cpu", weights_only=True)
    trained = values["weights"] | (values["average"] or {})
    trained.pop("updates", None)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    parameters |= dict(module.named_buffers())
    if unknown := sorted(trained.keys() - parameters.keys()):
        raise ViqError(f"{found[-1]}: is of another model (for example {unknown[0]})")
    with torch.no_grad():
        for name, value in trained.items():
            parameters[name].copy_(value)


def whole(module: _Module, main: bool) -> _Module | None:
    """The module on the main process, None elsewhere; every process must call this.

    One whose parameters are spread over processes (FSDP) is copied to the CPU in one piece. It must
    be one that its `config` alone builds.
    """
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        return module if main else None
    copy = type(module)(module.config) if main else None
    weights: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():  # the other processes keep none of them
        gathered = whole_tensor(value)
        if main:
            weights[name] = gathered
    if copy is not None:
        copy.load_state_dict(weights)
        copy.train(module.training)
    return copy


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over processes, in one piece on the CPU."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, spread over processes as another one is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
