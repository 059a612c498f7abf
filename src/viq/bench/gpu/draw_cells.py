"""A model that draws, trained for so many seconds on one GPU: `viq train generation`.

    keep(run, run / KEPT)          # before: captions as tokens, once the run has its codes
    measure(cells, run)            # where the GPU is
    assemble(cells.folder, run)    # afterwards: run/model, for viq eval generation --model run

The run is a folder of `viq train generation` that draws its pictures beforehand (`uses` 0).

T = patches, S = 4 slots.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from viq.bench.gpu.cells import Cells
from viq.bench.gpu.kept import KeptSamples, Lesson, run_lesson, take_weights
from viq.core.files import write_atomically
from viq.core.types import ViqError
from viq.data.batching.generation_batches import (
    GenerationBatch,
    add_image_tokens,
    encode_description,
    encode_generation,
)
from viq.metrics.run_log import RECIPE
from viq.mllm.generation import CodeGeneratorConfig
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.train.generation.recipe import GenerationRecipe
from viq.train.generation.run import (
    TEXT_TOKENIZER,
    GenerationObjective,
    GenerationRun,
    ModelParts,
)
from viq.train.observer import make_text_tokenizer
from viq.weights.checkpoint import from_dict, read_object, to_dict

KEPT, CONFIG = "kept.npz", "kept.json"
_CELL = "drawing"
_DRAWN, _FREE, _TOLD = range(3)  # groups: drawn to a caption, to none, and described


def keep(run: Path, out: Path) -> int:
    """Write the pictures of a run, which it draws and encodes first, with their captions as
    tokens, and the shape of its model; gives their number."""
    recipe = _recipe(run)
    corpus, _, parts = GenerationRun(recipe=recipe, out=run).parts()
    if corpus.length is None:
        raise ViqError(f"{run / RECIPE}: draws while it trains: set uses to 0")
    words, pictures = parts.text_tokenizer, []
    add_image_tokens(words)
    samples: list[tuple[list[int], list[int], int, int]] = []
    for number in range(corpus.length):
        pair = corpus.pair(number)
        pictures.append(pair.codes.ids[..., :4])
        for group, told in (
            (_DRAWN, encode_generation(pair, words)),
            (_FREE, encode_generation(pair, words, unconditional=True)),
            (_TOLD, encode_description(pair, words)),
        ):
            samples.append((told.ids, told.labels, number, group))
    KeptSamples.of(samples, pictures).save(out)
    text = json.dumps(to_dict(parts.config), indent=2) + "\n"
    write_atomically(out.with_suffix(".json"), text.encode())
    return len(pictures)


def measure(cells: Cells, run: Path, *, seconds: float | None = None) -> None:
    """The one cell of this part: train and save.

    Args:
        run: with `KEPT` in it.
        seconds: of training; None: what is left.
    """
    run_lesson(cells, "draw", _CELL, lambda: _lesson(run, cells.device), seconds)


def _lesson(run: Path, device: torch.device) -> Lesson:
    recipe, kept = _recipe(run), KeptSamples.load(run / KEPT)
    objective, _ = _begun(run)
    objective.to(device)
    batches = _Batches(kept, recipe, device)
    return Lesson(
        objective=objective, batch=batches.batch, loop=recipe.loop,
        facts={
            "pictures": len(kept.grids), "patches": len(kept.codes_TS),
            "parameters": sum(p.numel() for p in objective.parameters() if p.requires_grad),
        },
        done=lambda steps: {"samples": steps * batches.each},
    )  # fmt: skip


@dataclass
class _Batches:
    """Packs of samples; what each is, by the shares of the recipe.

    Attributes:
        each: samples of a step.
    """

    kept: KeptSamples
    recipe: GenerationRecipe
    device: torch.device

    def __post_init__(self) -> None:
        self.each = self.recipe.samples * self.recipe.gradient_accumulation
        told, free = self.recipe.caption_ratio, self.recipe.caption_dropout
        weights = {_DRAWN: (1 - told) * (1 - free), _FREE: (1 - told) * free, _TOLD: told}
        self._numbers = self.kept.drawn(weights, self.recipe.seed)
        self._codes_TS = torch.from_numpy(self.kept.codes_TS.astype(np.int64)).to(self.device)

    def batch(self) -> GenerationBatch:
        packed = self.kept.packed(list(islice(self._numbers, self.each)))
        sizes = torch.tensor([rows * cols for rows, cols in packed.grids_hw])
        written = torch.tensor([group != _TOLD for group in packed.groups])
        return GenerationBatch(
            ids_L=packed.ids_L, targets_L=packed.targets_L, lengths=packed.lengths,
            codes_TS=self._codes_TS[packed.rows_T.to(self.device)], grids_hw=packed.grids_hw,
            scored_T=written.repeat_interleave(sizes),
        )  # fmt: skip


def assemble(folder: Path, run: Path) -> Path:
    """The model that `measure` trained, as that of its run; gives its folder.

    Raises:
        ViqError: the folder holds no weights, or not all of them.
    """
    objective, words = _begun(run)
    take_weights(objective, folder, _CELL)
    running = GenerationRun(recipe=_recipe(run), out=run)
    running.write(objective, words)
    return run / "model"


def _begun(run: Path) -> tuple[GenerationObjective, Any]:
    """What is trained, before its first step, and its text tokenizer."""
    recipe = _recipe(run)
    running = GenerationRun(recipe=recipe, out=run)
    config = from_dict(CodeGeneratorConfig, read_object(run / CONFIG), str(run / CONFIG))
    words = make_text_tokenizer(
        recipe.language, run / TEXT_TOKENIZER, [], running.accelerator
    )  # that the run has made
    embedder = CodeEmbedder.from_tokenizer(recipe.tokenizer)
    return running.objective(ModelParts(words, config, embedder)), words


def _recipe(run: Path) -> GenerationRecipe:
    return from_dict(GenerationRecipe, read_object(run / RECIPE), str(run / RECIPE))
