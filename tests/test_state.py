"""Checkpoints: whole or absent, complete, at most two, and never a stranger's."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from viq.data.mixture import Position
from viq.train import state
from viq.train.optim import OptimConfig, make_optimizer
from viq.types import ViqError

POSITIONS = {0: Position(7, (3, 4)), 1: Position(6, (2, 4))}


class Model(nn.Module):
    """Tied weights as in a language model, a frozen part, and one that is used when asked."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.words.weight
        self.late = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, ids: Tensor, late: bool = False) -> Tensor:
        x = self.frozen(self.words(ids))
        return self.head(self.late(x) if late else x).square().sum()


def started(seed: int = 0) -> tuple[Model, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Model()
    return model, make_optimizer(model, OptimConfig(learning_rate=0.1))


def steps(model: Model, optimizer: torch.optim.Optimizer, count: int, late: bool = False) -> None:
    for _ in range(count):
        model(torch.tensor([1, 2]), late).backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, step: int, model: Model, optimizer: torch.optim.Optimizer) -> None:
    state.save(folder, step, model, optimizer, positions=POSITIONS, average=None)


def test_a_resumed_model_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    model, optimizer = started()
    frozen = {k: v.clone() for k, v in model.frozen.state_dict().items()}
    steps(model, optimizer, 3)
    save(tmp_path, 3, model, optimizer)
    again, its_optimizer = started(seed=9)
    again.frozen.load_state_dict(frozen)
    resumed = state.resume(tmp_path, again, its_optimizer)
    assert (resumed.step, resumed.positions, resumed.average) == (3, POSITIONS, None)
    assert again.head.weight is again.words.weight
    # One weight gets its first gradient only now.
    steps(model, optimizer, 2, late=True)
    steps(again, its_optimizer, 2, late=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.state_dict()[name]), name


def test_nothing_to_resume(tmp_path: Path) -> None:
    resumed = state.resume(tmp_path, *started())
    assert (resumed.step, resumed.positions) == (0, {})


def test_frozen_weights_are_left_out_and_files_are_plain(tmp_path: Path) -> None:
    model, optimizer = started()
    average = {"late.bias": torch.ones(3)}
    state.save(tmp_path, 1, model, optimizer, positions=POSITIONS, average=average)
    values = torch.load(tmp_path / "step-1" / "state.pt", weights_only=True)
    assert set(values) == {"step", "weights", "optimizer", "average", "positions"}
    assert not any(name.startswith("frozen") for name in values["weights"])
    resumed = state.resume(tmp_path, *started())
    assert resumed.average is not None and torch.equal(resumed.average["late.bias"], torch.ones(3))


def test_two_are_kept_and_torn_ones_cleaned(tmp_path: Path) -> None:
    model, optimizer = started()
    torn = tmp_path / ".step-7"
    torn.mkdir()
    (torn / "state.pt").write_bytes(b"half")
    for step in (8, 9, 10):
        save(tmp_path, step, model, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]
    assert [path.name for path in state.checkpoints(tmp_path)] == ["step-9", "step-10"]
    (tmp_path / "step-9.copy").mkdir()
    assert state.resume(tmp_path, model, optimizer).step == 10


def test_a_save_that_dies_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, optimizer = started()
    save(tmp_path, 1, model, optimizer)
    kept = model.late.weight.clone()
    steps(model, optimizer, 1, late=True)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(state.os, name, die)
            save(tmp_path, 2, model, optimizer)
        again, its_optimizer = started(seed=1)
        assert state.resume(tmp_path, again, its_optimizer).step == 1
        assert torch.equal(again.late.weight, kept)
    save(tmp_path, 2, model, optimizer)
    assert state.resume(tmp_path, *started()).step == 2
    assert not list(tmp_path.glob(".*"))


def test_damaged_or_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    model, optimizer = started()
    save(tmp_path, 1, model, optimizer)
    save(tmp_path, 2, model, optimizer)
    path = tmp_path / "step-2" / "state.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ViqError, match=r"cannot be resumed \(.*delete .*step-2 to go on") as error:
        state.resume(tmp_path, *started())
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(ViqError, match="cannot be resumed"):
        state.resume(tmp_path, *started())
    shutil.rmtree(path.parent)
    assert state.resume(tmp_path, *started()).step == 1
    other = nn.ModuleDict({"late": nn.Linear(3, 3), "new": nn.Linear(1, 1)})
    foreign = make_optimizer(other, OptimConfig())
    with pytest.raises(ViqError, match=r"4 weights do not fit, such as head\.weight"):
        state.resume(tmp_path, other, foreign)
    wider = Model()
    wider.late = nn.Linear(4, 4)
    with pytest.raises(ViqError, match="cannot be resumed"):
        state.resume(tmp_path, wider, make_optimizer(wider, OptimConfig()))


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    torch.save({"weights": print}, tmp_path / "step-1" / "state.pt")
    with pytest.raises(ViqError, match="cannot be resumed"):
        state.resume(tmp_path, *started())
