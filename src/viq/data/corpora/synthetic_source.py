"""Pictures that the project draws, with their questions and exact answers, as a source of rows.

What `viq encode` does with files it does with these: a store with conversations, without a
download. Picture number n of a kind is the same for a seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from viq.data.corpora.synthetic_config import SyntheticConfig
from viq.data.corpora.synthetic_corpus import SyntheticCorpus
from viq.data.sources.base import Row, Source


class SyntheticSource(Source):
    """Rows with one picture, `conversations`, and `kinds`, one a question."""

    def __init__(self, config: SyntheticConfig) -> None:
        total = sum(config.kinds.values())
        self._corpora = [
            (
                SyntheticCorpus(
                    kind, "train", sides=config.sides, limit=config.questions, seed=config.seed
                ),
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
