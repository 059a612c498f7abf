"""Pictures from sentences: a trained model that writes codes, and the tokenizer that shows them.

artist = Artist.load("runs/draw")
artist.draw(["a red circle left of a blue square"], Sampling(guidance=2))[0].save("out.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from viq.checkpoint import CONFIG_FILE
from viq.data.drawings import draw_prompt
from viq.data.words import load_tokenizer
from viq.loading import load
from viq.models.tokenizer import VisualTokenizer
from viq.models.writer import LANGUAGE, CodeWriter, Sampling
from viq.types import CODES_PER_PATCH, PATCH_SIZE, Codes, Size, ViqError, grid_of

_GROUP = 32  # pictures drawn at a time


class Artist:
    """A writer of codes, its words, and the tokenizer whose codes it writes."""

    def __init__(self, writer: CodeWriter, words: Any, tokenizer: VisualTokenizer) -> None:
        tokenizer.require(writer.config.fingerprint)
        self.writer, self.words, self.tokenizer = writer, words, tokenizer

    @classmethod
    def load(cls, run: str | Path, *, tokenizer: str | None = None, device: str = "cpu") -> Artist:
        """From a run folder or the folder of its model.

        Args:
            tokenizer: instead of the one that the model was trained with; a better decoder, say.

        Raises:
            ViqError: no finished model there, or a tokenizer of other codes.
        """
        folder = Path(run)
        if not (folder / CONFIG_FILE).is_file():
            folder = folder / "model"
        if not (folder / LANGUAGE).is_dir() or not (folder / CONFIG_FILE).is_file():
            raise ViqError(f"{run}: no finished model that draws; train one with viq train draw")
        writer = CodeWriter.from_pretrained(folder).to(device)
        words = load_tokenizer(folder / LANGUAGE)
        return cls(writer, words, load(tokenizer or writer.config.tokenizer, device=device))

    @property
    def size(self) -> Size:
        """(height, width) in px of a picture where none is asked for."""
        rows, cols = self.writer.config.grid
        return rows * PATCH_SIZE, cols * PATCH_SIZE

    def write(
        self,
        captions: Sequence[str],
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        seed: int = 0,
    ) -> list[Codes]:
        """Codes of one picture for each caption; the same for the same captions and seed."""
        size, sampling = size or self.size, sampling or Sampling()
        if min(size) < 1:
            raise ViqError(f"size {size[0]}x{size[1]}: give height and width of at least 1 px")
        grid = grid_of(size)
        free = draw_prompt(None, grid, self.words)
        device = next(self.writer.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        codes = []
        for start in range(0, len(captions), _GROUP):
            prompts = [draw_prompt(c, grid, self.words) for c in captions[start : start + _GROUP]]
            ids = self.writer.draw(prompts, free, grid, sampling, generator).cpu().numpy()
            codes += [
                Codes(
                    each.astype(np.uint16).reshape(*grid, CODES_PER_PATCH),
                    size,
                    fingerprint=self.writer.config.fingerprint,
                )
                for each in ids
            ]
        return codes

    def draw(
        self,
        captions: Sequence[str],
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        seed: int = 0,
    ) -> list[Image.Image]:
        """One picture for each caption."""
        return self.tokenizer.decode(self.write(captions, sampling, size=size, seed=seed))
