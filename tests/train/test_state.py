"""Checkpoints: whole or absent, complete, at most two, and never a stranger's."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from viq.core import files
from viq.core.types import ViqError
from viq.data.batching.mixture import Position
from viq.train import checkpoints as state
from viq.train.optim import OptimConfig, make_optimizer

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
    assert sorted(os.listdir(tmp_path / "step-1")) == ["state.json", "state.safetensors"]
    values = state.read_state(tmp_path / "step-1")
    assert set(values) == {"step", "weights", "optimizer", "average", "positions"}
    assert not any(name.startswith("frozen") for name in values["weights"])
    resumed = state.resume(tmp_path, *started())
    assert resumed.average is not None and torch.equal(resumed.average["late.bias"], torch.ones(3))


def test_everything_an_optimizer_holds_comes_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    values = {
        "numbers": {"lr": 0.1 + 0.2, "tiny": 5e-324, "endless": float("inf"), "step": 2**60},
        "pair": (0.9, 0.999),
        "list": [None, True, "x", {"a": ()}],
        "tensors": [torch.tensor(3.0), shared[:3], shared[3:], shared.view(2, 3).T, shared, shared,
                    torch.empty(0), torch.ones(2, dtype=torch.bfloat16)],
    }  # fmt: skip
    state.write_state(tmp_path, values)
    found = state.read_state(tmp_path)
    for mine, its in zip(values["tensors"], found["tensors"], strict=True):
        assert mine.dtype == its.dtype and torch.equal(mine, its)
    assert found["tensors"][4] is found["tensors"][5]
    assert {k: v for k, v in found.items() if k != "tensors"} == {
        k: v for k, v in values.items() if k != "tensors"
    }
    odds: list[Any] = [{1: 2}, {"a": {3}}, {"a": print}]
    for odd in odds:
        with pytest.raises(ViqError, match="cannot be saved"):
            state.write_state(tmp_path, odd)


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

    for module, name in ((state.os, "fsync"), (files.os, "rename")):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(module, name, die)
            save(tmp_path, 2, model, optimizer)
        again, its_optimizer = started(seed=1)
        assert state.resume(tmp_path, again, its_optimizer).step == 1
        assert torch.equal(again.late.weight, kept)
    save(tmp_path, 2, model, optimizer)
    assert state.resume(tmp_path, *started()).step == 2
    assert not list(tmp_path.glob(".*"))


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, dict[int, list[Tensor]]]:
    """A folder with two checkpoints, and the weights at either step."""
    model, optimizer = started()
    kept = {}
    for step in (1, 2):
        steps(model, optimizer, 1, late=True)
        save(tmp_path / "stage", step, model, optimizer)
        kept[step] = weights_of(model)
    return tmp_path / "stage", kept


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_no_flipped_bit_gives_other_weights(
    two: tuple[Path, dict[int, list[Tensor]]], name: str
) -> None:
    """Of a damaged checkpoint nothing is taken; the one before is, and that is said."""
    folder, kept = two
    path, rng = folder / "step-2" / name, random.Random(0)
    whole, missed = path.read_bytes(), 0
    for _ in range(60):
        place, data = rng.randrange(len(whole)), bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        model, optimizer = started(seed=3)
        said: list[str] = []
        resumed = state.resume(folder, model, optimizer, print_line=said.append)
        assert all(map(torch.equal, weights_of(model)[:-2], kept[resumed.step][:-2]))
        if resumed.step == 2:  # as the exponent of a number in JSON, which has two spellings
            missed += 1
            continue
        assert len(said) == 1 and "\n" not in said[0]
        assert "step-2 is damaged" in said[0] and "going on from step-1 instead" in said[0]
        with pytest.raises(ViqError, match="step-2 is damaged .*run the same command again"):
            state.load_trained(folder, started()[0])
    assert missed <= 3


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_cut_or_missing_files(two: tuple[Path, dict[int, list[Tensor]]], name: str) -> None:
    folder, kept = two
    path = folder / "step-2" / name
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole[:100], whole + b"x", b"[" * 10**5, b"{}", b"[]", None):
        path.unlink() if data is None else path.write_bytes(data)
        model, optimizer = started(seed=3)
        said: list[str] = []
        assert state.resume(folder, model, optimizer, print_line=said.append).step == 1
        assert all(map(torch.equal, weights_of(model)[:-2], kept[1][:-2]))
        assert len(said) == 1 and "\n" not in said[0]


def test_a_run_that_fell_back_replaces_the_damaged_one(
    two: tuple[Path, dict[int, list[Tensor]]],
) -> None:
    folder, _ = two
    (folder / "step-2" / "state.json").write_text("x")
    model, optimizer = started()
    assert state.resume(folder, model, optimizer).step == 1
    save(folder, 2, model, optimizer)
    assert sorted(os.listdir(folder)) == ["step-1", "step-2"]
    assert state.resume(folder, *started()).step == 2
    for step in (1, 2):
        (folder / f"step-{step}" / "state.safetensors").write_bytes(b"x")
    with pytest.raises(ViqError, match=r"step-2 is damaged .*step-1 is damaged .*cannot be resum"):
        state.resume(folder, *started())


def test_the_main_process_chooses_for_all(two: tuple[Path, dict[int, list[Tensor]]]) -> None:
    folder, kept = two
    model, optimizer = started(seed=5)
    resumed = state.resume(folder, model, optimizer, agree=lambda choose: "step-1")
    assert resumed.step == 1
    assert all(map(torch.equal, weights_of(model)[:-2], kept[1][:-2]))
    with pytest.raises(ViqError, match="told"):
        state.resume(folder, model, optimizer, agree=lambda choose: ViqError("told"))


def old_save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """As release 0.1 did."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, its_state = get_state_dict(model, optimizer, options=options)
    (folder / f"step-{step}").mkdir(parents=True)
    values = {"step": step, "weights": weights, "optimizer": its_state, "average": None,
              "positions": {k: p.as_json() for k, p in POSITIONS.items()}}  # fmt: skip
    torch.save(values, folder / f"step-{step}" / "state.pt")


