"""Trackers: what they are told, and that a resumed stage goes on in the same run."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from viq.core.types import ViqError
from viq.metrics.run_log import read_lines
from viq.train.distributed import make_accelerator
from viq.train.monitor import Journal
from viq.train.tracking import check_trackers


@pytest.fixture(autouse=True)
def accelerator() -> None:
    """Trackers ask accelerate which process this is."""
    make_accelerator("float32")


def scalars(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """(step, value) by name, as TensorBoard shows them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        name: [(e.step, pytest.approx(e.value)) for e in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def log(folder: Path, names: list[str], steps: list[int]) -> None:
    """One run of a stage from the step before `steps`, with a line for each of them."""
    journal = Journal(folder, report_to=names, warn=lambda line: None)
    journal.cut(steps[0] - 1)
    for step in steps:
        journal.log({"stage": "fsq", "step": step, "steps": 9, "loss": step / 2})
    journal.codes(steps[-1], {"codes": 4, "levels": [[4]], "share": 0.5})
    journal.close()


def test_tensorboard_has_the_numbers_of_the_log(tmp_path: Path) -> None:
    log(tmp_path, ["tensorboard"], [1, 2])
    assert scalars(tmp_path / "tensorboard") == {
        "loss": [(1, 0.5), (2, 1.0)],
        "codes/codes": [(2, 4.0)],
        "codes/share": [(2, 0.5)],
    }
    assert [line["loss"] for line in read_lines(tmp_path / "log.jsonl")] == [0.5, 1.0]


def test_a_resumed_stage_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    log(tmp_path, ["tensorboard"], [1, 2, 3])
    log(tmp_path, ["tensorboard"], [2, 3, 4])  # from a checkpoint at step 1
    found = scalars(tmp_path / "tensorboard")["loss"]
    assert found == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tensorboard"]


def test_runs_that_trackers_number_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb and MLflow as accelerate calls them, without the packages."""
    begun: list[tuple[str, Any]] = []

    def init(**options: Any) -> Any:
        begun.append(("wandb", options["id"]))
        return SimpleNamespace(id="w1", log=lambda *a, **k: None, finish=lambda: None)

    def start_run(**options: Any) -> Any:
        begun.append(("mlflow", options["run_id"]))
        return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    wandb.init = init  # type: ignore[attr-defined]
    mlflow.start_run = start_run  # type: ignore[attr-defined]
    mlflow.search_experiments = lambda **options: []  # type: ignore[attr-defined]
    mlflow.create_experiment = lambda **options: "1"  # type: ignore[attr-defined]
    mlflow.log_metrics = lambda *a, **k: None  # type: ignore[attr-defined]
    mlflow.end_run = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    log(tmp_path / "run" / "fsq", ["wandb", "mlflow"], [1])
    assert json.loads((tmp_path / "run" / "fsq" / "trackers.json").read_text()) == {
        "wandb": "w1",
        "mlflow": "m1",
    }
    log(tmp_path / "run" / "fsq", ["wandb", "mlflow"], [2])
    assert begun == [("wandb", None), ("mlflow", None), ("wandb", "w1"), ("mlflow", "m1")]


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("wandb", "wandb", "tracker wandb is not installed: pip install wandb"),
        ("tensorboard", "torch.utils.tensorboard", "pip install tensorboard"),
        ("comet", "comet", "no tracker comet: choose from tensorboard, wandb, mlflow, trackio"),
    ],
)
def test_trackers_that_cannot_be_used(
    name: str, module: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ViqError, match=words):
        check_trackers([name])
