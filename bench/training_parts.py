"""Where the time of each training stage of a recipe goes: data, forward, backward, optimizer.

    PYTHONPATH=src python bench/training_parts.py tiny --steps 6

A few steps of every stage, from nothing, in a folder that is removed. Seconds are of the processor,
thread by thread, so that other programs of the machine do not count; one thread for PyTorch. Data
are made on threads beside the step: on one core their time adds to it, on two it does not as long
as it is the smaller part. Without --data, pictures are drawn. The first step is left out, as are
examples that were made but not yet used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from viq.core.measure import machine
from viq.data.batching.mixture import Packer, Stream
from viq.data.corpora.corpora import open_corpora
from viq.recipes.registry import RECIPES
from viq.train.loop import _Training
from viq.train.tokenizer.fitted_stages import KINDS as FITTED
from viq.train.tokenizer.run import TokenizerRun, TrainingData

PARTS = ("data", "forward", "backward", "optimizer")


class Parts:
    """Seconds and counts by stage.

    Attributes:
        seconds: by stage and part; of data, those of examples (`made`) and those of batches.
        counts: by stage: steps, patches, examples made and examples used.
    """

    def __init__(self) -> None:
        self.stage = ""
        self.seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def timed(self, part: str, count: str = "") -> Callable[[Any], Any]:
        """What a function is replaced by, so that its time counts as that of a part."""

        def around(function: Any) -> Any:
            @wraps(function)
            def clocked(*args: Any, **kwargs: Any) -> Any:
                begun = time.thread_time()
                try:
                    return function(*args, **kwargs)
                finally:
                    self.seconds[self.stage][part] += time.thread_time() - begun
                    if count:
                        self.counts[self.stage][count] += 1

            return clocked

        return around

    def step(self, function: Any) -> Any:
        """`_Training.step`: the whole of it, but for the first of a stage."""

        @wraps(function)
        def stepped(training: Any, step: int, lanes: Any, micros: Any) -> Any:
            seconds, counts = self.seconds[training.name], self.counts[training.name]
            if step == 0:
                found = function(training, step, lanes, micros)
                for part in ("backward", "accumulated"):
                    seconds.pop(part, None)
                return found
            begun = time.thread_time()
            found = function(training, step, lanes, micros)
            seconds["whole"] += time.thread_time() - begun
            counts["steps"] += 1
            counts["patches"] += found[1].get("patches", 0.0)
            return found

        return stepped

    def begin(self, function: Any) -> Any:
        """`TokenizerRun._stage`, which says which stage it is."""

        @wraps(function)
        def begun(run: Any, stage: Any, *rest: Any) -> Any:
            self.stage = stage.name
            return function(run, stage, *rest)

        return begun

    def row(self, stage: str) -> dict[str, Any]:
        """Milliseconds a step of each part, and patches a second with data beside the step."""
        seconds, counts = self.seconds[stage], self.counts[stage]
        used = counts["used"] / max(1, counts["made"])  # examples that the batches hold
        parts = {
            "data": (seconds["batches"] + used * seconds["examples"]) / max(1, counts["steps"] + 1),
            "forward": (seconds["accumulated"] - seconds["backward"]) / max(1, counts["steps"]),
            "backward": seconds["backward"] / max(1, counts["steps"]),
            "optimizer": (seconds["whole"] - seconds["accumulated"]) / max(1, counts["steps"]),
        }
        step = sum(parts.values()) - parts["data"]
        return {
            "stage": stage,
            **{f"{part}_ms": round(1000 * parts[part], 1) for part in PARTS},
            "patches": round(counts["patches"] / max(1, counts["steps"])),
            "patches_per_s": round(counts["patches"] / max(1, counts["steps"]) / step),
        }


def measure(recipe: str, steps: int, data: list[str]) -> list[dict[str, Any]]:
    """Rows of all stages that are trained step by step."""
    chosen = RECIPES[recipe]()
    chosen = replace(
        chosen,
        stages=tuple(
            replace(stage, loop=replace(stage.loop, steps=steps, log_every=steps, eval_every=steps))
            for stage in chosen.stages
            if stage.kind not in FITTED
        ),
    )
    parts, corpora = Parts(), open_corpora(data, "train")
    wrapped = [
        (TokenizerRun, "_stage", parts.begin),
        (_Training, "step", parts.step),
        (_Training, "_accumulated", parts.timed("accumulated")),
        (torch.Tensor, "backward", parts.timed("backward")),
        (Stream, "_step", parts.timed("batches")),
        (Packer, "_make", parts.timed("examples", "made")),
        (Packer, "_take", parts.timed("", "used")),
    ]
    with ExitStack() as stack:
        for owner, name, around in wrapped:
            changed = around(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, changed))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        TokenizerRun(chosen, TrainingData.of(corpora, data), Path(folder, "run")).train()
    return [parts.row(stage.name) for stage in chosen.stages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=[name for name in RECIPES if name not in ("so400m", "g")])
    parser.add_argument("--steps", type=int, default=6, help="of each stage, 2 or more")
    parser.add_argument("--data", action="append", default=[], help="as viq train takes it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(asked.recipe, max(2, asked.steps), asked.data)
    print(json.dumps({"recipe": asked.recipe, "steps": asked.steps, "machine": machine()}))
    print("| stage | " + " | ".join(PARTS) + " | patches a step | patches/s |")
    print("|---|" + "---|" * (len(PARTS) + 2))
    for row in rows:
        cells = [f"{row[f'{part}_ms']:,.0f} ms" for part in PARTS]
        print("| " + " | ".join([row["stage"], *cells, f"{row['patches']:,}",
                                 f"{row['patches_per_s']:,}"]) + " |")  # fmt: skip


if __name__ == "__main__":
    main()
