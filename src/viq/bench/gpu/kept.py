"""Training on what lies on the device already, for so many seconds.

A small model learns from a batch on a GPU sooner than Python makes the next one out of a store. So
samples are made ready beforehand (`KeptSamples`, a file), their codes go to the device once, and a
batch is no more than their numbers. The rate follows the clock in place of a number of steps.

n = samples, m = pictures, L = tokens of a packed sequence, T = patches, S = 4 slots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from viq.bench.gpu.cells import Cells, append
from viq.core.files import written_aside
from viq.core.types import IGNORE, Grid, ViqError
from viq.train.ema import _Average
from viq.train.loop import LoopConfig
from viq.train.loss_terms import Objective, weighted
from viq.train.optim import make_optimizer, set_rate
from viq.weights.checkpoint import load_strictly, read_weights, write_weights

PART_BYTES = 14 * 2**20  # of a file of weights: some machines hand back no larger ones
_RESERVE_S = 6.0  # for saving
_MOMENTS = 100_000  # into which the time is divided for the rate
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class KeptSamples:
    """Samples as tokens, each with one picture or none.

    Attributes:
        ids, targets: of all samples, one after another, int32, as `TextPack` has them.
        starts: where each begins, and the end, (n + 1,).
        pictures: number of its picture, -1: none, (n,).
        groups: what is drawn by weight, (n,).
        codes_TS: of all pictures, uint16.
        grids: of each picture, (m, 2).
    """

    ids: Array
    targets: Array
    starts: Array
    pictures: Array
    groups: Array
    codes_TS: Array
    grids: Array

    @classmethod
    def of(
        cls,
        samples: Sequence[tuple[Sequence[int], Sequence[int], int, int]],
        pictures: Sequence[Array],
    ) -> KeptSamples:
        """Of (ids, labels, number of its picture, group) and the codes (rows, cols, S) of
        pictures."""
        ids = [i for sample in samples for i in sample[0]]
        targets = [label for sample in samples for label in (*sample[1][1:], IGNORE)]
        return cls(
            ids=np.array(ids, np.int32),
            targets=np.array(targets, np.int32),
            starts=np.cumsum([0, *(len(sample[0]) for sample in samples)]),
            pictures=np.array([sample[2] for sample in samples], np.int64),
            groups=np.array([sample[3] for sample in samples], np.int16),
            codes_TS=np.concatenate([codes.reshape(-1, codes.shape[2]) for codes in pictures]),
            grids=np.array([codes.shape[:2] for codes in pictures], np.int64),
        )

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> KeptSamples:
        """Raises ViqError: not such a file."""
        try:
            with np.load(path, allow_pickle=False) as found:
                return cls(**{f.name: found[f.name] for f in fields(cls)})
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise ViqError(f"{path}: holds no samples ({error}): make it with --keep") from None

    def drawn(self, weights: Mapping[int, float], seed: int) -> Iterator[int]:
        """Numbers of samples without end: a group by weight, and of a group all before any comes
        again, each time in another order."""
        rng = np.random.default_rng(seed)
        members = {g: np.flatnonzero(self.groups == g) for g in weights}
        live = [g for g in weights if len(members[g]) and weights[g]]
        share = np.array([weights[g] for g in live], float)
        orders = {g: iter(()) for g in live}
        while True:
            for g in rng.choice(live, 4096, p=share / share.sum()).tolist():
                number = next(orders[g], None)
                if number is None:
                    orders[g] = iter(rng.permutation(members[g]).tolist())
                    number = next(orders[g])
                yield number

    def packed(self, numbers: Sequence[int]) -> KeptBatch:
        """These samples in one sequence."""
        spans = [slice(self.starts[i], self.starts[i + 1]) for i in numbers]
        shown = [int(self.pictures[i]) for i in numbers if self.pictures[i] >= 0]
        rows = [np.arange(self.firsts[i], self.firsts[i + 1]) for i in shown]
        return KeptBatch(
            ids_L=torch.from_numpy(np.concatenate([self.ids[s] for s in spans])).long(),
            targets_L=torch.from_numpy(np.concatenate([self.targets[s] for s in spans])).long(),
            lengths=tuple(int(s.stop - s.start) for s in spans),
            rows_T=torch.from_numpy(np.concatenate(rows) if rows else np.zeros(0, np.int64)),
            grids_hw=tuple((int(r), int(c)) for r, c in self.grids[shown]),
            groups=tuple(self.groups[numbers].tolist()),
        )

    @cached_property
    def firsts(self) -> Array:
        """Where the patches of each picture begin, and the end, (m + 1,)."""
        return np.concatenate([[0], self.grids.prod(1).cumsum()])


@dataclass(frozen=True, kw_only=True)
class KeptBatch:
    """Some samples packed: as `TextPack`, with the rows of their patches among all codes."""

    ids_L: Tensor
    targets_L: Tensor
    lengths: tuple[int, ...]
    rows_T: Tensor
    grids_hw: tuple[Grid, ...]
    groups: tuple[int, ...]


def train_for(
    objective: Objective,
    batch: Callable[[], Any],
    loop: LoopConfig,
    *,
    seconds: float,
    device: torch.device,
    every: float = 5.0,
    log: Callable[[dict[str, float]], None] = lambda record: None,
) -> int:
    """Train until the time is over, in place; gives the number of steps.

    Args:
        batch: makes the next micro-batch, which is a step; called on a thread.
        loop: rates, losses and moving average; its number of steps does not count.
        every: seconds between calls of `log` with the means since the last.

    Raises:
        ViqError: the loss is no longer a number.
    """
    optimizer = make_optimizer(objective, loop.optim)
    average = _Average(objective, loop.ema_decay, None) if loop.ema_decay else None
    trained = [p for p in objective.parameters() if p.requires_grad]
    half = device.type == "cuda"
    cast = torch.autocast("cuda", torch.bfloat16) if half else nullcontext()
    objective.train()
    begun = told = time.monotonic()
    steps, sums, count = 0, torch.zeros((), device=device), 0
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batch)
        while (spent := time.monotonic() - begun) < seconds:
            micro = coming.result()
            coming = ahead.submit(batch)
            rate = set_rate(optimizer, loop.optim, int(spent / seconds * _MOMENTS), _MOMENTS)
            counts = {name: float(value) for name, value in micro.counts.items()}
            with cast:
                terms = objective(micro.to(device))
            loss = weighted(terms, counts, loop.losses, objective.counted_in)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, loop.optim.clip_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(objective)
            steps, sums, count = steps + 1, sums + loss.detach(), count + 1
            if (now := time.monotonic()) - told >= every:
                mean = float(sums) / count
                if not math.isfinite(mean):
                    raise ViqError(f"the loss is {mean} after {steps} steps: lower the rate")
                log({"step": steps, "loss": mean, "learning_rate": rate, "at_s": now - begun})
                told, sums, count = now, torch.zeros((), device=device), 0
    objective.eval()
    if average:
        average.apply(objective)
    return steps


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a cell trains, on its device.

    Attributes:
        batch: makes the next micro-batch.
        loop: as `train_for` takes it.
        facts: for the line of the cell.
        done: what was learnt from, by unit, of so many steps.
    """

    objective: Objective
    batch: Callable[[], Any]
    loop: LoopConfig
    facts: Mapping[str, Any]
    done: Callable[[int], Mapping[str, int]]


