"""Checkpoints of a running stage: whole or absent, and complete enough to go on to the last bit.

    step-N/state.safetensors   trained weights, moving average, tensors of the optimizer
    step-N/state.json          all else, where each tensor belongs, and the digests of both files

Frozen weights come from where they came from, and the random generators are seeded anew for each
step, from which the schedule follows, too. `state.json` is written last. Digests are compared
before anything is loaded; of two checkpoints that are kept, the older one takes the place of a
damaged one. Release 0.1 wrote one `state.pt` without digests: still read, with `weights_only`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from viq.core.errors import first_line
from viq.core.files import ASIDE, folder_aside, make_readable, sha256_of
from viq.core.types import ViqError
from viq.core.untrusted import INDEX_BYTES
from viq.data.batching.mixture import Position
from viq.train.tensor_trees import apart, with_tensors, without_tensors
from viq.weights.checkpoint import opened_weights, read_object

STATE, TENSORS, OLD = "state.json", "state.safetensors", "state.pt"
_OURS = frozenset({STATE, TENSORS, OLD})  # all that a checkpoint of ours ever holds
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,15})")
_KEEP = 2  # newest checkpoints
_FORMAT = 2
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Where a stage goes on."""

    step: int = 0
    positions: Mapping[int, Position]
    average: dict[str, Tensor] | None = None


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a stage, oldest first, whole or damaged."""
    found = [path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)]
    held = [path for path in found if any((path / name).exists() for name in _OURS)]
    return sorted(held, key=_number)


# Writing


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
    """Write `step-N`; every process must call this, the main one writes.

    Raises:
        ViqError: a folder of that name holds something else than a checkpoint.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, state = get_state_dict(module, optimizer, options=options)
    averaged = {k: whole_tensor(v) for k, v in average.items()} if average is not None else None
    if not main:
        return
    final = folder / f"step-{step}"
    _remove_torn(folder)
    values = {
        "step": step,
        "weights": weights,
        "optimizer": state,
        "average": averaged,
        "positions": {str(lane): position.as_json() for lane, position in positions.items()},
    }
    with folder_aside(final) as aside:
        write_state(aside, values)
        _remove(final)  # a damaged one that was passed over; refused if it holds anything else
    found = checkpoints(folder)
    passed_over = [path for path in found if _number(path) > step]
    for old in [*passed_over, *found[: -_KEEP - len(passed_over)]]:
        with suppress(ViqError):  # not ours alone: it stays
            _remove(old)


def write_state(folder: Path, values: Mapping[str, Any]) -> None:
    """Nested dictionaries, lists and tuples of tensors and plain values, as two files."""
    tensors: dict[str, Tensor] = {}
    plain = without_tensors(values, "", tensors, {})
    save_file(apart(tensors), folder / TENSORS, metadata={"format": "pt"})
    make_readable(folder / TENSORS)
    _flush(folder / TENSORS)
    size = (folder / TENSORS).stat().st_size
    content = {"format": _FORMAT, "bytes": size, "sha256": sha256_of(folder / TENSORS)}
    content |= {"values": plain}
    text = json.dumps({"digest": _digest(content), "content": content})
    (folder / STATE).write_text(text, encoding="utf-8")
    _flush(folder / STATE)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# Removing


def _remove(path: Path) -> None:
    """Remove a checkpoint of ours, file by file.

    Raises:
        ViqError: it holds anything that we did not put there; nothing is removed then.
    """
    if not os.path.lexists(path):
        return
    if not _is_only_ours(path):
        raise ViqError(f"{path}: holds more than a checkpoint of ours; move it out of the way")
    for name in _OURS:
        (path / name).unlink(missing_ok=True)  # our own name, in a folder with no others
    path.rmdir()  # refuses a folder that holds anything


def _is_only_ours(path: Path, names: Callable[[str], object] = _OURS.__contains__) -> bool:
    """Whether it is a folder, no link, of regular files with no other names than these."""
    if path.is_symlink() or not path.is_dir():
        return False
    with os.scandir(path) as entries:
        return all(names(e.name) and e.is_file(follow_symlinks=False) for e in entries)


def _remove_torn(folder: Path) -> None:
    """Remove what killed processes were writing: our names alone, with our files alone."""
    for path in folder.glob(".step-*"):
        found = ASIDE.fullmatch(path.name)
        name = found["name"] if found else path.name.removeprefix(".")  # the latter: release 0.1
        if _STEP.fullmatch(name) and _is_only_ours(path):
            _remove(path)


# Reading


