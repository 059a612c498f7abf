"""Pictures that the project draws, with their questions and exact answers, as a source of rows.

What `viq encode` does with files it does with these: a store with conversations, without a
download. Picture number n of a kind is always the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from viq.data.corpora.corpora import SyntheticCorpus
from viq.data.sources.base import Row, Source


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Which pictures are drawn."""

    pictures: int = 4000
    kinds: Mapping[str, float] = field(default_factory=lambda: {"scene": 1.0})  # kind: share
    sides: tuple[int, int] = (64, 160)  # px
    questions: int = 6  # a picture, at most


class SyntheticSource(Source):
    """Rows with one picture, `conversations`, and `kinds`, one a question."""

    def __init__(self, config: SyntheticConfig) -> None:
        total = sum(config.kinds.values())
        self._corpora = [
            (
                SyntheticCorpus(kind, "train", sides=config.sides, limit=config.questions),
                round(config.pictures * share / total),
            )
            for kind, share in config.kinds.items()
        ]

    def __len__(self) -> int:
        return sum(count for _, count in self._corpora)

    def keys(self) -> Iterator[str]:
        return (corpus.key(n) for corpus, count in self._corpora for n in range(count))

    def _row(self, index: int) -> Row:
        part = 0
        while index >= self._corpora[part][1]:
            index -= self._corpora[part][1]
            part += 1
        corpus = self._corpora[part][0]
        key = corpus.key(index)
        example = corpus.example(index, random.Random(key))
        chat = example.chat
        names = {"user": "human", "assistant": "gpt"}
        turns = [{"from": names[turn.role], "value": turn.text} for turn in chat.turns]
        extras = {"conversations": turns, "kinds": list(example.kinds)}
        return Row(key=key, images=chat.images, extras=extras, where=key)
