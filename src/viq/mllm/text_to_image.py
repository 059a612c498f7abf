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

from viq.core.codes import Codes
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, Grid, Size, ViqError, grid_of
from viq.data.batching.generation_batches import draw_prompt, order_prompt, read_size, size_words
from viq.data.text.text_tokenizer import load_tokenizer
from viq.mllm.generation import LANGUAGE, CodeWriter, Sampling
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights.checkpoint import CONFIG_FILE

_GROUP = 32  # pictures drawn at a time
_SIZE_WORDS = 8  # at most in a size mark


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
        """(height, width) in px of most pictures it was trained on."""
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
        """Codes of one picture for each caption; the same for the same captions and seed.

        Args:
            size: (height, width) in px; None: of each picture what the model chooses.
        """
        sampling = sampling or Sampling()
        if size is not None and min(size) < 1:
            raise ViqError(f"size {size[0]}x{size[1]}: give height and width of at least 1 px")
        device = next(self.writer.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        grids = [grid_of(size)] * len(captions) if size else self.grids(captions, sampling, seed)
        codes: dict[int, Codes] = {}
        for grid in sorted(set(grids)):
            alike = [number for number, found in enumerate(grids) if found == grid]
            free = draw_prompt(None, grid, self.words)
            for start in range(0, len(alike), _GROUP):
                group = alike[start : start + _GROUP]
                prompts = [draw_prompt(captions[number], grid, self.words) for number in group]
                ids = self.writer.draw(prompts, free, grid, sampling, generator).cpu().numpy()
                for number, each in zip(group, ids, strict=True):
                    codes[number] = Codes(
                        each.astype(np.uint16).reshape(*grid, CODES_PER_PATCH),
                        size or (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE),
                        fingerprint=self.writer.config.fingerprint,
                    )
        return [codes[number] for number in range(len(captions))]

    def grids(self, captions: Sequence[str], sampling: Sampling, seed: int = 0) -> list[Grid]:
        """Rows and columns of patches that the model chooses for each caption.

        It writes the size mark as it writes any words, but of figures and "x" alone. What says no
        size then, or one larger than all it was trained on, becomes the most frequent.
        """
        words, end = size_words(self.words)
        generator = torch.Generator().manual_seed(seed)
        prompts = [order_prompt(caption, self.words) for caption in captions]
        grids: list[Grid] = []
        for start in range(0, len(prompts), _GROUP):
            group = prompts[start : start + _GROUP]
            for said in self.writer.say(group, words, end, _SIZE_WORDS, sampling, generator):
                grid = read_size(said, self.words)
                fits = grid is not None and grid[0] * grid[1] <= self.writer.config.most_patches
                grids.append(grid if grid is not None and fits else self.writer.config.grid)
        return grids

    def draw(
        self,
        captions: Sequence[str],
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        seed: int = 0,
    ) -> list[Image.Image]:
        """One picture for each caption, as `write`."""
        return self.tokenizer.decode(self.write(captions, sampling, size=size, seed=seed))
