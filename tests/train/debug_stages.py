"""Stages of `debug`, cut to a few steps, that tests of stages share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.recipes.tokenizer import train_debug
from viq.train.tokenizer.recipe import StageConfig, TokenizerRecipe
from viq.train.tokenizer.run import TokenizerRun, TrainingData
from viq.weights.checkpoint import read_weights

DEBUG = train_debug()
NAMED = {stage.name: stage for stage in DEBUG.stages}


def recipe(*stages: StageConfig, **changes: Any) -> TokenizerRecipe:
    return replace(DEBUG, stages=stages, **changes)


def stage(name: str, losses: dict[str, float] | None = None, **changes: Any) -> StageConfig:
    """A stage of `debug`, without distillation, so that it needs no teacher."""
    found = NAMED[name]
    losses = losses or {k: v for k, v in found.loop.losses.items() if k != "distill"}
    loop = {k: changes.pop(k) for k in ("steps", "ema_decay", "save_every") if k in changes}
    data = {
        k: changes.pop(k)
        for k in ("gradient_accumulation", "crops", "synthetic", "merge_size")
        if k in changes
    }
    return replace(
        found,
        loop=replace(found.loop, losses=losses, **loop),
        data=replace(found.data, **data),
        **changes,
    )


ALIGN = stage("1a-align", steps=4, save_every=2)
FSQ = stage("2-2-fsq", steps=4, save_every=2)


def run(
    out: Path, chosen: TokenizerRecipe, data: TrainingData | None = None
) -> VisualTokenizer | None:
    return TokenizerRun(chosen, data or TrainingData(), out, hidden=True).train()


def same_weights(a: Path, b: Path) -> bool:
    one, other = read_weights(a), read_weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
