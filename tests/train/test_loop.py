"""The loop with a model of a few weights: every promise it makes, checked by hand."""

import itertools
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from viq.core.types import ViqError
from viq.data.batching.mixture import Position
from viq.train import checkpoints as state
from viq.train.checkpoints import read_state
from viq.train.distributed import make_accelerator, process_settings
from viq.train.in_memory import train_in_memory
from viq.train.loop import (
    Hooks,
    LoopConfig,
    TrainingError,
    TrainingStopped,
    _clip,
    micro_batch_seed,
    train,
)
from viq.train.loss_terms import Objective
from viq.train.optim import OptimConfig

RATES = OptimConfig(learning_rate=0.05, schedule="constant", warmup_ratio=0.0)
CONFIG = LoopConfig(steps=6, losses={"text": 1.0}, optim=RATES, save_every=2, log_every=1)


@dataclass(frozen=True)
class Micro:
    """Inputs and wanted outputs; as many answers are counted as there are rows."""

    x: Tensor
    y: Tensor

    @property
    def counts(self) -> dict[str, int]:
        return {"answers": len(self.x), "images": 1, "patches": 2 * len(self.x)}

    def to(self, device: torch.device) -> "Micro":
        return self


class Stream:
    """Rows of step s and lane l are drawn from (s, l); lane 1 has three times as many."""

    def __init__(self, positions: Mapping[int, Position], lanes: Sequence[int] = (0, 1)) -> None:
        self.lanes, self.positions = list(lanes), positions

    def steps(self, first: int, last: int) -> Iterator[tuple[list[Micro], dict[int, Position]]]:
        for step in range(first, last):
            yield (
                [self.micro(step, lane) for lane in self.lanes],
                {lane: Position(step + 1, (step + 1,)) for lane in self.lanes},
            )

    @staticmethod
    def micro(step: int, lane: int) -> Micro:
        generator = torch.Generator().manual_seed(100 * step + lane)
        x = torch.randn(1 + 2 * lane, 3, generator=generator)
        return Micro(x, x.sum(1, keepdim=True))


class Joined(Stream):
    """The same rows as `Stream`, in one micro-batch."""

    def __init__(self, positions: Mapping[int, Position]) -> None:
        super().__init__(positions, lanes=[0])

    @staticmethod
    def micro(step: int, lane: int) -> Micro:
        parts = [Stream.micro(step, lane) for lane in (0, 1)]
        return Micro(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))


class Line(Objective):
    """A linear map, scored by squared error; with dropout where asked."""

    counted_in = {"text": "answers", "correct": "answers"}
    metrics = {"correct": "answer_accuracy"}

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(3, 1)
        self.dropout = nn.Dropout(dropout)
        self.masks: list[Tensor] = []

    def forward(self, micro: Micro) -> dict[str, Tensor]:
        kept = self.dropout(torch.ones_like(micro.x))
        self.masks.append(kept)
        error = (self.map(micro.x * kept) - micro.y).square()
        return {"text": error.sum(), "correct": (error < 0.1).sum()}


class Interrupted(Exception):
    pass


def run(
    folder: Path,
    model: Line | None = None,
    config: LoopConfig = CONFIG,
    make: Callable[..., Any] = Stream,
    **hooks: Any,
) -> tuple[Line, list[dict[str, Any]]]:
    """Train; gives the model and the log."""
    model = model or Line()
    log: list[dict[str, Any]] = []
    train(
        model,
        lambda resumed: make(resumed.positions),
        config,
        folder,
        name="toy",
        seed=3,
        accelerator=make_accelerator(),
        hooks=Hooks(log=log.append, **hooks),
    )
    return model, log


def losses(log: list[dict[str, Any]]) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in log}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_steps_by_hand(tmp_path: Path) -> None:
    model, log = run(tmp_path, config=replace(CONFIG, steps=3))
    mine = Line()
    optimizer = torch.optim.AdamW(
        [{"params": [mine.map.weight], "weight_decay": 1e-4}, {"params": [mine.map.bias]}],
        lr=0.05,
        weight_decay=0.0,
    )
    for step in range(3):
        micro = Joined.micro(step, 0)
        error = (mine.map(micro.x) - micro.y).square()
        assert log[step]["loss"] == pytest.approx(error.mean().item(), rel=1e-5)
        assert log[step]["answer_accuracy"] == pytest.approx((error < 0.1).float().mean().item())
        error.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(mine.parameters(), 1.0)
        assert log[step]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(model), weights(mine))
    assert [record["learning_rate"] for record in log] == [0.05] * 3
    assert not model.training


