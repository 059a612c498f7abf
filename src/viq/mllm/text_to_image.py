"""Pictures from sentences: a trained model that writes codes, and the tokenizer that shows them.

pipeline = TextToImagePipeline.load("runs/generation")
pipeline.generate(["a red circle left of a blue square"], Sampling(guidance=2))[0].save("out.png")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.codes import Codes
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, Grid, Size, ViqError, grid_of
from viq.data.batching.generation_batches import (
    CodePair,
    encode_description,
    generation_prompt,
    instruction_prompt,
    pack_generation,
    parse_size,
    size_tokens,
)
from viq.data.text.text_tokenizer import load_text_tokenizer
from viq.mllm.generation import LANGUAGE, CodeGenerator, Sampling
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights.checkpoint import CONFIG_FILE

_GROUP = 32  # pictures drawn at a time
_SIZE_TOKENS = 8  # at most in a size mark


class TextToImagePipeline:
    """A generator of codes, its text_tokenizer, and the tokenizer whose codes it writes."""

    def __init__(
        self, generator: CodeGenerator, text_tokenizer: Any, tokenizer: VisualTokenizer
    ) -> None:
        tokenizer.require(generator.config.fingerprint)
        self.generator, self.text_tokenizer, self.tokenizer = generator, text_tokenizer, tokenizer

    @classmethod
    def load(
        cls, run: str | Path, *, tokenizer: str | None = None, device: str = "cpu"
    ) -> TextToImagePipeline:
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
            raise ViqError(
                f"{run}: no finished model that draws; train one with viq train generation"
            )
        generator = CodeGenerator.from_pretrained(folder).to(device)
        text_tokenizer = load_text_tokenizer(folder / LANGUAGE)
        return cls(
            generator, text_tokenizer, load(tokenizer or generator.config.tokenizer, device=device)
        )

    @property
    def size(self) -> Size:
        """(height, width) in px of most pictures it was trained on."""
        rows, cols = self.generator.config.grid
        return rows * PATCH_SIZE, cols * PATCH_SIZE

    def generate_codes(
        self,
        captions: Sequence[str],
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        seed: int = 0,
        written: Callable[[np.ndarray, Grid], None] | None = None,
    ) -> list[Codes]:
        """Codes of one picture for each caption; the same for the same captions and seed.

        Args:
            size: (height, width) in px; None: of each picture what the model chooses.
            written: called after each patch of a group of pictures of one grid with their ids so
                far, (pictures, patches, 4), and that grid.
        """
        sampling = sampling or Sampling()
        if size is not None and min(size) < 1:
            raise ViqError(f"size {size[0]}x{size[1]}: give height and width of at least 1 px")
        device = next(self.generator.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        grids = (
            [grid_of(size)] * len(captions) if size else self.choose_grids(captions, sampling, seed)
        )
        drawn: dict[int, list[Codes]] = {number: [] for number in range(len(captions))}
        for grid in sorted(set(grids)):
            alike = [
                number
                for number, found in enumerate(grids)
                if found == grid
                for _ in range(sampling.candidates)
            ]
            unconditional = generation_prompt(None, grid, self.text_tokenizer)
            for start in range(0, len(alike), _GROUP):
                group = alike[start : start + _GROUP]
                prompts = [
                    generation_prompt(captions[number], grid, self.text_tokenizer)
                    for number in group
                ]

                def after(ids_BTS: Tensor, grid: Grid = grid) -> None:
                    assert written is not None
                    written(ids_BTS.cpu().numpy(), grid)

                found = self.generator.generate(
                    prompts, unconditional, grid, sampling, generator, after if written else None
                )
                ids = found.cpu().numpy()
                for number, each in zip(group, ids, strict=True):
                    codes = Codes(
                        each.astype(np.uint16).reshape(*grid, CODES_PER_PATCH),
                        size or (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE),
                        fingerprint=self.generator.config.fingerprint,
                    )
                    drawn[number].append(codes)
        return [self._best(captions[number], found) for number, found in drawn.items()]

    def _best(self, caption: str, candidates: Sequence[Codes]) -> Codes:
        """Of some pictures the one that is most likely described by a caption."""
        if len(candidates) == 1:
            return candidates[0]
        pairs = [CodePair(caption=caption, codes=codes) for codes in candidates]
        pack = pack_generation([encode_description(pair, self.text_tokenizer) for pair in pairs])
        pack = pack.to(next(self.generator.parameters()).device)
        nats = self.generator.text_nats(
            pack.ids_L, pack.targets_L, pack.lengths, pack.codes_TS, pack.grids_hw
        )
        return candidates[int(nats.argmin())]

    def choose_grids(
        self, captions: Sequence[str], sampling: Sampling, seed: int = 0
    ) -> list[Grid]:
        """Rows and columns of patches that the model chooses for each caption.

        It writes the size mark as it writes any text_tokenizer, but of figures and "x" alone. What
        says no size then, or one larger than all it was trained on, becomes the most frequent.
        """
        text_tokenizer, end = size_tokens(self.text_tokenizer)
        generator = torch.Generator().manual_seed(seed)
        prompts = [instruction_prompt(caption, self.text_tokenizer) for caption in captions]
        grids: list[Grid] = []
        for start in range(0, len(prompts), _GROUP):
            group = prompts[start : start + _GROUP]
            for tokens in self.generator.generate_text(
                group, text_tokenizer, end, _SIZE_TOKENS, sampling, generator
            ):
                grid = parse_size(tokens, self.text_tokenizer)
                fits = grid is not None and grid[0] * grid[1] <= self.generator.config.most_patches
                grids.append(grid if grid is not None and fits else self.generator.config.grid)
        return grids

    def generate(
        self,
        captions: Sequence[str],
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        seed: int = 0,
    ) -> list[Image.Image]:
        """One picture for each caption, as `generate_codes`."""
        return self.tokenizer.decode(self.generate_codes(captions, sampling, size=size, seed=seed))
