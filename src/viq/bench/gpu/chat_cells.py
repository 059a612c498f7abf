"""A model that answers, trained for so many seconds on one GPU: the last stage of `viq train mllm`.

    keep(run, stores, where, run / KEPT)    # before, where the stores are: samples as tokens
    measure(cells, run)                     # where the GPU is
    assemble(cells.folder, run)             # afterwards: run/STAGE/model, for viq eval mllm run

The run is a folder of `viq train mllm` whose stages but the last are done, with the same stores.
Features of all pictures are computed once and stay on the device; the tables that they come from
are not trained.

T = patches of all pictures, S = 4 slots, C = width of a feature.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from viq.bench.gpu.cells import Cells
from viq.bench.gpu.kept import KeptSamples, Lesson, run_lesson, take_weights
from viq.core.types import ViqError, language_tokens
from viq.data.batching.code_batches import CodeBatch, CodeCorpus, open_stores
from viq.data.text.chat_format import TextPack, encode_chat
from viq.metrics.run_log import RECIPE
from viq.mllm.loading import MODEL, load_mllm
from viq.train.mllm.recipe import MllmRecipe
from viq.train.mllm.run import CODES, MllmRun
from viq.weights.checkpoint import from_dict, read_object

KEPT = "kept.npz"
_CELL = "answers"
_TELLINGS = 3  # of a sample whose words are drawn at random, such as a label
_CHUNK = 256  # pictures of one size whose features are computed at once


def keep(run: Path, stores: Sequence[Path], where: dict[str, str] | None, out: Path) -> int:
    """Write the training samples of a run as tokens; gives their number.

    Args:
        stores: that the run is trained on, beside its own of synthetic pictures.
        where: only samples of `stores` whose columns have these values.
    """
    recipe = _recipe(run)
    _, processor = load_mllm(run / recipe.stages[-2].name / MODEL)
    fingerprint = MllmRun(recipe=recipe, out=run).fingerprint
    corpora = open_stores(stores, "train", fingerprint=fingerprint, where=where)
    corpora += open_stores([run / CODES], "train", fingerprint=fingerprint)
    samples: list[tuple[Sequence[int], Sequence[int], int, int]] = []
    pictures: list[Any] = []
    for group, corpus in enumerate(corpora):
        for index in range(corpus.length):
            found = _told(corpus, index, recipe, processor)
            if found:
                pictures.append(found[0][2])
                samples += [(ids, labels, len(pictures) - 1, group) for ids, labels, _ in found]
    KeptSamples.of(samples, pictures).save(out)
    return len(samples)


def _told(
    corpus: CodeCorpus, index: int, recipe: MllmRecipe, processor: Any
) -> list[tuple[list[int], list[int], Any]]:
    """The different ways in which a sample is told: ids, labels and codes. Only samples of one
    picture are kept."""
    found: dict[tuple[str, ...], tuple[list[int], list[int], Any]] = {}
    for telling in range(_TELLINGS):
        try:
            example = corpus.example(index, random.Random(f"{corpus.name} {index} {telling}"))
            words = tuple(turn.text for turn in example.chat.turns)
            if len(example.codes) != 1 or words in found:
                break
            codes = example.codes[0]
            chat = encode_chat(
                example.chat.turns, [language_tokens(codes.grid, recipe.merge_size)],
                processor.tokenizer, recipe.stages[-1].data.chat, example.chat.where,
            )  # fmt: skip
        except ViqError:
            break  # as `CodeStream` passes it over
        found[words] = chat.ids, chat.labels, codes.ids[..., :4]
    return list(found.values())


def measure(cells: Cells, run: Path, *, seconds: float | None = None) -> None:
    """The one cell of this part: train and save.

    Args:
        run: with `KEPT` in it.
        seconds: of training; None: what is left.
    """
    run_lesson(cells, "chat", _CELL, lambda: _lesson(run, cells.device), seconds)


def _lesson(run: Path, device: torch.device) -> Lesson:
    recipe, kept = _recipe(run), KeptSamples.load(run / KEPT)
    stage = recipe.stages[-1]
    objective, _ = MllmRun(recipe=recipe, out=run).objective(
        stage, run / recipe.stages[-2].name / MODEL, recipe.seed
    )
    objective.to(device)
    model = cast(Any, objective.model)
    model.model.embedder = _Kept(kept_features(model.model.embedder, kept, device))
    batches = _Batches(kept, recipe)
    return Lesson(
        objective=objective, batch=batches.batch, loop=stage.loop,
        facts={
            "samples": len(kept.groups), "pictures": len(kept.grids),
            "patches": len(kept.codes_TS),
            "parameters": sum(p.numel() for p in model.language_model.parameters()),
        },
        done=lambda steps: {"tokens": batches.tokens},
    )  # fmt: skip


@torch.inference_mode()
def kept_features(embedder: Any, kept: KeptSamples, device: torch.device) -> Tensor:
    """Features (T, C) of the codes of all pictures, fp32, pictures of one size together."""
    codes_TS = torch.from_numpy(kept.codes_TS.astype(np.int64)).to(device)
    found: Tensor | None = None
    for grid in np.unique(kept.grids, axis=0):
        numbers = np.flatnonzero((kept.grids == grid).all(1))
        for some in np.split(numbers, range(_CHUNK, len(numbers), _CHUNK)):
            rows = torch.from_numpy(kept.firsts[some][:, None] + np.arange(grid.prod())).to(device)
            values = _features(embedder, codes_TS[rows.flatten()], tuple(grid.tolist()), len(some))
            if found is None:
                found = values.new_empty(len(codes_TS), values.shape[1])
            found[rows.flatten()] = values
    assert found is not None
    return found.clone()


def _features(embedder: Any, codes_TS: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """`embedder(codes_TS, [grid] * count)`, with one pass through the network of meaning."""
    transform = getattr(embedder, "transform", None)
    if transform is None or transform.reader is None:
        return embedder(codes_TS, [grid] * count)
    said_nrc = transform.code.meaning(codes_TS).clamp_max(transform.meaning.ids - 1)
    tokens = transform.reader.tokens_of_equal(said_nrc.view(count, *grid), transform.meaning)
    return torch.cat([transform.detail_features(codes_TS), tokens.flatten(0, 1)], 1)


class _Kept(nn.Module):
    """In place of an embedder: the features of rows of a table."""

    def __init__(self, features_TC: Tensor) -> None:
        super().__init__()
        self.features_TC = features_TC

    def forward(self, rows_TS: Tensor, grids_hw: Any) -> Tensor:
        return self.features_TC[rows_TS[:, 0]]


@dataclass
class _Batches:
    """Packed conversations, of about as many tokens as a step of the recipe has; a store weighs the
    square root of its samples."""

    kept: KeptSamples
    recipe: MllmRecipe
    tokens: int = 0

    def __post_init__(self) -> None:
        groups, sizes = np.unique(self.kept.groups, return_counts=True)
        weights = dict(zip(groups.tolist(), np.sqrt(sizes).tolist(), strict=True))
        self._numbers = self.kept.drawn(weights, self.recipe.seed)
        data = self.recipe.stages[-1].data
        mean = len(self.kept.ids) / len(self.kept.groups)
        self._each = max(1, int(data.tokens * data.gradient_accumulation / mean))

    def batch(self) -> CodeBatch:
        packed = self.kept.packed(list(islice(self._numbers, self._each)))
        self.tokens += len(packed.ids_L)
        text = TextPack(ids_L=packed.ids_L, targets_L=packed.targets_L, lengths=packed.lengths)
        return CodeBatch(codes_TS=packed.rows_T[:, None], grids_hw=packed.grids_hw, text=text)


def assemble(folder: Path, run: Path) -> Path:
    """The model that `measure` trained, as the last stage of its run; gives its folder.

    Raises:
        ViqError: the folder holds no weights, or not all of them.
    """
    recipe = _recipe(run)
    running = MllmRun(recipe=recipe, out=run)
    stage = recipe.stages[-1]
    objective, processor = running.objective(
        stage, run / recipe.stages[-2].name / MODEL, recipe.seed
    )
    take_weights(objective, folder, _CELL)
    running.write(objective.model, processor, run / stage.name / MODEL)
    return run / stage.name / MODEL


def _recipe(run: Path) -> MllmRecipe:
    where = str(run / RECIPE)
    recipe = from_dict(MllmRecipe, read_object(run / RECIPE), where)
    if len(recipe.stages) < 2:
        raise ViqError(f"{where}: has one stage; this part trains the last of several")
    if "embedder" in recipe.stages[-1].parts or recipe.stages[-1].adapter:
        raise ViqError(
            f"{where}: its last stage trains an embedder or adapters, which are not kept"
        )
    return recipe
