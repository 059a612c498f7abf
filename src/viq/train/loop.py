"""The one training loop, for every stage, on one process or many.

It reads from top to bottom: set the rate, add up the losses of the step's micro-batches, clip,
refuse a loss that is not a number, step, and once in a while log, evaluate and save. Launch it as
it is, or with `accelerate launch` or `torchrun` for several processes (docs/training.md).

A step of training is the same whatever computes it: its micro-batches depend on the step alone
(`data/batching/mixture.py`), and losses are divided by the counts of the whole step.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from viq.core.types import Stopped, ViqError
from viq.data.batching.mixture import Position
from viq.train import checkpoints as state
from viq.train.distributed import _gathered, _inner, _on_host, _reduced, _shard_by_layer
from viq.train.ema import _Average
from viq.train.loss_terms import Objective, weighted
from viq.train.monitor import print_line
from viq.train.optim import OptimConfig, make_optimizer, set_rate


class TrainingError(ViqError):
    """Training cannot go on."""


class TrainingStopped(Stopped):
    """Training was asked to stop, and saved; the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, losses and rhythm of a stage."""

    steps: int
    losses: Mapping[str, float]  # name of a term: its weight
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_decay: float = 0.0  # of a moving average of the weights, the result of a stage; 0: none
    log_every: int = 10
    eval_every: int = 200
    save_every: int = 200

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.eval_every, self.save_every) < 1:
            raise ViqError("steps, log_every, eval_every and save_every must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls: `evaluate` and `saving` on every process, the others on the main one."""

    log: Callable[[dict[str, Any]], None] = lambda record: None  # every `log_every` steps
    evaluate: Callable[[int], None] = lambda step: None  # every `eval_every` steps
    after: Callable[[], None] = lambda: None  # after each micro-batch
    resumed: Callable[[int], None] = lambda step: None  # once, before the first step
    saving: Callable[[], None] = lambda: None  # before each checkpoint


class Batches(Protocol):
    """The endless data of a stage on this process (`data/batching/mixture.py`)."""

    @property
    def lanes(self) -> Sequence[int]: ...

    def steps(self, first: int, last: int) -> Iterator[tuple[list[Any], dict[int, Position]]]:
        """For each step from `first` to `last` (excluded): a micro-batch of each lane, and the
        positions after it."""
        ...


def train(
    objective: Objective,
    stream_at: Callable[[state.Resumed], Batches],
    config: LoopConfig,
    folder: Path | None,
    *,
    name: str,
    seed: int,
    accelerator: Any,
    new: tuple[str, ...] = (),
    hooks: Hooks | None = None,
) -> None:
    """Train what requires a gradient in `objective`, in place, resuming what `folder` holds.

    Args:
        stream_at: the data of this process from where a checkpoint left them.
        folder: for checkpoints; None: none are written, and SIGTERM is not waited for.
        accelerator: accelerate's, or `viq.train.in_memory.SingleProcess`.
        new: prefixes of parameters that get the rate for new parts.

    Raises:
        TrainingError: loss or gradient is not finite. Nothing was changed by that step.
        TrainingStopped: SIGTERM; the state was saved.
    """
    hooks = hooks or Hooks()
    main = accelerator.is_main_process
    training = _Training(
        objective, config, folder, name=name, seed=seed, accelerator=accelerator, new=new,
        after=hooks.after if main else lambda: None,
    )  # fmt: skip
    stream, first = stream_at(training.resumed), training.resumed.step
    if main:
        hooks.resumed(first)
    meter = _Meter(name, config)
    objective.train()
    with _asked_to_stop() if folder else nullcontext(lambda: False) as asked:
        for step, (micros, reached) in enumerate(stream.steps(first, config.steps), first):
            meter.add(*training.step(step, stream.lanes, micros))
            done, end = step + 1, step + 1 == config.steps
            stop = _reduced({"stop": torch.tensor(float(asked()))}, accelerator)["stop"] > 0
            if main and (done % config.log_every == 0 or end or stop):
                hooks.log(meter.line(done))
            if done % config.eval_every == 0 or end:
                with training.averaged(), torch.no_grad():
                    hooks.evaluate(done)
            if folder and (done % config.save_every == 0 or end or stop):
                hooks.saving()
                training.save(folder, done, reached)
            if stop and not end:
                raise TrainingStopped(
                    f"{name}: asked to stop; saved at step {done} of {config.steps}: run the same "
                    "command to go on"
                )
    objective.eval()
    if training.average:
        training.average.apply(objective)


