"""The pictures and questions of a probe: for training, and held out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from viq.core.types import ViqError, grid_of, language_tokens
from viq.data.corpora.corpora import Corpus, Example, RowCorpus, Split, synthetic_example
from viq.data.synthetic import draw as synthetic
from viq.data.text.chat_format import ChatConfig, EncodedChat, encode_chat
from viq.data.text.conversations import IMAGE_PLACEHOLDER, Turn, split_system
from viq.data.text.text_tokenizer import train_text_tokenizer
from viq.image.open import limit_pixels
from viq.models.language.vision_language import LanguageConfig
from viq.train.loop import LoopConfig
from viq.train.optim import OptimConfig

_OF_COUNTS = 1 << 40  # first drawing of `CountedShapes`, which no `SingleShape` reaches


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Size of the examination; the defaults take minutes on one core."""

    train_pictures: int = 3000  # half drawn, half from files, where there are files
    test_pictures: int = 1200
    pairs: int = 4  # questions a training picture at most
    max_side: int = 112  # px, images are shrunk to this area squared
    steps: int = 1000
    tokens: int = 640  # a step
    learning_rate: float = 2e-3
    positions: bool = False  # the reader is told the row and column of visual tokens
    seeds: int = 3
    language: LanguageConfig = LanguageConfig(
        width=128, depth=2, heads=2, mlp_width=384, vocabulary=1024
    )

    def loop(self) -> LoopConfig:
        """As the training loop takes it, logging every step."""
        optim = OptimConfig(
            learning_rate=self.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0.02,
            warmup_ratio=30 / self.steps,
            min_lr_ratio=0.02,
        )
        return LoopConfig(steps=self.steps, losses={"text": 1.0}, optim=optim, log_every=1)


@dataclass(frozen=True, kw_only=True)
class ProbeQuestion:
    """One training conversation, or one held-out pair, and the number of its picture."""

    picture: int
    chat: EncodedChat
    kind: str
    answer: str
    counted: int = 0  # tokens that it counts for in a step; 0: those of its chat

    @property
    def tokens(self) -> int:
        """What it takes of the tokens of a step."""
        return self.counted or len(self.chat.ids)


@dataclass(frozen=True, kw_only=True)
class ProbeBenchmark:
    """Pictures and questions, the same for every tokenizer."""

    pictures: tuple[np.ndarray, ...]
    train: tuple[ProbeQuestion, ...]
    test: tuple[ProbeQuestion, ...]
    probes: tuple[tuple[int, str, str, bool], ...]  # picture, question, answer, held out
    vocabulary: int


def make_benchmark(
    rows: Sequence[tuple[RowCorpus, RowCorpus]],
    config: ProbeConfig,
    seed: int = 0,
    *,
    drawn: Sequence[Callable[[Split], Corpus]] | None = None,
) -> ProbeBenchmark:
    """Gather pictures and questions.

    Args:
        rows: (train, held-out) corpora of the same files.
        drawn: what is drawn, as many pictures of each; None: `FEW`.
    """
    rng = random.Random(seed)
    kinds = [(corpus("train"), corpus("held-out")) for corpus in drawn or FEW]
    pictures: list[np.ndarray] = []
    gathered: dict[bool, list[tuple[int, Example]]] = {False: [], True: []}
    for held, wanted in ((False, config.train_pictures), (True, config.test_pictures)):
        for group, share in _shares([p[held] for p in kinds], [p[held] for p in rows], wanted):
            for example in _examples(group, share, rng):
                image = limit_pixels(example.pictures[0], config.max_side**2)
                gathered[held].append((len(pictures), example))
                pictures.append(np.asarray(image))
    return benchmark_of(pictures, gathered, config, rng)


def benchmark_of(
    pictures: Sequence[np.ndarray],
    gathered: Mapping[bool, Sequence[tuple[int, Example]]],
    config: ProbeConfig,
    rng: random.Random,
) -> ProbeBenchmark:
    """Conversations of training pictures, single questions of held-out ones.

    Args:
        gathered: by whether they are held out, numbers of pictures and what is asked about them.
    """
    text_tokenizer = train_text_tokenizer(
        (
            turn.text.replace(IMAGE_PLACEHOLDER, "")
            for _, e in gathered[False]
            for turn in e.chat.turns
        ),
        config.language.vocabulary,
    )
    train, test, probes = [], [], []
    for held, found in gathered.items():
        for number, example in found:
            pairs = _pairs(example)
            probes += [(number, _probe(kind, q), a, held) for kind, q, a in pairs]
            rng.shuffle(pairs)
            kept = pairs[: config.pairs]
            for group in [[pair] for pair in kept] if held else [kept]:
                chat = _encode(group, pictures[number].shape[:2], text_tokenizer)
                kind, _, answer = group[0]
                (test if held else train).append(
                    ProbeQuestion(picture=number, chat=chat, kind=kind, answer=answer)
                )
    return ProbeBenchmark(
        pictures=tuple(pictures),
        train=tuple(train),
        test=tuple(test),
        probes=tuple(probes),
        vocabulary=len(text_tokenizer),
    )


class _Drawn:
    """Pictures that the project draws, endless; each part has others."""

    name, length, samples = "", None, None

    def __init__(self, split: Split) -> None:
        self._odd = int(split == "held-out")

    def key(self, index: int) -> str:
        return f"{self.name}:{index}"


class _Shapes(_Drawn):
    """Pictures of shapes."""

    def __init__(self, split: Split, sides: tuple[int, int] = (64, 112)) -> None:
        """
        Args:
            sides: px, the smallest and the largest side of a picture.
        """
        super().__init__(split)
        self._sides = sides


