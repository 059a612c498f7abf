"""A model on disk: `config.json` beside `model.safetensors`, loaded strictly, stamped.

The fingerprint tells whether two tokenizers make and read the same codes. It covers the parts
that decide codes and features, not those that only read features (decoders, pooling head), so
that a better decoder still reads old codes. A second digest covers the others.

Both files may come from anybody. Neither is unpickled, each has a bound, and the shapes that a
config asks for are held against those in the file before memory is taken for them. Whatever is
wrong becomes one `CheckpointError`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from viq.core.files import open_regular, read_bytes, written_aside
from viq.core.types import ViqError
from viq.core.untrusted import CONFIG_BYTES, parse_json, printable

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

PARAMETERS = 2**35  # of a model at most; the paper's has 2**30.5
HEADER_BYTES = CONFIG_BYTES  # of a safetensors file, where names and shapes are

T = TypeVar("T")
Shape = tuple[int, ...]


class CheckpointError(ViqError):
    """A model folder or weight file that cannot be used. One line: what, where, how to mend."""


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config of a model folder, an object of at most `CONFIG_BYTES`."""
    path = folder / CONFIG_FILE
    try:
        return read_object(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {CONFIG_FILE}; give a folder written by save_pretrained or viq convert"
        ) from None


def read_object(path: Path, limit: int = CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: too large, no JSON, nested too deeply, or no object.
    """
    try:
        values = parse_json(read_bytes(path, limit), str(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except ViqError as error:
        raise CheckpointError(f"{error}; copy it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no JSON object; copy it again")
    return values


def shapes_in(path: Path) -> dict[str, Shape]:
    """Names and shapes of the tensors of a safetensors file; no tensor is read."""
    with opened_weights(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_weights(
    path: Path,
    prefixes: tuple[str, ...] = ("",),
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Args:
        prefixes: of the names that are wanted; no other tensor is read.
        dtype: to convert to; as stored by default.

    Raises:
        CheckpointError: missing, damaged, or numbers of a kind that weights are not.
    """
    weights = {}
    with opened_weights(path) as file:
        for name in file.keys():  # noqa: SIM118
            if name.startswith(prefixes):
                stored = file.get_tensor(name)
                if dtype is not None and not stored.is_floating_point():
                    raise CheckpointError(f"{path}: {name} is of {stored.dtype}, as no weight is")
                weights[name] = _aligned(stored.to(device, dtype or stored.dtype))
    return weights


@contextmanager
def opened_weights(path: Path) -> Iterator[Any]:
    """A safetensors file; every way in which it can be no whole one is one `CheckpointError`."""
    try:
        with open_regular(path) as raw:
            header = int.from_bytes(raw.read(8), "little")
        if header > HEADER_BYTES:
            raise CheckpointError(
                f"{path}: not a whole safetensors file (a header of {header:,} bytes)"
            )
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the model folder is incomplete") from None
    except CheckpointError:
        raise
    except ViqError as error:
        raise CheckpointError(str(error)) from None
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise CheckpointError(f"{path}: not a whole safetensors file ({reason})") from None


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor on an address that PyTorch itself would give it.

    In a file it begins wherever the header ends, and on some processors the last bit of a matrix
    product depends on that: equal models in different files would have different codes.
    """
    if tensor.device.type != "cpu" or tensor.data_ptr() % 64 == 0:
        return tensor
    return tensor.clone()


def write_weights(path: Path, weights: Mapping[str, Tensor], **metadata: str) -> None:
    """Write a whole safetensors file, or nothing; `metadata` goes into its header."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with written_aside(path) as aside:
        save_file(whole, aside, metadata={"format": "pt", **metadata})


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


def load_model(
    module: nn.Module,
    path: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> None:
    """Load a weight file into a module on the meta device, which fits it exactly.

    Shapes are compared first: until they agree, no memory is taken for what a config asks for.

    Raises:
        CheckpointError: names or shapes differ, or the file is damaged.
    """
    require_shapes(module, shapes_in(path), str(path))
    module.load_state_dict(read_weights(path, device=device, dtype=dtype), assign=True)


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that fit exactly; parameters may be on the meta device.

    Raises:
        CheckpointError: names or shapes differ; both sides are listed.
    """
    require_shapes(module, {name: tuple(t.shape) for name, t in weights.items()}, source)
    module.load_state_dict(dict(weights), assign=True)


def require_shapes(module: nn.Module, given: Mapping[str, Shape], source: str) -> None:
    """See that a module has weights of exactly these names and shapes, and not too many.

    Raises:
        CheckpointError: both sides are listed.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    problems = [
        *_names("missing in the file", wanted.keys() - given.keys()),
        *_names("unknown to the model", given.keys() - wanted.keys()),
        *_names(
            "of another shape",
            [
                f"{name} (file {list(given[name])}, model {list(wanted[name])})"
                for name in sorted(wanted.keys() & given.keys())
                if given[name] != wanted[name]
            ],
        ),
    ]
    if problems:
        raise CheckpointError(f"{source}: weights do not fit the model: {'; '.join(problems)}")
    if (total := sum(map(math.prod, given.values()))) > PARAMETERS:
        raise CheckpointError(f"{source}: {total:,} parameters; {PARAMETERS:,} are the most")


@contextmanager
def building(where: str) -> Iterator[None]:
    """A model is built on the meta device, without drawing weights; what its config asks for in
    vain is a `CheckpointError`."""
    try:
        with torch.device("meta"), WithoutInit():
            yield
    except CheckpointError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise CheckpointError(f"{where}: describes no model that can be built ({reason})") from None


def fingerprint(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of SHA-256 over a config and the values of weights.

    Values are hashed as fp32, so that one model stored in fp16 or fp32 has one fingerprint as
    long as its values are the same.
    """
    return hashed(json.dumps(config, sort_keys=True), ((k, weights[k]) for k in sorted(weights)))


def hashed(head: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits of SHA-256 over a text and, one after another, named tensors as fp32."""
    digest = hashlib.sha256(head.encode())
    for name, tensor in tensors:
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()[:16]


def to_dict(config: Any) -> dict[str, Any]:
    """A (nested) config dataclass as JSON-able dictionaries and lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A (nested) config dataclass from parsed JSON, every value of the type that the field has.

    Raises:
        CheckpointError: unknown or missing fields, or values that the class refuses.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{where}: {_shown(values)} where an object with fields belongs")
    hints = typing.get_type_hints(cls)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise CheckpointError(f"{where}: unknown config fields {_shown(unknown)}; update viq")
    arguments = {k: _value(hints[k], value, where, k) for k, value in values.items()}
    try:
        return cls(**arguments)
    except (TypeError, ValueError, ArithmeticError) as error:
        reason = printable(" ".join(str(error).split()), 300)
        raise CheckpointError(f"{where}: {reason}") from None


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    """What a field of this type takes for a JSON value. Raises `CheckpointError`."""
    inner = typing.get_args(hint)
    origin = typing.get_origin(hint) or hint
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in inner:
            return None
        return _value(next(arg for arg in inner if arg is not type(None)), value, where, name)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return from_dict(typing.cast(type, hint), value, where)
    elif origin is typing.Literal:
        if isinstance(value, str) and value in inner:
            return value
        if isinstance(value, str):
            known = ", ".join(map(str, inner))
            raise CheckpointError(f"{where}: {name} {_shown(value)}: choose from {known}")
    elif origin is tuple:
        if isinstance(value, list) and (inner[1:] == (...,) or len(inner) == len(value)):
            kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
            return tuple(_value(k, v, where, name) for k, v in zip(kinds, value, strict=True))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, dict):
            return {_key(inner[0], k, where, name): _value(inner[1], v, where, name)
                    for k, v in value.items()}  # fmt: skip
    elif origin is float:
        if type(value) in (int, float) and abs(value) <= _LARGEST:  # no NaN, which compares false
            return value
    elif origin is int:
        if type(value) is int and abs(value) <= _LARGEST:
            return value
    elif origin is Any or type(value) is origin:
        return value
    raise CheckpointError(f"{where}: {name} cannot be {_shown(value)}")


_LARGEST = 2**53  # beyond it a float no longer tells whole numbers apart


def _key(hint: Any, name: str, where: str, field: str) -> Any:
    """JSON has no numbers as names."""
    if hint is not int:
        return name
    try:
        return _value(int, int(name), where, field)
    except ValueError:
        raise CheckpointError(f"{where}: {field} cannot have {_shown(name)}") from None


def _shown(value: Any) -> str:
    return printable(repr(value)[:400], 80)


def _names(what: str, names: Iterable[str], limit: int = 6) -> list[str]:
    names = sorted(names)
    if not names:
        return []
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    shown = printable(", ".join(names[:limit]), 600)
    return [f"{len(names)} {what}: {shown}{more}"]