class _Training:
    """A stage in progress: model, optimizer and moving average, and one step of them.

    Attributes:
        bare: the objective itself.
        model: the objective as the accelerator runs it.
        resumed: where it goes on.
    """

    def __init__(
        self,
        objective: Objective,
        config: LoopConfig,
        folder: Path | None,
        *,
        name: str,
        seed: int,
        accelerator: Any,
        new: tuple[str, ...],
        after: Callable[[], None],
    ) -> None:
        self.bare, self.config, self.folder = objective, config, folder
        self.name, self.seed, self.accelerator, self.after = name, seed, accelerator, after
        optimizer = make_optimizer(objective, config.optim, new)
        if accelerator.distributed_type == "FSDP":
            _shard_by_layer(accelerator, objective)
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        self.resumed = state.Resumed(positions={})
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.resumed = state.resume(
                folder,
                self.model,
                _inner(self.optimizer),
                print_line=print_line,
                agree=partial(_agreed, accelerator),
            )
        decay = config.ema_decay
        self.average = _Average(objective, decay, self.resumed.average) if decay else None

    def step(
        self, step: int, lanes: Sequence[int], micros: Sequence[Any]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """One step of the optimizer: numbers for the log, and the counts of the step."""
        rate = set_rate(self.optimizer, self.config.optim, step, self.config.steps)
        counts = _reduced(_counts(micros), self.accelerator)
        totals = self._accumulated(step, lanes, micros, counts)
        norms = _clip(self.accelerator, self.model, self.bare, self.config.optim.clip_norm)
        sums, norms = _on_host(totals, norms, self.accelerator)
        record = _means(sums, counts, self.config.losses, self.bare)
        self._check_finite("loss", [record["loss"]], step)
        self._check_finite("norm of the gradient", norms, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.bare)
        return {**record, "gradient_norm": norms[0], "learning_rate": rate}, counts

    def _accumulated(
        self,
        step: int,
        lanes: Sequence[int],
        micros: Sequence[Any],
        counts: Mapping[str, float],
    ) -> dict[str, Tensor]:
        """Gradients of the micro-batches of this process, and the sums of their terms."""
        accelerator, totals = self.accelerator, dict[str, Tensor]()
        for lane, micro in zip(lanes, micros, strict=True):
            torch.manual_seed(micro_batch_seed(self.seed, step, lane))
            last = micro is micros[-1]
            with nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    sums = self.model(micro.to(accelerator.device))
                loss = weighted(sums, counts, self.config.losses, self.bare.counted_in)
                # Gradients are averaged over processes; the counts are already of all.
                accelerator.backward(loss * accelerator.num_processes)
            for key, value in sums.items():  # on their device: the CPU need not wait for it
                value = value.detach().to(accelerator.device, torch.float32)
                totals[key] = totals[key] + value if key in totals else value
            self.after()
        return totals

    def _check_finite(self, what: str, values: Sequence[float], step: int) -> None:
        if all(map(math.isfinite, values)):
            return
        again = "train again"
        if self.folder:
            again = f"the last checkpoint in {self.folder} is good: resume"
        raise TrainingError(
            f"{self.name}: {what} is {values[0]} at step {step}; {again} with a lower learning rate"
        )

    def averaged(self) -> AbstractContextManager[None]:
        """The moving average in the model for a while, where there is one."""
        return self.average.swapped(self.bare) if self.average else nullcontext()

    def save(self, folder: Path, step: int, reached: Mapping[int, Position]) -> None:
        """Write a checkpoint; every process must call this."""
        state.save(
            folder,
            step,
            self.model,
            _inner(self.optimizer),
            positions=_gathered(reached, self.accelerator),
            average=self.average.values if self.average else None,
            main=self.accelerator.is_main_process,
        )
        self.accelerator.wait_for_everyone()


def micro_batch_seed(seed: int, step: int, lane: int) -> int:
    """Of the random numbers of one micro-batch, such as the dropout of adapters: the first 63 bits
    of SHA-256 of "seed/step/lane", so that they are the same wherever the step is computed."""
    digest = hashlib.sha256(f"{seed}/{step}/{lane}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _counts(micros: Sequence[Any]) -> dict[str, Tensor]:
    names = micros[0].counts if micros else {}
    return {name: torch.tensor(float(sum(m.counts[name] for m in micros))) for name in names}


def _means(
    totals: Mapping[str, float],
    counts: Mapping[str, float],
    weights: Mapping[str, float],
    objective: Objective,
) -> dict[str, float]:
    """Each term over its count, and the weighted sum of those that are trained on."""
    means = {k: v / max(1.0, counts[objective.counted_in[k]]) for k, v in totals.items()}
    record = {"loss": sum(w * means[k] for k, w in weights.items() if k in means)}
    names = objective.metrics
    return record | {names.get(k, f"loss/{k}"): value for k, value in means.items()}


def _clip(accelerator: Any, objective: nn.Module, bare: nn.Module, norm: float) -> list[Tensor]:
    """Clip gradients; gives their norms before. A discriminator is clipped apart, so that neither
    side mutes the other, and its norm comes last."""
    discriminator = getattr(bare, "discriminator", None)
    groups = [list(objective.parameters())]
    if discriminator is not None and norm:
        theirs = {id(p) for p in discriminator.parameters()}
        ours = [p for p in groups[0] if id(p) not in theirs]
        groups = [ours, list(discriminator.parameters())]
    norms = [accelerator.clip_grad_norm_(group, norm or math.inf) for group in groups]
    full = (t.full_tensor() if isinstance(t, DTensor) else t for t in norms)
    return [torch.zeros(()) if total is None else total.detach() for total in full]


def _agreed(accelerator: Any, choose: Callable[[], Any]) -> Any:
    """What the main process chooses, on all of them."""
    if accelerator.num_processes == 1:
        return choose()
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([choose() if accelerator.is_main_process else None])[0]


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come; it no longer kills while the block runs."""
    seen: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    except ValueError:  # not the main thread: signals go elsewhere
        yield lambda: False
        return
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Meter:
    """Means of the records since the last line, and the speed."""

    def __init__(self, stage: str, config: LoopConfig) -> None:
        self.stage, self.steps = stage, config.steps
        self._clear()

    def _clear(self) -> None:
        self.records: list[dict[str, float]] = []
        self.counts: dict[str, float] = {}
        self.begun = time.perf_counter()

    def add(self, record: dict[str, float], counts: Mapping[str, float]) -> None:
        self.records.append(record)
        for name in ("patches", "tokens"):
            self.counts[name] = self.counts.get(name, 0.0) + counts.get(name, 0.0)

    def line(self, step: int) -> dict[str, Any]:
        seconds = time.perf_counter() - self.begun
        names = {name: None for record in self.records for name in record}
        means = {}
        for name in names:
            values = [record[name] for record in self.records if name in record]
            means[name] = float(f"{sum(values) / len(values):.6g}")
        line = {"stage": self.stage, "step": step, "steps": self.steps, **means}
        line |= {f"{k}_per_second": round(v / seconds, 1) for k, v in self.counts.items() if v}
        line["seconds"] = round(seconds, 2)
        self._clear()
        return line
