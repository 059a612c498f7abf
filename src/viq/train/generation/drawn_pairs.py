"""Pictures that are drawn and encoded while a model trains on them, with their captions.

There is no end of them, so none has to come again; but to encode one takes about as long as to
learn from it. So each comes about `uses` times, among others that were drawn about when it was:
draw number n takes one of the `_KEPT` pictures from number n / uses on. Which one is a function of
n alone, so a run can go on anywhere.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from viq.core.types import Grid, Size, grid_of
from viq.data.batching.generation_batches import CodePair, PairExample, choose_task
from viq.data.synthetic.captions import CaptionedShapes
from viq.models.tokenizer.tokenizer import VisualTokenizer

_KEPT = 256  # pictures to choose from at any time
_GROUP = 64  # pictures encoded at a time beforehand
_CAPTIONS = 4000  # that a text tokenizer is trained on


class DrawnPairs:
    """Endless pairs of one size.

    Args:
        tokenizer: that encodes them.
        uses: how often each comes, on average.
        caption_ratio, caption_dropout: see `viq.data.batching.generation_batches.PairCorpus`.

    Attributes:
        grids: how many pictures have it, by grid: there is one alone.
    """

    name = "shapes"
    length = samples = None

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        size: Size,
        *,
        uses: int = 1,
        seed: int = 0,
        caption_ratio: float = 0.0,
        caption_dropout: float = 0.0,
    ) -> None:
        self._tokenizer, self._uses, self._seed = tokenizer, uses, seed
        self._shapes = CaptionedShapes("train", size, seed)
        self._caption_ratio, self._caption_dropout = caption_ratio, caption_dropout
        self.grids = Counter[Grid]({grid_of(size): 1})
        self._encoded = lru_cache(maxsize=2 * _KEPT)(self._encode)

    @property
    def captions(self) -> set[str]:
        """Some of them, which have all words."""
        return {self._shapes.pair(number).caption for number in range(_CAPTIONS)}

    def key(self, index: int) -> str:
        return f"{self.name}:{index}"

    def pair(self, index: int) -> CodePair:
        """The pair of one draw."""
        return self._encoded(self.number(index))

    def number(self, index: int) -> int:
        """Of the picture of one draw."""
        if self._uses == 1:
            return index
        later = random.Random(f"{self._seed} {index}").randrange(_KEPT)
        return index // self._uses + later

    def example(self, index: int, rng: random.Random) -> PairExample:
        """The pair of one draw, and what is to be learnt from it."""
        task = choose_task(rng, self._caption_ratio, self._caption_dropout)
        return PairExample(pair=self.pair(index), task=task)

    def _encode(self, number: int) -> CodePair:
        drawn = self._shapes.pair(number)
        (codes,) = self._tokenizer.encode([drawn.image])
        return CodePair(caption=drawn.caption, codes=codes)


def encoded_shapes(
    tokenizer: VisualTokenizer, shapes: CaptionedShapes, pictures: int
) -> Iterator[CodePair]:
    """Captions and codes of the first synthetic pictures."""
    for start in range(0, pictures, _GROUP):
        drawn = [shapes.pair(number) for number in range(start, min(start + _GROUP, pictures))]
        codes = tokenizer.encode([pair.image for pair in drawn])
        for pair, item in zip(drawn, codes, strict=True):
            yield CodePair(caption=pair.caption, codes=item)