class SingleShape(_Shapes):
    """Synthetic pictures of one shape, asked for its colour, shape and place, and the background.

    Simple enough that a language model of a million parameters learns to look within minutes.
    """

    name = "shape"

    def example(self, index: int, rng: random.Random) -> Example:
        attempt = 0
        while True:
            number = 2 * (index + (attempt << 32)) + self._odd
            size = (rng.randint(*self._sides), rng.randint(*self._sides))
            drawing = synthetic.draw("scene", size, number)
            if len(drawing.facts["shapes"]) == 1:
                break
            attempt += 1
        (shape,) = drawing.facts["shapes"]
        rows, cols = ("top", "middle", "bottom"), ("left", "center", "right")
        where = f"{rows[3 * shape['y'] // size[0]]} {cols[3 * shape['x'] // size[1]]}"
        return _example(self.key(index), drawing, {
            "color": ("what color is it?", shape["color"]),
            "shape": ("what shape is it?", shape["shape"]),
            "place": ("where is it?", where),
            "background": ("what is the background?", drawing.facts["background"]),
        })  # fmt: skip


class CountedShapes(_Shapes):
    """Synthetic pictures of one to four shapes, asked for how many there are."""

    name = "counted"

    def example(self, index: int, rng: random.Random) -> Example:
        size = (rng.randint(*self._sides), rng.randint(*self._sides))
        drawing = synthetic.draw("scene", size, 2 * (index + _OF_COUNTS) + self._odd)
        asked = {"count": ("how many shapes are there?", str(len(drawing.facts["shapes"])))}
        return _example(self.key(index), drawing, asked)


class ChartKinds(_Drawn):
    """Drawn charts, asked for their kind."""

    name = "chart"

    def example(self, index: int, rng: random.Random) -> Example:
        size = (rng.randint(96, 160), rng.randint(96, 160))
        drawing = synthetic.draw("chart", size, 2 * index + self._odd)
        asked = {"kind": ("what kind of chart is this?", drawing.facts["mark"])}
        return _example(self.key(index), drawing, asked)


class LargePrint(_Drawn):
    """One or two words of 12 to 40 px, asked for the number of lines, and if there is one line, for
    its first character."""

    name = "print"

    def example(self, index: int, rng: random.Random) -> Example:
        size = (rng.randint(48, 96), rng.randint(96, 112))
        drawing = synthetic.draw("word", size, 2 * index + self._odd)
        lines = drawing.facts["lines"]
        asked = {"lines": ("how many lines are there?", str(len(lines)))}
        if len(lines) == 1:
            asked["character"] = ("what is the first character?", lines[0][0].lower())
        return _example(self.key(index), drawing, asked)


# What is drawn: for many tokenizers in minutes, and to compare kinds of features of one.
FEW: tuple[Callable[[Split], Corpus], ...] = (SingleShape, ChartKinds)
WIDE: tuple[Callable[[Split], Corpus], ...] = (*FEW, CountedShapes, LargePrint)


def _example(
    key: str, drawing: synthetic.SyntheticImage, asked: dict[str, tuple[str, str]]
) -> Example:
    name = key.partition(":")[0]
    return synthetic_example(
        key, drawing.image, [(f"{name}/{kind}", *pair) for kind, pair in asked.items()]
    )


def _group(kind: str) -> str:
    return kind.split("/")[0]


def _shares(
    drawn: Sequence[Corpus], rows: Sequence[Corpus], wanted: int
) -> Iterator[tuple[Corpus, int]]:
    """(corpus, pictures): half drawn, half of files by the square root of their rows."""
    half = wanted // 2 if rows else wanted
    total = sum(corpus.length**0.5 for corpus in rows if corpus.length)
    for corpus in drawn:
        yield corpus, half // len(drawn)
    for corpus in rows:
        assert corpus.length is not None
        yield corpus, min(corpus.length, round((wanted - half) * corpus.length**0.5 / total))


def _examples(corpus: Corpus, count: int, rng: random.Random) -> Iterator[Example]:
    """Examples with one picture; bad ones are passed over."""
    indices = range(count) if corpus.length is None else rng.sample(range(corpus.length), count)
    for index in indices:
        try:
            example = corpus.example(index, rng)
        except ViqError:
            continue
        if len(example.pictures) == 1:
            yield example


def _pairs(example: Example) -> list[tuple[str, str, str]]:
    """(kind, question, answer) of each pair."""
    _, turns = split_system(example.chat.turns)
    return [
        (kind, question.text.replace(IMAGE_PLACEHOLDER, "").strip(), answer.text)
        for kind, question, answer in zip(example.kinds, turns[::2], turns[1::2], strict=True)
    ]


def _probe(kind: str, question: str) -> str:
    """What makes two questions the same: the kind where wordings vary, else the words."""
    return kind if "/" in kind else f"{kind}: {question}"


def _encode(
    pairs: Sequence[tuple[str, str, str]], size: tuple[int, int], text_tokenizer: Any
) -> EncodedChat:
    turns: list[Turn] = []
    for _, question, answer in pairs:
        mark = "" if turns else IMAGE_PLACEHOLDER + "\n"
        turns += [Turn(role="user", text=mark + question), Turn(role="assistant", text=answer)]
    places = [language_tokens(grid_of(size))]
    return encode_chat(turns, places, text_tokenizer, ChatConfig(system="", max_length=4096))
