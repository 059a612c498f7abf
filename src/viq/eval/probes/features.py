"""Codes against continuous features: the same small language model, data and steps on both.

On codes, a step reads integers and runs the frozen embedder, as `viq train mllm` does. On
continuous features, what becomes codes before it is rounded, a step runs the frozen encoder on
pixels, as training without a discrete tokenizer must. Where the tokenizer carries the pretrained
network that taught its codes, another model reads what that gives. Every run has a process of its
own, so that its memory is its own. The score is that of `viq eval understanding`, pictures and
questions are more varied. A last model is blind, it sees nothing of the pictures but their sizes:
what words alone are worth.

T = patches of several pictures, C = width of features.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from viq.core.types import Grid, grid_of
from viq.eval.probes.benchmark import ProbeBenchmark, ProbeConfig
from viq.eval.probes.understanding import Features, kinds_of, read_features, train_probe
from viq.image.patches import lengths_of
from viq.metrics.intervals import of_pairs, of_seeds
from viq.models.language.projector import Whitener
from viq.models.layers.ambient import tiny_as_zero
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.tokenizer import VisualTokenizer

_WARM_UP = 10  # first steps, which no speed is taken from
_FITTED_TO = 200  # pictures whose features tell the spread of all
Kind = Features | Literal["blind"]


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One run: what a process of its own is given."""

    kind: Kind
    seed: int
    tokenizer: str
    benchmark: ProbeBenchmark
    grids: tuple[Grid, ...]
    codes: tuple[np.ndarray, ...]  # of each picture, (patches, 4)
    config: ProbeConfig
    threads: int


def compared(tokenizer: str) -> tuple[Kind, ...]:
    """What `compare_features` can train on of a tokenizer, by name."""
    return (*kinds_of(VisualTokenizer.from_pretrained(tokenizer)), "blind")


def compare_features(
    benchmark: ProbeBenchmark,
    tokenizer: str,
    kinds: Sequence[Kind],
    config: ProbeConfig,
    *,
    progress: Callable[[], None] = lambda: None,
    done: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Train and score all kinds, `config.seeds` times each, in turn.

    Args:
        tokenizer: bundled name, folder or hub id.
        kinds: of `compared`, "codes" among them.
        progress: called after each run.
        done: called with the result so far, as soon as all kinds have a run.

    Returns:
        settings; by kind: `answers` (percent, by kind of question), `steps_per_second` and
        `peak_mib`, each with mean, half-width of the 95% interval, and each seed's value;
        `differences`: by kind, answers from codes less answers from that, paired by seed.
    """
    codes = VisualTokenizer.from_pretrained(tokenizer).encode([*benchmark.pictures])
    task = _Task(
        kind="codes",
        seed=0,
        tokenizer=tokenizer,
        benchmark=benchmark,
        grids=tuple(grid_of(picture.shape[:2]) for picture in benchmark.pictures),
        codes=tuple(item.ids.reshape(-1, 4) for item in codes),
        config=config,
        threads=torch.get_num_threads(),
    )
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    result: dict[str, Any] = {}
    for seed in range(config.seeds):
        for kind in kinds:
            runs[kind].append(_alone(_only_needed(replace(task, kind=kind, seed=seed))))
            progress()
        result = {
            "settings": {**asdict(config), "vocabulary": benchmark.vocabulary},
            "tokenizer": tokenizer,
            "pictures": len(benchmark.pictures),
            "questions": dict(Counter(question.kind for question in benchmark.test))
            | {"all": len(benchmark.test)},
            "kinds": {kind: _summary(list_) for kind, list_ in runs.items()},
            "differences": {
                kind: _differences(runs["codes"], runs[kind]) for kind in kinds if kind != "codes"
            },
        }
        done(result)
    return result


def _only_needed(task: _Task) -> _Task:
    """Codes travel without pixels, pixels without codes."""
    if task.kind in ("codes", "blind"):
        task = replace(task, benchmark=replace(task.benchmark, pictures=()))
    return task if task.kind == "codes" else replace(task, codes=())


def _alone(task: _Task) -> dict[str, Any]:
    """`_run` in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, task).result()


@tiny_as_zero()
def _run(task: _Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    features, width = _features(task)
    times: list[float] = []
    answers = train_probe(
        task.benchmark, features, width, task.grids, task.config, task.seed,
        lambda step: times.append(time.perf_counter()),
    )  # fmt: skip
    warm = min(_WARM_UP, len(times) // 2)
    return {
        "answers": answers,
        "steps_per_second": (len(times) - 1 - warm) / (times[-1] - times[warm]),
        "peak_mib": _peak_bytes() / 2**20,
    }


def _peak_bytes() -> int:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux `ru_maxrss` of a child begins with that of its parent
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _features(task: _Task) -> tuple[Callable[[Sequence[int]], Tensor], int]:
    """Features (T, C) of pictures by their numbers, whitened as for `viq train mllm`, and C."""
    kind = task.kind
    if kind == "blind":
        return lambda pictures: torch.zeros(
            sum(lengths_of([task.grids[p] for p in pictures])), 1
        ), 1
    if kind == "codes":
        embedder = CodeEmbedder.from_tokenizer(task.tokenizer).requires_grad_(False)

        def gathered(pictures: Sequence[int]) -> Tensor:
            ids = np.concatenate([task.codes[picture] for picture in pictures])
            grids = [task.grids[picture] for picture in pictures]
            return embedder(torch.from_numpy(ids.astype(np.int64)), grids)

    else:
        tokenizer = VisualTokenizer.from_pretrained(task.tokenizer)

        @torch.no_grad()
        def gathered(pictures: Sequence[int]) -> Tensor:
            return read_features(tokenizer, [task.benchmark.pictures[p] for p in pictures], kind)

    sample_TC = gathered(range(min(_FITTED_TO, len(task.grids))))
    whitener = Whitener(sample_TC.shape[1])
    whitener.fit(sample_TC)
    return lambda pictures: whitener(gathered(pictures)), sample_TC.shape[1]


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kinds = sorted({kind for run in runs for kind in run["answers"]})
    return {
        "answers": {kind: of_seeds([run["answers"][kind] for run in runs]) for kind in kinds},
        **{
            name: of_seeds([run[name] for run in runs]) for name in ("steps_per_second", "peak_mib")
        },
    }


def _differences(
    runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Answers of runs less those of others of the same seeds, points of percent, by question."""
    ours, theirs = [run["answers"] for run in runs], [run["answers"] for run in others]
    return {
        kind: of_pairs([score[kind] for score in ours], [score[kind] for score in theirs])
        for kind in sorted({kind for score in ours for kind in score})
    }
