"""From inputs to rows of codes, in parallel and in order.

Source -> threads that read, decode and shrink -> model -> rows. On a CPU the threads run the model
too: several images at once, each on its share of the cores, keep them twice as busy as one small
image on all cores. At most a few inputs a thread are in memory, however many there are; and of a
row of many images as many as go through the model at once.

A bad input becomes a reason instead of rows and never stops the others, whatever it makes the code
behind it raise.

Closing a pipeline stops its threads where they are: between two images, and within one between two
blocks of the encoder, which is a fraction of the work on a tile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from PIL import Image

from viq.core.codes import Codes
from viq.core.types import ViqError, grid_of
from viq.data.sources.access import fetched
from viq.data.sources.base import Row, Source, SourceError
from viq.image.open import limit_pixels
from viq.jobs.threads import (
    PATCH_PIXELS,
    Here,
    Nobody,
    Watch,
    in_order,
    pool_of,
    require_going_on,
    threads_each,
    watched,
)
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.variable_rate import Rate
from viq.store.columns import Extras
from viq.store.rows import CodeRow

_AHEAD = 3  # inputs in work or waiting to be written, for each thread
_SMALL = 256  # patches; packs of images smaller than this may run dry
_HELD = 1 << 16  # patches of one row that are decoded ahead of an accelerator: 50 MB of pixels
_FETCHED = 4  # images of a row that are fetched ahead; more would fill the memory


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What decides the codes and the shards of a store.

    Attributes:
        tile: images with a longer side are encoded in tiles; None takes the model's own setting.
        max_pixels: larger images are first shrunk to this area; None never.
        packed: patches that go through the model in one sequence, for accelerators; 0: image by
            image, so that codes are the same whatever their neighbours.
        shard_size: inputs that make a shard. A run that is killed loses less than one shard.
        compress: store codes through the tokenizer's entropy model, without loss; bpp and nbytes
            are then about the bytes that this gives.
        bpp, psnr, nbytes: as in `VisualTokenizer.encode`; all None: four codes a patch.
    """

    tile: int | None = None
    max_pixels: int | None = None
    packed: int = 0
    shard_size: int = 1000
    compress: bool = False
    bpp: float | None = None
    psnr: float | None = None
    nbytes: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("tile", 0), ("max_pixels", 1), ("packed", 0), ("shard_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ViqError(f"--{name.replace('_', '-')} {value}: give at least {least}")
        if self.rate:
            Rate(**self.rate)  # raises
            if self.packed:
                raise ViqError("--packed: codes for --bpp, --psnr and --nbytes are made one by one")

    @property
    def rate(self) -> dict[str, Any]:
        """What was asked for of bpp, psnr and nbytes, by name."""
        rates = {"bpp": self.bpp, "psnr": self.psnr, "nbytes": self.nbytes}
        return {name: value for name, value in rates.items() if value is not None}

    def resolved(self, tokenizer: VisualTokenizer) -> dict[str, Any]:
        """As they are noted in a store, with what the tokenizer adds.

        Raises:
            ViqError: the tokenizer cannot encode so.
        """
        tile = tokenizer.config.tile if self.tile is None else self.tile
        tokenizer.encode([], tile=tile)  # raises for a tile it cannot use
        dtype = tokenizer.dtype_name
        plain = {k: v for k, v in asdict(self).items() if k not in ("bpp", "psnr", "nbytes")}
        return {**plain, **self.rate, "tile": tile, "dtype": dtype}


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
    """An input with its first images; the others of `row` are opened when these are encoded."""

    task: Task
    key: str
    images: list[Image.Image]
    extras: Mapping[str, Any]
    shrunk: int = 0
    reason: str = ""
    row: Row | None = None

    @property
    def patches(self) -> int:
        return sum(map(_patches, self.images))


class Pipeline:
    """Encodes tasks with one tokenizer and a number of threads.

    Args:
        workers: threads; None for as many as torch uses on a CPU, 8 beside an accelerator.
        watch: is told how far it is.
        strict: whether a row without an image is a failure.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        source: Source,
        extras: Extras,
        options: EncodeOptions,
        workers: int | None = None,
        watch: Watch | None = None,
        strict: bool = False,
    ) -> None:
        if workers is not None and workers < 1:
            raise ViqError(f"--workers {workers}: give at least 1")
        self._tokenizer, self._source = tokenizer, source
        self._extras, self._options, self._watch = extras, options, watch or Nobody()
        self._strict = strict
        self._rows: dict[int, Row] = {}  # that were fetched ahead, by input
        self._in_threads = tokenizer.device.type == "cpu" and not options.packed
        usual = torch.get_num_threads() if self._in_threads else min(8, os.cpu_count() or 1)
        self._workers = min(workers or usual, max(1, len(source)))
        self._piece = 1 if self._in_threads else max(options.packed, _HELD)  # patches, or an image

    def run(self, tasks: Iterable[Task]) -> Generator[Encoded]:
        """What becomes of each task, in order. Close it to stop early."""
        here = Here(threading.Event(), self._watch)
        with self._fetching(tasks, here) as tasks:
            yield from self._run(tasks, here)

    @contextmanager
    def _fetching(self, tasks: Iterable[Task], here: Here) -> Iterator[Iterable[Task]]:
        """The same tasks, each when its images are here, which others fetch ahead."""
        if not (downloads := self._source.downloads):
            yield tasks
            return
        with pool_of(downloads, here) as pool:
            yield in_order(pool, self._fetch, tasks, 2 * downloads)

    def _fetch(self, task: Task) -> Task:
        require_going_on()
        with suppress(Exception):  # it is met again, and told, when the row is loaded
            row = self._source[task.input]
            if len(row.images) <= _FETCHED:
                self._rows[task.input] = replace(row, images=tuple(map(fetched, row.images)))
        return task

    def _run(self, tasks: Iterable[Task], here: Here) -> Generator[Encoded]:
        if self._in_threads:
            # The pool is closed first: its threads stop by what the others have put in place.
            with (
                watched(self._tokenizer),
                threads_each(self._workers),
                pool_of(self._workers, here) as pool,
            ):
                yield from in_order(pool, self._alone, tasks, _AHEAD * self._workers)
        else:
            with pool_of(self._workers, here) as pool:
                ahead = _AHEAD * self._workers + self._options.packed // _SMALL
                for pack in self._packs(in_order(pool, self._load, tasks, ahead)):
                    pixels = sum(item.patches for item in pack) * PATCH_PIXELS
                    yield from self._encode(pack)
                    self._watch.encoded(pixels)

    def _alone(self, task: Task) -> Encoded:
        return self._encode([self._load(task)])[0]

    def _load(self, task: Task) -> _Loaded:
        key = None
        try:
            row = self._rows.pop(task.input, None) or self._source[task.input]
            key = row.key
            if self._strict and not row.images:
                raise SourceError(f"{row.where}: has no image, which --strict refuses")
            images, shrunk = self._open(row, 0)
            extras = self._extras.pack(row.extras)
        except Exception as error:  # what a file of somebody else makes a library raise is anyone's
            key = self._key(task.input) if key is None else key
            return _failed(_Loaded(task, _printable(key), [], {}), error)
        loaded = _Loaded(task, _printable(key), images, extras, shrunk, row=row)
        self._watch.opened(loaded.patches * PATCH_PIXELS)
        return loaded

    def _open(self, row: Row, first: int) -> tuple[list[Image.Image], int]:
        """Images of a row from `first` on, as many as may be held, and how many were shrunk."""
        images, shrunk, patches = list[Image.Image](), 0, 0
        for place in range(first, len(row.images)):
            require_going_on()
            image = row.open(place)
            images.append(limit_pixels(image, self._options.max_pixels))
            shrunk += images[-1] is not image
            patches += _patches(images[-1])
            if patches >= self._piece:
                break
        return images, shrunk

    def _key(self, number: int) -> str:
        try:
            return self._source.key(number)
        except Exception:  # a damaged source; the input is known by its number
            return f"input {number}"

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
        try:
            return self._encoded(pack)
        except Exception as error:
            if _is_memory(error):
                raise ViqError(
                    f"{pack[0].key}: the memory does not suffice ({_words(error)}); give --tile or "
                    "--max-pixels, or fewer --workers"
                ) from None
            if len(pack) > 1:  # find out which of them it is
                return [encoded for item in pack for encoded in self._encode([item])]
            return self._encoded([_failed(pack[0], error)])

    def _encoded(self, pack: list[_Loaded]) -> list[Encoded]:
        counts = [len(item.images) for item in pack]
        codes = iter(self._codes([image for item in pack for image in item.images]))
        if len(pack) == 1:  # nobody needs them again; if one of several fails, each is tried alone
            pack[0].images.clear()
        encoded = []
        for item, count in zip(pack, counts, strict=True):
            mine, shrunk = list(islice(codes, count)), item.shrunk
            while item.row is not None and len(mine) < len(item.row.images):
                more, smaller = self._encode_more(item.row, len(mine))
                mine, shrunk = mine + more, shrunk + smaller
            encoded.append(Encoded(item.task, item.key, _rows(item, mine), shrunk, item.reason))
        return encoded

    def _encode_more(self, row: Row, first: int) -> tuple[list[Codes], int]:
        """Codes of the next images of a row, and how many of these were shrunk."""
        images, shrunk = self._open(row, first)
        pixels = sum(map(_patches, images)) * PATCH_PIXELS
        self._watch.opened(pixels, 0)
        codes = self._codes(images)
        if not self._in_threads:
            self._watch.encoded(pixels)
        return codes, shrunk

    def _codes(self, images: list[Image.Image]) -> list[Codes]:
        packed = self._options.packed > 0
        return self._tokenizer.encode(
            images,
            tile=self._options.tile,
            packed=packed,
            compress=self._options.compress,
            **self._options.rate,
        )


def _patches(image: Image.Image) -> int:
    rows, cols = grid_of((image.height, image.width))
    return rows * cols


def _rows(item: _Loaded, codes: list[Codes]) -> list[CodeRow]:
    if item.reason:
        return []
    return [
        CodeRow(item.key, image_codes, place, item.extras)
        for place, image_codes in enumerate(codes or [None])
    ]


def _failed(item: _Loaded, error: Exception) -> _Loaded:
    """An input as it is listed: its key, and one line that names it and says why."""
    reason = str(error) if isinstance(error, ViqError) else f"{item.key}: {_words(error)}"
    return _Loaded(item.task, item.key, [], {}, reason=_printable(" ".join(reason.splitlines())))


def _words(error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _is_memory(error: Exception) -> bool:
    """Whether the machine is at its end, which is nothing that one input could be blamed for."""
    at_end = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return at_end or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _printable(key: str) -> str:
    """A key that can be written: names of files may hold bytes that are no text."""
    return key.encode(errors="backslashreplace").decode()