def test_checkpoints_of_the_first_release_are_read(tmp_path: Path) -> None:
    model, optimizer = started()
    steps(model, optimizer, 2, late=True)
    old_save(tmp_path, 2, model, optimizer)
    again, its_optimizer = started(seed=4)
    again.frozen.load_state_dict(model.frozen.state_dict())
    said: list[str] = []
    resumed = state.resume(tmp_path, again, its_optimizer, print_line=said.append)
    assert (resumed.step, resumed.positions) == (2, POSITIONS)
    assert len(said) == 1 and "without a checksum" in said[0]
    for each, its in ((model, optimizer), (again, its_optimizer)):
        steps(each, its, 2, late=True)
    assert all(map(torch.equal, weights_of(model), weights_of(again)))
    save(tmp_path, 3, again, its_optimizer)
    save(tmp_path, 4, again, its_optimizer)
    assert sorted(os.listdir(tmp_path)) == ["step-3", "step-4"]
    state.load_trained(tmp_path, started()[0])


def test_only_what_it_wrote_itself_is_removed(tmp_path: Path) -> None:
    model, optimizer = started()
    mine = {
        ".step-7": "notes", ".step-x": "state.pt", "step-08": "state.pt", "step-5": "state.pt",
        ".step-1.old": "x", f".step-2.{'a' * 16}.part": "mine", "step-٣": "state.json",
    }  # fmt: skip
    for name, file in mine.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("mine")
    (tmp_path / "step-5" / "notes.txt").write_text("mine")  # beside a checkpoint
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "state.pt").write_text("mine")
    (tmp_path / ".step-3").symlink_to(tmp_path / "elsewhere")
    ours = tmp_path / f".step-6.{'b' * 16}.part"
    ours.mkdir()
    (ours / "state.safetensors").write_text("torn")
    for step in (10, 11, 12):
        save(tmp_path, step, model, optimizer)
    assert not ours.exists()
    for name, file in mine.items():
        assert (tmp_path / name / file).read_text() == "mine", name
    assert (tmp_path / "elsewhere" / "state.pt").read_text() == "mine"
    (tmp_path / "step-13").mkdir()
    (tmp_path / "step-13" / "photo.png").write_text("mine")
    with pytest.raises(ViqError, match="step-13: is in the way .* none of ours: move it away"):
        state.resume(tmp_path, *started())  # before any training
    with pytest.raises(ViqError, match="step-13: holds more than a checkpoint of ours"):
        save(tmp_path, 13, model, optimizer)
    assert os.listdir(tmp_path / "step-13") == ["photo.png"]


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    model, optimizer = started()
    save(tmp_path, 1, model, optimizer)
    other = nn.ModuleDict({"late": nn.Linear(3, 3), "new": nn.Linear(1, 1)})
    foreign = make_optimizer(other, OptimConfig())
    with pytest.raises(ViqError, match=r"4 weights do not fit, such as head\.weight"):
        state.resume(tmp_path, other, foreign)
    wider = Model()
    wider.late = nn.Linear(4, 4)
    with pytest.raises(ViqError, match="cannot be resumed"):
        state.resume(tmp_path, wider, make_optimizer(wider, OptimConfig()))
    with pytest.raises(ViqError, match="is of another model"):
        state.load_trained(tmp_path, wider)


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    torch.save({"weights": print}, tmp_path / "step-1" / "state.pt")
    with pytest.raises(ViqError, match="cannot be resumed"):
        state.resume(tmp_path, *started())
