"""Questions with exact answers, and captions, about synthetic pictures.

    drawing = draw("scene", (96, 96), seed=3)
    questions(drawing, random.Random(0))  # [Question(kind="count", prompt=..., answer="2"), ...]

Everything follows from `SyntheticImage.facts`. Answers are short, lower case and in one style;
wording varies only in prompts. What a reader could not tell for certain is not asked: things that
share a name, differences too small to see, print below 10 px. Yes and no are equally likely, and
the two are asked in the same words, so that a model that never looks gains little.
"""

import random
from dataclasses import dataclass

from viq.data.synthetic.canvas import SyntheticImage
from viq.data.synthetic.questions import charts, fields, pages, shapes

__all__ = ["KINDS", "Question", "caption", "questions"]

_ABOUT = {
    "shapes": shapes,
    "scene": shapes,
    "plain": shapes,
    "single": shapes,
    "several": shapes,
    "chart": charts,
    "text": pages,
    "word": pages,
    "gradient": fields,
}
_PROMPTS = shapes.PROMPTS | charts.PROMPTS | pages.PROMPTS | fields.PROMPTS
KINDS = tuple(_PROMPTS)


@dataclass(frozen=True, kw_only=True)
class Question:
    """`kind` is one of `KINDS`; `answer` is the only right one, in lower case."""

    kind: str
    prompt: str
    answer: str


def questions(
    drawing: SyntheticImage, rng: random.Random, limit: int | None = None
) -> list[Question]:
    """At most one question of each kind that fits the picture, shuffled, at most `limit`.

    Empty where nothing can be asked, for instance where all print is too small.
    """
    drafts = list(_ABOUT[drawing.kind].ask(drawing, rng))
    rng.shuffle(drafts)
    return [
        Question(kind=kind, prompt=rng.choice(_PROMPTS[kind]).format(**words), answer=answer)
        for kind, answer, words in drafts[:limit]
    ]


def caption(drawing: SyntheticImage, rng: random.Random) -> str:
    """One true sentence, with the names and words of the picture."""
    start = rng.choice(("", "a picture of "))
    return start + _ABOUT[drawing.kind].caption(drawing.facts, rng)
