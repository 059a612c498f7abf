"""What training runs of every kind do: open the run folder, and train a stage of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from viq.data.batching.mixture import Position, Stream
from viq.metrics.run_log import RECIPE
from viq.train import checkpoints as state
from viq.train.loop import LoopConfig, train
from viq.train.loss_terms import Objective
from viq.train.monitor import print_line
from viq.train.observer import Observer, own_lanes
from viq.train.run_folder import begin_anew, check_data, check_recipe
from viq.train.tracking import check_trackers

_Objective = TypeVar("_Objective", bound=Objective)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage as the loop sees it.

    Attributes:
        folder: for its log and checkpoints.
        seed: of initial weights, data and dropout.
        gradient_accumulation: micro-batches a step, shared by all processes.
        new: prefixes of parameters that get the rate for new modules.
    """

    name: str
    folder: Path
    loop: LoopConfig
    seed: int
    gradient_accumulation: int
    new: tuple[str, ...] = ()


def stage_seed(recipe_seed: int, number: int) -> int:
    """The seed of stage `number` of a recipe."""
    return recipe_seed * 1000 + number


def open_run(
    out: Path,
    recipe: Any,
    data: Mapping[str, Any],
    accelerator: Any,
    *,
    overwrite: bool,
    reads: Iterable[str | Path | None],
    report_to: Sequence[str] = (),
    extra_stages: Sequence[str] = (),
) -> None:
    """Begin a run folder, anew if asked, or see that a begun one is of this recipe and data.

    Args:
        data, reads, extra_stages: see `check_data` and `begin_anew`.
        report_to: names of trackers.

    Raises:
        ViqError: it was begun with another recipe or other data, or a tracker is not installed.
    """
    check_trackers(report_to)
    if overwrite and accelerator.is_main_process:
        begin_anew(out, print_line, reads=reads, extra_stages=extra_stages)
    check_recipe(out / RECIPE, recipe, accelerator)
    check_data(out, data, accelerator, print_line)
    accelerator.wait_for_everyone()


def run_stage(
    stage: Stage,
    objective: Objective,
    make_stream: Callable[[range, Mapping[int, Position]], Stream],
    observer: Observer,
    accelerator: Any,
) -> None:
    """Train `objective` in place, from where the folder of the stage left off.

    Args:
        make_stream: the data, for the lanes of this process, from the positions of a checkpoint.

    Raises:
        TrainingError, TrainingStopped: see `viq.train.loop.train`.
    """
    lanes = own_lanes(stage.name, stage.gradient_accumulation, accelerator)

    def stream_at(resumed: state.Resumed) -> Stream:
        stream = observer.stream = make_stream(lanes, resumed.positions)
        if stream.reordered and accelerator.is_main_process:
            print_line(
                f"{stage.name}: begun by release 0.1: from here on its data come in another order"
            )
        return stream

    with observer:
        train(
            objective,
            stream_at,
            stage.loop,
            stage.folder,
            name=stage.name,
            seed=stage.seed,
            accelerator=accelerator,
            new=stage.new,
            hooks=observer.hooks(),
        )


def rebuilt(stage: Stage, build: Callable[[], _Objective]) -> _Objective:
    """A trained objective in one piece: built anew, with the weights of the last checkpoint.

    The one that was trained may be sharded over processes.
    """
    objective = build()
    state.load_trained(stage.folder, objective)
    return objective
