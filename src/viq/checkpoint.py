"""A model on disk: `config.json` beside `model.safetensors`, loaded strictly, stamped.

The fingerprint tells whether two tokenizers make and read the same codes. It covers the parts
that decide codes and features, not those that only read features (decoders, pooling head), so
that a better decoder still reads old codes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from viq.files import written_aside
from viq.types import ViqError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

T = TypeVar("T")


class CheckpointError(ViqError):
    """A model folder or weight file that cannot be used. One line: what, where, how to mend."""


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config of a model folder."""
    path = folder / CONFIG_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {CONFIG_FILE}; give a folder written by save_pretrained or viq convert"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); copy it again") from None


def read_weights(path: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU, in their stored dtype.

    Args:
        prefixes: of the names that are wanted; no other tensor is read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            wanted = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118
            return {name: _aligned(file.get_tensor(name)) for name in wanted}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the model folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor on an address that PyTorch itself would give it.

    In a file it begins wherever the header ends, and on some processors the last bit of a matrix
    product depends on that: equal models in different files would have different codes.
    """
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a whole safetensors file, or nothing."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with written_aside(path) as aside:
        save_file(whole, aside, metadata={"format": "pt"})


class WithoutInit(TorchFunctionMode):
    """Leave out the drawing of initial weights, where they are about to be loaded.

    On the meta device drawing does nothing, yet it imports torch's compiler, which takes seconds.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that fit exactly; parameters may be on the meta device.

    Raises:
        CheckpointError: names or shapes differ; both sides are listed.
    """
    wanted = module.state_dict()
    problems = [
        *_names("missing in the file", wanted.keys() - weights.keys()),
        *_names("unknown to the model", weights.keys() - wanted.keys()),
        *_names(
            "of another shape",
            [
                f"{name} (file {list(weights[name].shape)}, model {list(wanted[name].shape)})"
                for name in sorted(wanted.keys() & weights.keys())
                if weights[name].shape != wanted[name].shape
            ],
        ),
    ]
    if problems:
        raise CheckpointError(f"{source}: weights do not fit the model: {'; '.join(problems)}")
    module.load_state_dict(dict(weights), assign=True)


def fingerprint(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of SHA-256 over a config and the values of weights.

    Values are hashed as fp32, so that one model stored in fp16 or fp32 has one fingerprint as
    long as its values are the same.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()[:16]


def to_dict(config: Any) -> dict[str, Any]:
    """A (nested) config dataclass as JSON-able dictionaries and lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A (nested) config dataclass from parsed JSON.

    Raises:
        CheckpointError: unknown or missing fields, or values that the class refuses.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise CheckpointError(f"{where}: unknown config fields {unknown}; update viq")
    arguments = {name: _value(hints[name], value, where) for name, value in values.items()}
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return None if value is None else _value(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast(type, hint), value, where)
    inner = typing.get_args(hint)
    if isinstance(value, list):
        return tuple(_value(inner[0], item, where) if inner else item for item in value)
    if isinstance(value, dict) and inner and inner[0] is int:  # JSON has no numbers as names
        return {int(name): _value(inner[1], item, where) for name, item in value.items()}
    return value


def _names(what: str, names: Iterable[str], limit: int = 6) -> list[str]:
    names = sorted(names)
    if not names:
        return []
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return [f"{len(names)} {what}: {', '.join(names[:limit])}{more}"]
