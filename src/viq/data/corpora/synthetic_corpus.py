"""A corpus of pictures that the project draws, with their questions and exact answers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from viq.data.corpora.corpora import Example, Split, synthetic_example, texts_of
from viq.data.synthetic import draw as synthetic
from viq.data.synthetic.questions import Question, caption, questions


class SyntheticCorpus:
    """Pictures of one kind that the project draws, with questions about them; endless.

    Args:
        sides: the sides of a picture are drawn evenly from this range, px.
        limit: questions a picture.
    """

    def __init__(
        self,
        kind: str,
        split: Split,
        *,
        sides: tuple[int, int] = (64, 160),
        limit: int = 6,
        seed: int = 0,
    ) -> None:
        self.name, self.sides, self.limit, self.seed = kind, sides, limit, seed
        self._odd = int(split == "held-out")

    length = samples = None

    def key(self, index: int) -> str:
        return f"{self.name}:{index}"

    def texts(self, index: int, rng: random.Random) -> Iterator[str]:
        """What a text tokenizer should know."""
        yield from texts_of(self.example(index, rng).chat)

    def example(self, index: int, rng: random.Random) -> Example:
        height, width = (rng.randint(*self.sides) for _ in range(2))
        number = 2 * (index + self.seed * 2**32) + self._odd
        drawing = synthetic.draw(self.name, (height, width), number)
        asked = questions(drawing, rng, self.limit)
        sentence = caption(drawing, rng)
        if not asked or rng.random() < 0.25:
            asked.append(Question(kind="caption", prompt="Describe the image.", answer=sentence))
        rng.shuffle(asked)
        # People write "Where" as often as "where", which are other tokens.
        prompts = [_capitalized(q.prompt) if rng.random() < 0.5 else q.prompt for q in asked]
        pairs = [
            (f"{self.name}/{q.kind}", prompt, q.answer)
            for q, prompt in zip(asked, prompts, strict=True)
        ]
        return synthetic_example(self.key(index), drawing.image, pairs, sentence)


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]
