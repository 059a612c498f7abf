"""From inputs to rows of codes, in parallel and in order.

Source -> threads that read, decode and shrink -> model -> rows. On a CPU the threads run the model
too: several images at once, each on its share of the cores, keep them twice as busy as one small
image on all cores. At most a few inputs a thread are in memory, however many there are.

A bad input becomes a reason instead of rows and never stops the others.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from PIL import Image

from viq.data.source_base import Source
from viq.image import limit_pixels
from viq.models.tokenizer import VisualTokenizer
from viq.store.extras import Extras
from viq.store.rows import CodeRow
from viq.types import Codes, ViqError, grid_of

_AHEAD = 3  # inputs in work or waiting to be written, for each thread
_SMALL = 256  # patches; packs of images smaller than this may run dry

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What decides the codes and the shards of a store.

    Attributes:
        tile: images with a longer side are encoded in tiles; None takes the model's own setting.
        max_pixels: larger images are first shrunk to this area; None never.
        packed: patches that go through the model in one sequence, for accelerators; 0: image by
            image, so that codes are the same whatever their neighbours.
        shard_size: inputs that make a shard. A run that is killed loses less than one shard.
        compress: store codes through the tokenizer's entropy model, without loss.
    """

    tile: int | None = None
    max_pixels: int | None = None
    packed: int = 0
    shard_size: int = 1000
    compress: bool = False

    def __post_init__(self) -> None:
        for name, least in (("tile", 0), ("max_pixels", 1), ("packed", 0), ("shard_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ViqError(f"--{name.replace('_', '-')} {value}: give at least {least}")

    def resolved(self, tokenizer: VisualTokenizer) -> dict[str, Any]:
        """As they are noted in a store, with what the tokenizer adds.

        Raises:
            ViqError: the tokenizer cannot encode so.
        """
        tile = tokenizer.config.tile if self.tile is None else self.tile
        tokenizer.encode([], tile=tile)  # raises for a tile it cannot use
        dtype = str(tokenizer.encoder.position.dtype).removeprefix("torch.")
        return {**asdict(self), "tile": tile, "dtype": dtype}


@dataclass(frozen=True)
class Task:
    """One input to encode: its number, and that of the shard it belongs to."""

    shard: int
    input: int


@dataclass(frozen=True)
class Encoded:
    """What became of an input: rows, or the reason why there are none."""

    task: Task
    key: str
    rows: list[CodeRow]
    shrunk: int = 0  # images made smaller
    reason: str = ""


@dataclass(frozen=True)
class _Loaded:
    task: Task
    key: str
    images: list[Image.Image]
    extras: Mapping[str, Any]
    shrunk: int = 0
    reason: str = ""

    @property
    def patches(self) -> int:
        grids = (grid_of((image.height, image.width)) for image in self.images)
        return sum(rows * cols for rows, cols in grids)


class Pipeline:
    """Encodes tasks with one tokenizer and a number of threads.

    Args:
        workers: threads; None for as many as torch uses on a CPU, 8 beside an accelerator.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        source: Source,
        extras: Extras,
        options: EncodeOptions,
        workers: int | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ViqError(f"--workers {workers}: give at least 1")
        self._tokenizer, self._source = tokenizer, source
        self._extras, self._options = extras, options
        self._in_threads = tokenizer.device.type == "cpu" and not options.packed
        usual = torch.get_num_threads() if self._in_threads else min(8, os.cpu_count() or 1)
        self._workers = min(workers or usual, max(1, len(source)))

    def run(self, tasks: Iterable[Task]) -> Generator[Encoded]:
        """What becomes of each task, in order. Close it to stop early."""
        with _pool(self._workers) as pool:
            if self._in_threads:
                with _threads_each(self._workers):
                    yield from _in_order(pool, self._alone, tasks, _AHEAD * self._workers)
            else:
                ahead = _AHEAD * self._workers + self._options.packed // _SMALL
                for pack in self._packs(_in_order(pool, self._load, tasks, ahead)):
                    yield from self._encode(pack)

    def _alone(self, task: Task) -> Encoded:
        return self._encode([self._load(task)])[0]

    def _load(self, task: Task) -> _Loaded:
        limit, key = self._options.max_pixels, None
        try:
            row = self._source[task.input]
            key = row.key
            opened = [row.open(place) for place in range(len(row.images))]
            images = [limit_pixels(image, limit) for image in opened]
            extras = self._extras.pack(row.extras)
        except ViqError as error:
            key = self._source.key(task.input) if key is None else key
            return _Loaded(task, _printable(key), [], {}, reason=str(error))
        shrunk = sum(small is not image for small, image in zip(images, opened, strict=True))
        return _Loaded(task, _printable(key), images, extras, shrunk)

    def _packs(self, loaded: Iterable[_Loaded]) -> Iterator[list[_Loaded]]:
        """Inputs whose patches fit the budget, or one that does not; never of two shards.

        So a shard has the same codes whether or not the run was killed before it.
        """
        pack, patches = list[_Loaded](), 0
        for item in loaded:
            full = patches + item.patches > self._options.packed
            if pack and (full or item.task.shard != pack[0].task.shard):
                yield pack
                pack, patches = [], 0
            pack.append(item)
            patches += item.patches
        if pack:
            yield pack

    def _encode(self, pack: list[_Loaded]) -> list[Encoded]:
        images = [image for item in pack for image in item.images]
        packed = self._options.packed > 0
        codes = iter(self._tokenizer.encode(images, tile=self._options.tile, packed=packed))
        return [
            Encoded(
                item.task,
                item.key,
                _rows(item, list(islice(codes, len(item.images)))),
                item.shrunk,
                item.reason,
            )
            for item in pack
        ]


def _rows(item: _Loaded, codes: list[Codes]) -> list[CodeRow]:
    if item.reason:
        return []
    return [
        CodeRow(item.key, image_codes, place, item.extras)
        for place, image_codes in enumerate(codes or [None])
    ]


def _printable(key: str) -> str:
    """A key that can be written: names of files may hold bytes that are no text."""
    return key.encode(errors="backslashreplace").decode()


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """`map(work, items)` on the threads of the pool, at most `ahead` items before the result."""
    items, waiting = iter(items), deque()
    while True:
        waiting.extend(pool.submit(work, item) for item in islice(items, ahead - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft().result()


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(workers, "viq-encode")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _threads_each(workers: int) -> Iterator[None]:
    """Give each of `workers` threads its share of the threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
