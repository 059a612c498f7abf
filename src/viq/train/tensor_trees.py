"""Nested dictionaries, lists and tuples with tensors in them, as JSON and tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from viq.core.types import ViqError


def without_tensors(
    value: Any, name: str, tensors: dict[str, Tensor], known: dict[tuple[Any, ...], str]
) -> Any:
    """What JSON can hold, with {"tensor": name} in the place of each tensor, which is put into
    `tensors`; those that are one in memory, as tied weights are, once."""
    if isinstance(value, Tensor):
        whole = value.detach().cpu()
        key = (whole.data_ptr(), whole.dtype, tuple(whole.shape), whole.stride())
        if key not in known or not whole.numel():
            known[key] = name
            tensors[name] = whole  # kept, so that no other tensor comes to lie at its address
        return {"tensor": known[key]}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ViqError(f"{name}: cannot be saved, as it has names that are no text")
        inner = {k: without_tensors(v, f"{name}.{k}", tensors, known) for k, v in value.items()}
        return {"mapping": inner}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {
            kind: [without_tensors(v, f"{name}.{i}", tensors, known) for i, v in enumerate(value)]
        }
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ViqError(f"{name}: a {type(value).__name__} cannot be saved")


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, copied where they are parts of a larger one or share memory: the format
    has no words for it."""
    seen, copied = set[int](), {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        copied[name] = tensor if alone and tensor.is_contiguous() else tensor.contiguous().clone()
    return copied


def with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `without_tensors` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "mapping":
        return {name: with_tensors(item, tensors) for name, item in inner.items()}
    items = [with_tensors(item, tensors) for item in inner]
    return tuple(items) if kind == "tuple" else items