def test_accumulation_is_one_big_batch(tmp_path: Path) -> None:
    """Micro-batches of unequal size; a mean of their means would be another number."""
    cut, cut_log = run(tmp_path / "cut")
    whole, whole_log = run(tmp_path / "whole", make=Joined)
    torch.testing.assert_close(weights(cut), weights(whole))
    assert losses(cut_log) == pytest.approx(losses(whole_log), rel=1e-5)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_stopped_anywhere_it_goes_on_to_the_last_bit(tmp_path: Path, average: float) -> None:
    config = replace(CONFIG, ema_decay=average)
    whole, log = run(tmp_path / "whole", config=config)
    folder = tmp_path
    for stop in range(1, 12):  # after each micro-batch
        folder, seen = tmp_path / str(stop), []

        def interrupt(stop: int = stop, seen: list[int] = seen) -> None:
            seen.append(1)
            if len(seen) == stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            run(folder, config=config, after=interrupt)
        starts: list[int] = []
        again, rest = run(folder, config=config, resumed=starts.append)
        assert starts == [(stop - 1) // 2 // 2 * 2]  # the last even step
        assert torch.equal(weights(again), weights(whole))
        assert losses(rest) == {s: v for s, v in losses(log).items() if s > starts[0]}
    assert [path.name for path in state.checkpoints(folder)] == ["step-4", "step-6"]


def test_a_stage_that_has_ended_gives_its_result_again(tmp_path: Path) -> None:
    config = replace(CONFIG, ema_decay=0.9)
    first, _ = run(tmp_path, config=config)
    again, log = run(tmp_path, config=config)
    assert log == [] and torch.equal(weights(first), weights(again))


def test_the_data_go_on_where_they_were(tmp_path: Path) -> None:
    run(tmp_path, config=replace(CONFIG, steps=4))
    given: list[Mapping[int, Position]] = []

    def make(positions: Mapping[int, Position]) -> Stream:
        given.append(positions)
        return Stream(positions)

    run(tmp_path, make=make)
    assert given == [{0: Position(4, (4,)), 1: Position(4, (4,))}]


def test_sigterm_saves_and_leaves(tmp_path: Path) -> None:
    whole, log = run(tmp_path / "whole")
    seen: list[int] = []

    def ask() -> None:
        seen.append(1)
        if len(seen) == 2 * 2 + 1:  # in the middle of the third step
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped, match="toy: asked to stop; saved at step 3 of 6: run the"):
        run(tmp_path / "cut", after=ask)
    assert signal.getsignal(signal.SIGTERM) == before
    again, rest = run(tmp_path / "cut")
    assert losses(rest) == {s: v for s, v in losses(log).items() if s > 3}
    assert torch.equal(weights(again), weights(whole))


