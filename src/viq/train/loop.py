"""The training loop of the tokenizer: one stage, resumable at any step.

A run folder holds `log.jsonl` (one line every few steps), `step-N/` checkpoints (whole or
absent; the newest two are kept) and, once a stage has ended, `model/` in the format that
`VisualTokenizer.from_pretrained` reads. Data are a function of the step (see `data/crops.py`)
and nothing else is random, so a resumed run on the same machine goes on as if never stopped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viq.checkpoint import read_weights, write_weights
from viq.data.crops import CropBatch, CropConfig, Pictures, batches
from viq.files import write_atomically
from viq.models.quantizer import FSQBottleneck
from viq.models.tokenizer import VisualTokenizer
from viq.train import losses
from viq.types import ViqError


class TrainingError(ViqError):
    """Training cannot go on."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage: data, length and optimizer."""

    name: str
    steps: int
    crops: CropConfig
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    decay_share: float = 0.7  # of the steps, at the end: linear decay to zero
    weight_decay: float = 0.02  # matrices only
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    log_every: int = 10
    save_every: int = 200


def train_stage(
    model: VisualTokenizer,
    photos: Pictures,
    config: StageConfig,
    folder: Path,
    *,
    seed: int,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> VisualTokenizer:
    """Train in place from the newest checkpoint in `folder`, or from the start.

    Args:
        report: called with every log record (stage, step, losses, psnr, patches a second, ...).

    Raises:
        TrainingError: the loss is not finite; the last checkpoint is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(model, config)
    start = _resume(model, optimizer, folder)
    model.train()
    meter = _Meter(config, start)
    for step, crop in zip(
        range(start, config.steps),
        batches(photos, config.crops, seed, range(start, config.steps)),
        strict=True,
    ):
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, record = _losses(model, crop)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"{config.name}: loss is {loss.item()} at step {step}; the last checkpoint in "
                f"{folder} is good: resume with a lower learning rate"
            )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        record |= {"learning_rate": rate, "gradient_norm": float(norm)}
        meter.add(record, patches=len(crop.mask_TD))
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            line = meter.line(done)
            with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            report(line)
        if done % config.save_every == 0 or done == config.steps:
            _save(model, optimizer, folder, done)
    return model.eval()


def learning_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, a plateau, then linear decay to zero at the last step."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1, round(config.steps * config.decay_share))
    return config.learning_rate * min(warm, 1.0, (config.steps - step) / decay_steps)


def _losses(model: VisualTokenizer, crop: CropBatch) -> tuple[Tensor, dict[str, float]]:
    output = model(crop.batch)
    predicted = model.reconstruct(output.features_TC, crop.batch.grids_hw)
    mse = losses.image_mse(predicted, crop.batch.patches_TD, crop.mask_TD, crop.batch.grids_hw)
    loss = losses.reconstruction(mse, crop.batch.grids_hw)
    record = {"loss": loss.item(), "psnr": losses.psnr(mse.detach()).item()}
    bottleneck = model.quantizer.bottleneck
    if isinstance(bottleneck, FSQBottleneck):
        used = losses.code_perplexity(output.z_TSd.detach(), bottleneck.fsq)
        record["code_perplexity"] = used
        record["codes"] = float(output.z_TSd.shape[0] * output.z_TSd.shape[1])
    return loss, record


def _optimizer(model: VisualTokenizer, config: StageConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


class _Meter:
    """Means of the records since the last line, and the speed."""

    def __init__(self, config: StageConfig, start: int) -> None:
        self.stage, self.steps, self.records, self.patches = config.name, config.steps, [], 0
        self.begun = time.perf_counter()

    def add(self, record: dict[str, float], patches: int) -> None:
        self.records.append(record)
        self.patches += patches

    def line(self, step: int) -> dict[str, Any]:
        seconds = time.perf_counter() - self.begun
        names = self.records[0]
        means = {k: round(sum(r[k] for r in self.records) / len(self.records), 6) for k in names}
        line = {"stage": self.stage, "step": step, "steps": self.steps, **means,
                "patches_per_second": round(self.patches / seconds, 1),
                "seconds": round(seconds, 2)}  # fmt: skip
        self.records, self.patches, self.begun = [], 0, time.perf_counter()
        return line


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a stage, oldest first."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def _save(
    model: VisualTokenizer, optimizer: torch.optim.Optimizer, folder: Path, step: int
) -> None:
    aside = folder / f".step-{step}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    write_weights(aside / "model.safetensors", model.state_dict())
    torch.save({"step": step, "optimizer": optimizer.state_dict()}, aside / "state.pt")
    final = folder / f"step-{step}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    for old in checkpoints(folder)[:-2]:
        shutil.rmtree(old)


def _resume(model: VisualTokenizer, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    found = checkpoints(folder)
    if not found:
        return 0
    state = torch.load(found[-1] / "state.pt", weights_only=True)
    weights = read_weights(found[-1] / "model.safetensors")
    model.load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    _cut_log(folder / "log.jsonl", state["step"])
    return state["step"]


def _cut_log(log: Path, step: int) -> None:
    """Drop the lines of steps that will be done again, so that the log holds each step once."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomically(log, "".join(kept).encode())