def run_lesson(
    cells: Cells, part: str, cell: str, begin: Callable[[], Lesson], seconds: float | None
) -> None:
    """The one cell of a part: train for so many seconds (None: what is left), and save the weights
    as `cell`-0.safetensors and so on."""

    def work() -> dict[str, Any]:
        begun = time.monotonic()
        lesson = begin()
        told = time.monotonic()
        steps = train_for(
            lesson.objective, lesson.batch, lesson.loop,
            seconds=seconds if seconds is not None else cells.left() - _RESERVE_S,
            device=cells.device,
            log=lambda record: append(cells.folder, {"part": part, "cell":
                                                     f"step {record['step']}", **record}),
        )  # fmt: skip
        spent = time.monotonic() - told
        done = lesson.done(steps)
        files = save_parts(trained_weights(lesson.objective), cells.folder, cell, torch.float16,
                           PART_BYTES)  # fmt: skip
        return {
            **lesson.facts, "steps": steps, **done,
            **{f"{unit}_per_s": count / spent for unit, count in done.items()},
            "prepared_s": told - begun, "trained_s": spent, "files": files,
        }  # fmt: skip

    left = cells.left() if seconds is None else seconds + 60
    cells.run(part, cell, work, expected=max(1.0, left - 1))


def trained_weights(objective: Objective) -> dict[str, Tensor]:
    """What `train_for` has changed, of the state dict; of weights that are tied, every name."""
    ours = {p.data_ptr() for p in objective.parameters() if p.requires_grad}
    return {k: v for k, v in objective.state_dict().items() if v.data_ptr() in ours}


def take_weights(objective: Objective, folder: Path, prefix: str) -> None:
    """Load what `save_parts` wrote of `trained_weights`.

    Raises:
        ViqError: the folder holds none, or not all of them.
    """
    found = read_parts(folder, prefix)
    if missing := sorted(trained_weights(objective).keys() - found.keys()):
        raise ViqError(f"{folder}: lacks {missing[0]}: fetch all files {prefix}-*")
    load_strictly(objective, objective.state_dict() | found, str(folder))


def save_parts(
    weights: Mapping[str, Tensor], folder: Path, prefix: str, dtype: torch.dtype, limit: int
) -> list[str]:
    """Weights in files of at most `limit` bytes (or one tensor), `prefix`-0.safetensors and so on:
    their names."""
    parts: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in weights.items():
        rounded = tensor.detach().to("cpu", dtype).contiguous()
        if parts[-1] and rounded.nbytes > room:
            parts.append({})
            room = limit
        parts[-1][name] = rounded
        room -= rounded.nbytes
    names = [f"{prefix}-{number}.safetensors" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_weights(folder / name, part)
    return names


def read_parts(folder: Path, prefix: str) -> dict[str, Tensor]:
    """What `save_parts` wrote, in float32.

    Raises:
        ViqError: the folder holds none.
    """
    files = sorted(folder.glob(f"{prefix}-*.safetensors"))
    if not files:
        raise ViqError(f"{folder}: holds no {prefix}-0.safetensors: nothing was trained there")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_weights(file, dtype=torch.float32)
    return weights
