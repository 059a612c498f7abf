"""Probes: a small language model learns to answer from features, by the one training loop."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from viq.core.types import IGNORE, IMAGE_TOKEN, language_tokens
from viq.data.synthetic.draw import draw
from viq.data.text.chat_format import EncodedChat
from viq.eval.probes.benchmark import LargePrint, ProbeBenchmark, ProbeConfig, ProbeQuestion
from viq.eval.probes.understanding import train_probe
from viq.models.language.vision_language import LanguageConfig

CONFIG = ProbeConfig(
    steps=60,
    tokens=64,
    language=LanguageConfig(width=32, depth=1, heads=2, mlp_width=64, vocabulary=16),
)
YES, NO, END, ASK = 3, 4, 5, 6


def question(picture: int) -> ProbeQuestion:
    """Whether a picture of 2x2 patches is bright."""
    answer, visual = [YES if picture % 2 else NO, END], [IMAGE_TOKEN] * language_tokens((2, 2))
    ids = [*visual, ASK, *answer]
    labels = [IGNORE] * (len(ids) - 2) + answer
    chat = EncodedChat(ids=ids, labels=labels, images=1)
    return ProbeQuestion(picture=picture, chat=chat, kind="light/bright", answer=str(picture % 2))


def features(pictures: Sequence[int]) -> Tensor:
    return torch.cat([torch.full((4, 8), 1.0 if p % 2 else -1.0) for p in pictures])


def test_a_reader_learns_what_the_features_tell() -> None:
    questions = tuple(map(question, range(40)))
    benchmark = ProbeBenchmark(
        pictures=(), train=questions[:30], test=questions[30:], probes=(), vocabulary=16
    )
    grids, steps = [(2, 2)] * 40, list[int]()
    score = train_probe(benchmark, features, 8, grids, CONFIG, 0, steps.append)
    assert score == {"all": 100.0, "light": 100.0, "light/bright": 100.0}
    assert steps == list(range(CONFIG.steps))
    assert train_probe(benchmark, features, 8, grids, CONFIG, 0, steps.append) == score
    blind = train_probe(benchmark, lambda p: features(p) * 0, 8, grids, CONFIG, 0, steps.append)
    assert blind["all"] <= 50


def test_large_print_is_asked_for_its_lines_and_its_first_character() -> None:
    """One line has a first character; of two lines it is not said whose."""
    counts = set()
    for index in range(30):
        example = LargePrint("held-out").example(index, random.Random(index))
        answers = [turn.text for turn in example.chat.turns[1::2]]
        width, height = example.pictures[0].size
        again = draw("word", (height, width), 2 * index + 1)
        lines = again.facts["lines"]
        wanted = [str(len(lines))] + ([lines[0][0].lower()] if len(lines) == 1 else [])
        assert answers == wanted
        counts.add(len(lines))
    assert counts == {1, 2}