def test_asked_to_stop_in_the_last_step_it_ends_well(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    ended, _ = run(tmp_path / "cut", evaluate=lambda step: os.kill(os.getpid(), signal.SIGTERM))
    assert torch.equal(weights(ended), weights(whole))


class Broken(Line):
    """Goes wrong at the fourth micro-batch pair: its loss, or only the slope of its loss."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.calls = what, 0

    def forward(self, micro: Micro) -> dict[str, Tensor]:
        sums = super().forward(micro)
        self.calls += 1
        if self.calls > 2 * 3:
            zero = (self.map.weight * 0).sum()
            sums["text"] = sums["text"] + (zero * math.nan if self.what == "loss" else zero.sqrt())
        return sums


@pytest.mark.parametrize(
    ("what", "words"),
    [("loss", "toy: loss is nan at step 3"), ("slope", "toy: norm of the gradient is nan at st")],
)
def test_what_is_not_finite_stops_the_run(tmp_path: Path, what: str, words: str) -> None:
    good, _ = run(tmp_path / "good", config=replace(CONFIG, steps=3))
    broken = Broken(what)
    with pytest.raises(TrainingError, match=words) as error:
        run(tmp_path / "cut", broken, replace(CONFIG, save_every=1))
    assert "resume with a lower learning rate" in str(error.value)
    assert torch.equal(weights(broken), weights(good))  # that step changed nothing
    values = read_state(tmp_path / "cut" / "step-3")
    assert all(weight.isfinite().all() for weight in values["weights"].values())
    assert not (tmp_path / "cut" / "step-4").exists()


def test_moving_average_by_hand(tmp_path: Path) -> None:
    path: list[Tensor] = []
    model = Line()
    shown: list[Tensor] = []

    def watch() -> None:
        path.append(weights(model))

    run(
        tmp_path,
        model,
        replace(CONFIG, ema_decay=0.3, eval_every=2),
        after=watch,
        evaluate=lambda step: shown.append(weights(model)),
    )
    raw = [*path[2::2]]  # before each step but the first, that is, after each but the last
    values = read_state(tmp_path / "step-6")
    names = [name for name, _ in model.named_parameters()]
    raw.append(torch.cat([values["weights"][name].flatten() for name in names]))
    average, averages = path[0], []
    for number, current in enumerate(raw, 1):
        decay = min(0.3, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * current
        averages.append(average)
    torch.testing.assert_close(weights(model), averages[-1])
    for look, step in zip(shown, (2, 4, 6), strict=True):  # pictures show the average, too
        torch.testing.assert_close(look, averages[step - 1])
    assert not torch.allclose(averages[-1], raw[-1])


def test_dropout_depends_on_step_and_lane_alone(tmp_path: Path) -> None:
    def masks(lanes: Sequence[int], name: str) -> list[Tensor]:
        model = Line(dropout=0.5)
        run(tmp_path / name, model, make=lambda positions: Stream(positions, lanes))
        return model.masks

    both, second = masks((0, 1), "both"), masks((1,), "second")
    assert all(torch.equal(a, b) for a, b in zip(both[1::2], second, strict=True))
    assert not torch.equal(second[0], second[1])
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(both[::2], both[1::2], strict=True))


def test_seeds_of_micro_batches_are_those_of_every_release() -> None:
    assert micro_batch_seed(0, 0, 0) == 3051931488724851722
    seeds = {micro_batch_seed(*key) for key in itertools.product(range(9), repeat=3)}
    assert len(seeds) == 9**3 and all(0 <= seed < 2**63 for seed in seeds)


def test_training_leaves_its_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    half = torch.full((1,), torch.finfo(torch.float32).tiny)
    torch.set_flush_denormal(False)
    for before in (None, "true"):
        monkeypatch.delenv(name, raising=False)
        if before:
            monkeypatch.setenv(name, before)
        make_accelerator()
        assert os.environ.get(name) == before
        with process_settings():
            assert os.environ[name] == "false" and half / 2 == 0
            with process_settings():
                pass
            assert half / 2 == 0
        assert os.environ.get(name) == before and half / 2 != 0


def test_rhythm_of_log_look_and_checkpoints(tmp_path: Path) -> None:
    events: list[str] = []
    every = replace(CONFIG, steps=7, log_every=3, eval_every=4, save_every=5)
    _, dense = run(tmp_path / "dense", config=replace(every, log_every=1))
    _, log = run(
        tmp_path / "run",
        config=every,
        evaluate=lambda step: events.append(f"look {step}"),
        saving=lambda: events.append("save"),
        resumed=lambda step: events.append(f"from {step}"),
    )
    assert events == ["from 0", "look 4", "save", "look 7", "save"]
    assert [record["step"] for record in log] == [3, 6, 7]
    means = [sum(losses(dense)[s] for s in steps) / len(steps) for steps in ((1, 2, 3), (4, 5, 6))]
    assert [record["loss"] for record in log[:2]] == pytest.approx(means, rel=1e-5)
    assert log[0]["stage"] == "toy" and log[0]["steps"] == 7
    assert log[0]["patches_per_second"] > 0
    assert [path.name for path in state.checkpoints(tmp_path / "run")] == ["step-5", "step-7"]


def test_sides_of_a_contest_are_clipped_apart() -> None:
    class Contest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.painter, self.discriminator = nn.Linear(1, 1), nn.Linear(1, 1)

    model = Contest()
    for parameter in model.painter.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    for parameter in model.discriminator.parameters():
        parameter.grad = torch.full_like(parameter, 4000.0)
    norms = _clip(make_accelerator(), model, model, 1.0)
    assert norms == pytest.approx([3 * 2**0.5, 4000 * 2**0.5])
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.item() == pytest.approx(0.5**0.5, rel=1e-4)
    assert _clip(make_accelerator(), model, model, 0.0) == pytest.approx([2**0.5])
    assert _clip(make_accelerator(), model.painter, model.painter, 0.1) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "must be at least 1"),
        ({"save_every": 0}, "must be at least 1"),
    ],
)
def test_impossible_configs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ViqError, match=words):
        replace(CONFIG, **changes)


def test_in_memory_it_is_the_same_training(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=4, ema_decay=0.3)
    whole, log = run(tmp_path / "run", config=config, make=Joined)
    mine, lines = Line(), list[dict[str, Any]]()
    batches = (Joined.micro(step, 0) for step in itertools.count())
    train_in_memory(mine, batches, config, name="toy", seed=3, log=lines.append)
    assert torch.equal(weights(mine), weights(whole))
    assert losses(lines) == losses(log)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_in_memory_what_is_not_finite_stops_it() -> None:
    batches = (Joined.micro(step, 0) for step in itertools.count())
    words = "toy: loss is nan at step 6; train again with a lower learning rate"
    with pytest.raises(TrainingError, match=words):
        config = replace(CONFIG, steps=9)
        train_in_memory(Broken("loss"), batches, config, name="toy", seed=3)


def test_a_loss_that_the_model_does_not_give(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match=r"no losses \['mse'\], only text, correct"):
        run(tmp_path, config=replace(CONFIG, losses={"text": 1.0, "mse": 1.0}))
    with suppress(FileNotFoundError):
        assert not state.checkpoints(tmp_path)


def test_accelerate_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(ViqError, match=r"accelerate: pip install 'viq\[train\]'"):
        make_accelerator()
