"""The stages without a loop, which fit in closed form: "transform", "refinement", "entropy"."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from viq.core.types import ViqError
from viq.data.batching.crops import Pictures
from viq.data.corpora.corpora import RowCorpus
from viq.models.tokenizer.refinement import RefinementConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.train.entropy import TablesFitConfig, fit_tables_to
from viq.train.tokenizer.recipe import StageConfig, TokenizerRecipe
from viq.train.tokenizer.refinement_fit import refined
from viq.train.tokenizer.transform_stage import fit_tokenizer, gather_crops, pages_of, photos_of

KINDS = ("transform", "refinement", "entropy")
Report = Callable[[dict[str, Any]], None]


def fit_stage(
    recipe: TokenizerRecipe,
    stage: StageConfig,
    photos: Pictures,
    rows: Sequence[RowCorpus],
    before: Path | None,
    folder: Path,
    report: Report,
) -> None:
    """Write what a stage of one of `KINDS` fits into a folder, the config of the model last.

    A refinement is fitted to weights in half precision, and tables to the codes of such weights,
    as a run ends with these.

    Args:
        photos, rows: the data of the run.
        before: model of the stage before; None for the first.

    Raises:
        ViqError: no stage before, or as the functions that fit.
    """
    if stage.fit is not None:
        tokenizer = fit_tokenizer(
            recipe.model, stage.fit, photos, rows, semantic=stage.semantic, pool=stage.pool,
            sentences=recipe.sentences, report=report,
        )  # fmt: skip
        return tokenizer.save_pretrained(folder)
    if before is None:
        raise ViqError(f"{stage.name}: needs a stage that fits a transform code before it")
    tokenizer = VisualTokenizer.from_pretrained(before, dtype=torch.float16).float()
    tokenizer._fingerprint = None  # that of half precision is another
    if stage.refinement is not None:
        crops = gather_crops(stage.refinement, photos, rows)
        tokenizer = refined(tokenizer, crops, RefinementConfig(), stage.refinement, report)
    if stage.entropy is not None:
        tables = fit_tables_to(tokenizer, _some(photos, rows, stage.entropy), stage.entropy)
        tokenizer.entropy_file = tables.save(folder)
        report({"bytes": tokenizer.entropy_file.stat().st_size})
    tokenizer.save_pretrained(folder, dtype=torch.float16)


def _some(
    photos: Pictures, rows: Sequence[RowCorpus], config: TablesFitConfig
) -> Iterator[Image.Image]:
    """Photos and pages in one random order, at most as many as are wanted; synthetic ones where
    there are neither."""
    corpora = [corpus for corpus in rows if not corpus.pictures_only]
    pages = list(pages_of(corpora, config.seed)) if corpora or not len(photos) else []
    found = photos if len(photos) else list(photos_of(photos, config.seed))
    order = list(range(len(found) + len(pages)))
    random.Random(config.seed).shuffle(order)
    for place in order[: config.pictures]:
        yield found[place] if place < len(found) else pages[place - len(found)]
