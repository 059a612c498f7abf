"""What is seen of a tokenizer while it trains: how codes are used, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from viq.data.batching.crops import CropConfig, Pictures, make_batch
from viq.image.patches import denormalize, lengths_of, unpatchify
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.report.sheets import picture_grid
from viq.train import checkpoints as state
from viq.train.monitor import code_use, count_codes
from viq.train.observer import Observer
from viq.train.tokenizer.objectives import (
    PIXELS,
    TokenizerObjective,
    TowerObjective,
    code_ids,
    fsq_of,
)
from viq.train.tokenizer.recipe import StageConfig


class TokenizerObserver(Observer):
    """Of a stage of the tokenizer: code use and pictures, too.

    Args:
        photos: from which the crops are cut that are shown.
        skipped, hidden, report_to: see `Observer`.
    """

    def __init__(
        self,
        stage: StageConfig,
        folder: Path,
        accelerator: Any,
        objective: TokenizerObjective,
        *,
        photos: Pictures,
        skipped: Sequence[tuple[str, str]],
        hidden: bool,
        report_to: Sequence[str],
    ) -> None:
        super().__init__(
            stage.name,
            stage.loop,
            folder,
            accelerator,
            skipped=skipped,
            hidden=hidden,
            report_to=report_to,
        )
        self.stage, self.objective, self.photos = stage, objective, photos
        self._counts: Tensor | None = None

    def after(self) -> None:
        ids, fsq = code_ids(self.objective), fsq_of(self.objective)
        if ids is not None and fsq is not None:
            counts = count_codes(ids, fsq)
            self._counts = counts if self._counts is None else self._counts + counts

    def evaluate(self, step: int) -> None:
        fsq = fsq_of(self.objective)
        if self._counts is not None and fsq is not None:
            self.journal.codes(step, code_use(self._counts, fsq))
            self._counts = None
        crops = self.stage.data.crops
        if crops and any(name in PIXELS for name in self.stage.loop.losses):
            assert not isinstance(self.objective, TowerObjective)
            if tokenizer := state.unsharded(self.objective.tokenizer, self.main):
                pairs = look_at(tokenizer, self.photos, crops)
                picture_grid(*pairs, self.journal.grid_path(step))


def look_at(
    tokenizer: VisualTokenizer, photos: Pictures, crops: CropConfig
) -> tuple[list[Any], list[Any]]:
    """The same few crops each time, and what the model makes of them."""
    crop = make_batch(photos, crops, -1 % 2**31, 0)
    training = tokenizer.training
    tokenizer.eval()
    device = tokenizer.device
    batch = replace(crop.batch, patches_TD=crop.batch.patches_TD.to(device))
    painted_TD = tokenizer.reconstruct(tokenizer(batch).features_TC, batch.grids_hw).cpu()
    tokenizer.train(training)

    def pictures(patches_TD: Tensor) -> list[Any]:
        parts = patches_TD.split(lengths_of(batch.grids_hw))[:12]
        return [
            denormalize(unpatchify(part, size)).numpy()
            for part, size in zip(parts, crop.sizes, strict=False)
        ]

    return pictures(crop.batch.patches_TD), pictures(painted_TD)
