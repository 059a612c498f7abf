"""Threads that encode: in order, told to stop between blocks of the encoder, and watched."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch

from viq.core.types import PATCH_SIZE
from viq.image.patches import PatchBatch
from viq.models.layers.blocks import Block
from viq.models.tokenizer.tokenizer import VisualTokenizer

PATCH_PIXELS = PATCH_SIZE**2

T = TypeVar("T")
R = TypeVar("R")


class Watch(Protocol):
    """Is told how far a pipeline is, from any thread. Pixels are those of whole patches."""

    def opened(self, pixels: int, inputs: int = 1) -> None:
        """One more input is open; or, with 0 `inputs`, more of one that was."""

    def encoded(self, pixels: int) -> None:
        """So many more pixels are codes: those of a tile, or of a pack."""


class Nobody(Watch):
    """Tells nobody."""


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """`map(work, items)` on the threads of the pool, at most `ahead` items before the result."""
    items, waiting = iter(items), deque()
    while True:
        waiting.extend(pool.submit(work, item) for item in islice(items, ahead - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft().result()


class _StoppedError(BaseException):
    """Ends the work of a thread whose result nobody waits for; no `except Exception` keeps it."""


@dataclass(frozen=True)
class Here:
    """What a thread of a pipeline works for."""

    stop: threading.Event
    watch: Watch


_current = threading.local()  # `here` is set in threads of pipelines, and nowhere else


def require_going_on() -> None:
    """End the work of this thread if it is one of a pipeline that was closed."""
    here: Here | None = getattr(_current, "here", None)
    if here is not None and here.stop.is_set():
        raise _StoppedError


@contextmanager
def watched(tokenizer: VisualTokenizer) -> Iterator[None]:
    """Let threads of pipelines stop before each block of attention, and tell of each tile.

    Whoever else uses the tokenizer meanwhile, from other threads, is not affected.
    """

    def before(module: torch.nn.Module, inputs: Any) -> None:
        require_going_on()

    def after(module: torch.nn.Module, inputs: tuple[PatchBatch], tokens: torch.Tensor) -> None:
        here: Here | None = getattr(_current, "here", None)
        if here is not None:
            here.watch.encoded(len(tokens) * PATCH_PIXELS)

    parts = tokenizer.encoder, tokenizer.quantizer
    blocks = (module for part in parts for module in part.modules() if isinstance(module, Block))
    hooks = [block.register_forward_pre_hook(before) for block in blocks]
    hooks.append(tokenizer.encoder.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def pool_of(workers: int, here: Here) -> Iterator[ThreadPoolExecutor]:
    """So many threads that work for `here`; they are told to stop when the block ends."""

    def begin() -> None:
        _current.here = here

    pool = ThreadPoolExecutor(workers, "viq-encode", begin)
    try:
        yield pool
    finally:
        here.stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def threads_each(workers: int) -> Iterator[None]:
    """Give each of `workers` threads its share of the threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