def resume(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    print_line: Callable[[str], None] = lambda line: None,
    agree: Callable[[Callable[[], Any]], Any] = lambda choose: choose(),
) -> Resumed:
    """Load the newest whole checkpoint in place, if there is one.

    Args:
        say: is told of a damaged one that is passed over, and of one without digests.
        agree: gives every process what one of them chooses; all must go on from the same.

    Raises:
        ViqError: all are damaged, it belongs to a model of another shape, or a folder is in the
            way of a later checkpoint.
    """
    chosen = agree(lambda: _chosen_or_error(folder, print_line))
    if isinstance(chosen, ViqError):
        raise chosen
    if chosen is None:
        return Resumed(positions={})
    path = folder / chosen
    values = _under_current_names(read_state(path, verified=True), module)
    try:
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
        # A weight that never had a gradient has no state. PyTorch makes one, with a step too many.
        for name, parameter in module.named_parameters():
            if name.removeprefix("module.") not in values["optimizer"]["state"]:
                optimizer.state.pop(parameter, None)
        positions = {int(k): Position.from_json(v) for k, v in values["positions"].items()}
        return Resumed(step=values["step"], positions=positions, average=values["average"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ViqError(
            f"{path}: cannot be resumed ({first_line(error)}); it is of another run: give another "
            "--out"
        ) from None


def _under_current_names(values: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """A checkpoint whose weights have the names of today, where an objective knows older ones."""
    rename = getattr(getattr(module, "module", module), "current_name", None)
    if rename is None:
        return values
    for holder, key in ((values, "weights"), (values, "average"), (values["optimizer"], "state")):
        if holder[key]:
            holder[key] = {rename(name): value for name, value in holder[key].items()}
    for group in values["optimizer"]["param_groups"]:
        group["params"] = [rename(name) for name in group["params"]]
    return values


def _chosen_or_error(folder: Path, print_line: Callable[[str], None]) -> str | ViqError | None:
    """An error is handed on like a choice, as other processes wait for it."""
    try:
        return _chosen(folder, print_line)
    except OSError as error:
        return ViqError(f"{folder}: cannot be read ({error.strerror})")


def _chosen(folder: Path, print_line: Callable[[str], None]) -> str | ViqError | None:
    """Name of the newest whole checkpoint; None if there is none at all."""
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            has_digests = verify_state(path)
        except ViqError as error:
            damaged.append(str(error))
            continue
        for line in damaged:
            print_line(f"{line}: going on from {path.name} instead")
        if not has_digests:
            print_line(
                f"{path}: written by release 0.1, without a checksum; damage would not be seen"
            )
        return _blocked(folder, _number(path)) or path.name
    if damaged:
        return ViqError(
            f"{'; '.join(damaged)}: cannot be resumed; remove it to begin the stage anew"
        )
    return _blocked(folder, -1)


def _blocked(folder: Path, step: int) -> ViqError | None:
    """What would stop a later checkpoint from being written, told before hours of training."""
    for path in folder.glob("step-*"):
        if _STEP.fullmatch(path.name) and _number(path) > step and not _is_only_ours(path):
            return ViqError(
                f"{path}: is in the way of a checkpoint and holds files that are none of ours: "
                "move it away"
            )
    return None


def verify_state(path: Path) -> bool:
    """Whether a checkpoint, which is whole, has digests; those of release 0.1 have none.

    Raises:
        ViqError: it is damaged, or not whole.
    """
    if not (path / STATE).exists() and (path / OLD).is_file():
        _read_old(path)
        return False
    content = _content(path)
    tensors = path / TENSORS
    try:
        size = tensors.stat().st_size
        if size != content["bytes"] or sha256_of(tensors) != content["sha256"]:
            raise ViqError(f"{path} is damaged (the checksum of {TENSORS} is wrong)")
    except OSError as error:
        raise ViqError(f"{path} is damaged ({TENSORS}: {error.strerror})") from None
    return True


def read_state(path: Path, *, verified: bool = False) -> dict[str, Any]:
    """What `save` wrote into this checkpoint, tensors on the CPU.

    Raises:
        ViqError: it is damaged, or not whole.
    """
    if not verified:
        verify_state(path)
    if not (path / STATE).exists() and (path / OLD).is_file():
        return _read_old(path)
    content = _content(path)
    with opened_weights(path / TENSORS) as file:
        # Copies, as mapped ones would go with their file and lie on other addresses.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return with_tensors(content["values"], tensors)


def _content(path: Path) -> dict[str, Any]:
    """What the JSON of a checkpoint holds, which agrees with its digest."""
    try:
        found = read_object(path / STATE, INDEX_BYTES)
        content = found["content"]
        if found["digest"] != _digest(content):
            raise ViqError("its checksum is wrong")
        if content["format"] != _FORMAT:
            raise ViqError("of a newer release")
        return content
    except (OSError, KeyError, TypeError, RecursionError, ViqError) as error:
        reason = first_line(error, None).removeprefix(f"{path / STATE}: ")
        raise ViqError(f"{path} is damaged ({STATE}: {reason})") from None


def _read_old(path: Path) -> dict[str, Any]:
    """The one file of release 0.1. `weights_only`: plain tensors and values, no code."""
    try:
        values = torch.load(path / OLD, map_location="cpu", weights_only=True)
        values["positions"] = {str(k): v for k, v in values["positions"].items()}
        if not {"step", "weights", "optimizer", "average"} <= values.keys():
            raise ViqError("not whole")
        return values
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ViqError(f"{path} is damaged ({OLD}: {first_line(error)})") from None


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def load_trained(folder: Path, module: nn.Module) -> None:
    """Put what a stage has trained into a module like the one that was trained, on any device.

    That is the newest checkpoint's moving average, where there is one, and else its weights. An
    older one is never taken for it.

    Raises:
        ViqError: no checkpoint, a damaged one, or one of a module of another shape.
    """
    found = checkpoints(folder)
    if not found:
        raise ViqError(f"{folder}: holds no checkpoint; train the stage first")
    try:
        values = _under_current_names(read_state(found[-1]), module)
    except ViqError as error:
        raise ViqError(f"{error}: run the same command again, to go on from the one before") \
            from None  # fmt: skip
    trained = values["weights"] | (values["average"] or {})
    trained.pop("updates", None)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    parameters |= dict(module.named_buffers())
    unknown = {n for n, v in trained.items()
               if n not in parameters or parameters[n].shape != v.shape}  # fmt: skip
    if unknown:
        raise ViqError(f"{found[-1]}: is of another model (for example {min(unknown)})")
    with torch.no_grad():
        for name, value in trained.items():
            parameters[name].copy_(value)


def unsharded(module: _Module, main: bool) -> _Module | None:
    """The module on the main process, None elsewhere; every process must call this.

    One whose parameters are sharded over processes (FSDP) is copied to the CPU in one piece. It
    must be one that its `config` alone builds.
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
    """A tensor that may be sharded over processes, in one piece on the CPU."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, sharded over processes as another one is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
