"""Trackers of experiments: the scalars of a stage in TensorBoard, wandb, MLflow or trackio.

Accelerate speaks to them. Of those that number their runs themselves, `trackers.json` in the folder
of the stage keeps the number, so that a resumed stage goes on in the same run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from viq.core.files import write_atomically
from viq.core.types import ViqError
from viq.weights.checkpoint import read_object

RUNS = "trackers.json"

_MODULES = {
    "tensorboard": "torch.utils.tensorboard",  # which imports tensorboard
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
TRACKERS = tuple(_MODULES)

# What each calls the number of a run, in what its tracker holds.
_RUN_ID: Mapping[str, Callable[[Any], str]] = {
    "wandb": lambda run: run.id,
    "mlflow": lambda run: run.info.run_id,
}


def check_trackers(names: Sequence[str]) -> None:
    """Before training begins: whether these trackers can be used.

    Raises:
        ViqError: there is none of that name, or its package is not installed.
    """
    for name in names:
        if name not in _MODULES:
            raise ViqError(f"no tracker {name}: choose from {', '.join(TRACKERS)}")
        try:
            import_module(_MODULES[name])
        except ImportError:
            raise ViqError(f"tracker {name} is not installed: pip install {name}") from None


class Trackers:
    """The trackers of one stage; on the main process alone.

    Args:
        names: of `TRACKERS`.
        folder: of the stage; its name is that of the run, its parent's that of the project.
        step: to go on after; what TensorBoard has of later steps no longer counts.
    """

    def __init__(self, names: Sequence[str], folder: Path, step: int) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        runs = _read_runs(folder)
        self._trackers: list[Any] = []
        for name in dict.fromkeys(names):
            make: Any = LOGGER_TYPE_TO_CLASS[name]
            project, options = _options(name, folder, step, runs.get(name))
            tracker = make(project, **options)
            tracker.start()
            self._trackers.append(tracker)
            if name in _RUN_ID:
                runs[name] = _RUN_ID[name](tracker.tracker)
        if runs:
            write_atomically(folder / RUNS, (json.dumps(runs) + "\n").encode())

    def log(self, record: Mapping[str, Any], prefix: str) -> None:
        """The numbers of a record, under the step that it names."""
        scalars = {
            prefix + key: value
            for key, value in record.items()
            if isinstance(value, int | float) and key not in ("step", "steps")
        }
        for tracker in self._trackers:
            tracker.log(scalars, step=record["step"])

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _options(name: str, folder: Path, step: int, run_id: str | None) -> tuple[str, dict[str, Any]]:
    """Project, and options of accelerate's tracker."""
    out = folder.resolve()
    project, run = out.parent.name, out.name
    if name == "tensorboard":  # a folder of its own in that of the stage
        return name, {"logging_dir": folder, "purge_step": step + 1}
    if name == "mlflow":
        return project, {"run_id": run_id, "run_name": run}
    if name == "wandb":
        return project, {"id": run_id, "name": run, "dir": str(folder), "resume": "allow"}
    return project, {"name": run, "resume": "allow"}


def _read_runs(folder: Path) -> dict[str, str]:
    """Numbers of runs by tracker; none where the file is damaged, which begins new runs."""
    with suppress(FileNotFoundError, ViqError):
        return {name: str(run) for name, run in read_object(folder / RUNS).items()}
    return {}
