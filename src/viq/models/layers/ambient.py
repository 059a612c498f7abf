"""What an application has set for all of PyTorch, put aside where the same codes must come out.

Autocast, a default device, and float32 products in fewer bits (TF32, bfloat16) each belong to the
caller, who may have set them for a training loop around us. Codes that depended on them would carry
the same fingerprint and be others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

_EXACT = ("ieee", "none")  # none: unset, and that is exact
_lock = Lock()
_inside = 0  # threads in `_exact_products`; the settings are one for all threads
_before: list[tuple[Any, str]] = []


class _OnDevice(Protocol):
    @property
    def device(self) -> torch.device: ...


_Model = TypeVar("_Model", bound=_OnDevice)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


@contextmanager
def by_default(device: torch.device) -> Iterator[None]:
    """Compute on `device` as if nothing had been set; settings come back after it."""
    # Tensors that name no device belong on the CPU, from where they are moved.
    plain = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with torch.autocast(device.type, enabled=False), plain, _exact_products():
        yield


def as_if_unset(
    method: Callable[Concatenate[_Model, _Given], _Result],
) -> Callable[Concatenate[_Model, _Given], _Result]:
    """A method of a model that computes as `by_default`: in half precision a few codes in a hundred
    are others. Type checkers see the parameters of the method."""

    @functools.wraps(method)
    def run(self: _Model, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with by_default(self.device):
            return method(self, *args, **kwargs)

    return run


def inferring(
    method: Callable[Concatenate[_Model, _Given], _Result],
) -> Callable[Concatenate[_Model, _Given], _Result]:
    """As `as_if_unset`, and without gradients."""
    return torch.inference_mode()(as_if_unset(method))


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 matrices in float32. Of threads, the last to leave puts settings back."""
    global _inside
    with _lock:
        if not _inside:
            backends: Any = torch.backends  # whose stubs know only some
            for setting in (backends.cuda.matmul, backends.mkldnn.matmul):
                if (value := setting.fp32_precision) not in _EXACT:
                    _before.append((setting, value))
                    setting.fp32_precision = "ieee"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            while not _inside and _before:
                setting, value = _before.pop()
                setting.fp32_precision = value


@contextmanager
def tiny_as_zero() -> Iterator[None]:
    """Numbers too small for the normal range are zero while the block runs, and as before after it.

    They make a CPU many times slower and mean nothing in training. Threads of PyTorch that begin
    meanwhile keep that.
    """
    before = bool(torch.tensor(torch.finfo(torch.float32).tiny) / 2 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
