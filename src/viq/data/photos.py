"""Photos to cut training crops from.

Pictures are decoded once and kept in memory, because random crops come back to each many times.
"""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from viq.data.corpora import RowCorpus
from viq.types import ViqError


class Photos:
    """A list of RGB images: the first one of every row of some corpora.

    Attributes:
        skipped: (key, reason) of every picture that could not be read.
    """

    def __init__(self, corpora: Iterable[RowCorpus]) -> None:
        self._images: list[Image.Image] = []
        self.skipped: list[tuple[str, str]] = []
        for corpus in corpora:
            for index in range(corpus.length):
                try:
                    self._images.append(corpus.row(index).open())
                except ViqError as error:
                    self.skipped.append((corpus.key(index), str(error)))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image:
        return self._images[index]
