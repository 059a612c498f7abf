"""Run the stages of a recipe one after another, each starting from the model of the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from viq.checkpoint import load_strictly
from viq.data.crops import Pictures, make_batch
from viq.models.tokenizer import TokenizerConfig, VisualTokenizer
from viq.train.init import fit_fsq, initialize
from viq.train.loop import StageConfig, train_stage

_NEW = "quantizer.bottleneck."  # the part that differs from stage to stage, always new


def run(
    model_config: TokenizerConfig,
    stages: tuple[StageConfig, ...],
    photos: Pictures,
    out: Path,
    *,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> VisualTokenizer:
    """Train all stages under `out/NAME/`, resuming whatever was begun; gives the last model.

    A stage that has ended has a `model/` folder and is not trained again.
    """
    previous: VisualTokenizer | None = None
    for stage in stages:
        folder = out / stage.name
        if (folder / "model" / "config.json").exists():
            previous = VisualTokenizer.from_pretrained(folder / "model")
            continue
        model = begin(model_config, stage.name, previous, seed)
        if stage.name == "fsq" and previous is not None:
            first = [make_batch(photos, stage.crops, seed, step).batch for step in range(8)]
            fit_fsq(model, previous, first)
        train_stage(model, photos, stage, folder, seed=seed, report=report)
        model.save_pretrained(folder / "model")
        previous = model
    if previous is None:
        raise ValueError("the recipe has no stages")
    return previous


def begin(
    config: TokenizerConfig, bottleneck: str, previous: VisualTokenizer | None, seed: int
) -> VisualTokenizer:
    """A model with this bottleneck; every other part starts from the previous stage, if any."""
    torch.manual_seed(seed)
    quantizer = replace(config.quantizer, bottleneck=bottleneck)  # type: ignore[arg-type]
    model = VisualTokenizer(replace(config, quantizer=quantizer))
    initialize(model)
    if previous is not None:
        kept = {k: v for k, v in previous.state_dict().items() if not k.startswith(_NEW)}
        fresh = {k: v for k, v in model.state_dict().items() if k.startswith(_NEW)}
        load_strictly(model, kept | fresh, "previous stage")
    return model.requires_grad_(True)
