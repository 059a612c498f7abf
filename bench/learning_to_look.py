"""How soon a small language model learns to look: colours and shapes, from codes.

    PYTHONPATH=src python bench/learning_to_look.py
    PYTHONPATH=src python bench/learning_to_look.py --steps 400 --only pooling small

Pictures of one shape that the project draws, as codes of `viq-transform`; two questions each, what
colour and what shape, a token a question and a token an answer. Readers differ in one choice from
the language model of the recipe `small`; `pooling` is no language model but one attention over all
patches and a classifier: what codes let a small network know at all. Every reader has the same
pictures in the same order. Percent of held-out pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.measure import machine
from viq.core.types import IGNORE, IMAGE_TOKEN, Grid, language_tokens
from viq.data.synthetic.draw import draw
from viq.data.synthetic.shapes import COLOURS, SHAPES
from viq.models.language.projector import Whitener
from viq.models.language.vision_language import (
    LanguageConfig,
    VisionLanguageModel,
    build_language,
)
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.loading import load
from viq.recipes.mllm import small

NAMES = (tuple(COLOURS), SHAPES)
ASKED = (1, 2)  # tokens: what colour, what shape; answers follow
FIRST = (3, 3 + len(COLOURS))


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A language model that begins from nothing, and how it is trained."""

    language: LanguageConfig
    learning_rate: float
    positions: bool


def readers() -> dict[str, Reader | None]:
    recipe = small()
    base = Reader(
        language=recipe.language,
        learning_rate=recipe.stages[-1].loop.optim.learning_rate,
        positions=recipe.image_positions,
    )
    deviation = replace(base.language, initializer_range=0.02)
    return {
        "pooling": None,
        "small": base,
        "initial weights of 0.02": replace(base, language=deviation),
        "initial weights of 0.02, rate 1.5e-3": replace(
            base, language=deviation, learning_rate=1.5e-3
        ),
        "rate 3e-3": replace(base, learning_rate=3e-3),
        "no positions": replace(base, positions=False),
        "depth 2": replace(base, language=replace(base.language, depth=2)),
    }


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Features (patches, C) of each, its grid, and the numbers of its colour and shape."""

    features: list[Tensor]
    grids: list[Grid]
    answers_n2: Tensor


@torch.inference_mode()
def drawn(count: int, sides: tuple[int, int], seed: int) -> Pictures:
    rng, tokenizer = random.Random(seed), load("viq-transform")
    embedder = CodeEmbedder.from_tokenizer("viq-transform").eval()
    features, grids, answers = [], [], []
    for number in range(count):
        size = rng.randint(*sides), rng.randint(*sides)
        drawing = draw("single", size, number + (seed << 32))
        (codes,) = tokenizer.encode([drawing.image])
        ids = torch.from_numpy(codes.ids.astype("int64")).flatten(0, 1)
        (shape,) = drawing.facts["shapes"]
        features.append(embedder(ids, [codes.grid]).float().clone())
        grids.append(codes.grid)
        answers.append([NAMES[0].index(shape["color"]), NAMES[1].index(shape["shape"])])
    return Pictures(features=features, grids=grids, answers_n2=torch.tensor(answers))


class Pooling(nn.Module):
    """Four attentions over patches, then logits of colours and of shapes."""

    def __init__(self, features: int, width: int = 96) -> None:
        super().__init__()
        self.whitener = Whitener(features)
        self.patch = nn.Sequential(
            nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.weigh = nn.Linear(width, 4)
        self.out = nn.Linear(4 * width, sum(map(len, NAMES)))

    def forward(self, pictures: Pictures, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        pooled = []
        for number in numbers:
            x_TW = self.patch(self.whitener(pictures.features[number]))
            pooled.append((self.weigh(x_TW).softmax(0).T @ x_TW).flatten())
        logits = self.out(torch.stack(pooled)).split([len(names) for names in NAMES], 1)
        answers = pictures.answers_n2[list(numbers)]
        losses = [F.cross_entropy(part, answers[:, i]) for i, part in enumerate(logits)]
        right = [part.argmax(1) == answers[:, i] for i, part in enumerate(logits)]
        return torch.stack(losses).mean(), torch.stack(right, 1)


class Asked(nn.Module):
    """A language model that is asked both questions about each picture, in turn."""

    def __init__(self, reader: Reader, features: int) -> None:
        super().__init__()
        language = build_language(reader.language, FIRST[1] + len(SHAPES))
        self.model = VisionLanguageModel(
            language, features, whiten=True, positions=reader.positions
        )
        self.whitener = self.model.projector.whitener

    def forward(self, pictures: Pictures, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        ids, targets, lengths = [], [], []
        for number in numbers:
            grid, answers = pictures.grids[number], pictures.answers_n2[number].tolist()
            places = language_tokens(grid)
            words = [FIRST[i] + answers[i] for i in range(2)]
            turn = range(2) if number % 2 else range(1, -1, -1)  # either question may come first
            ids += [IMAGE_TOKEN] * places + [token for i in turn for token in (ASKED[i], words[i])]
            targets += [IGNORE] * places + [token for i in turn for token in (words[i], IGNORE)]
            lengths.append(places + 4)
        ids_L, targets_L = torch.tensor(ids), torch.tensor(targets)
        features = torch.cat([pictures.features[number] for number in numbers])
        grids = [pictures.grids[number] for number in numbers]
        score = self.model.score(features, grids, ids_L, targets_L, lengths)
        right = score.correct_A.view(-1, 2)
        odd = torch.tensor([number % 2 for number in numbers])[:, None].bool()
        return score.loss_A.mean(), torch.where(odd, right, right.flip(1))


def learned(
    reader: Reader | None, trained: Pictures, held: Pictures, steps: int, batch: int, seed: int
) -> dict[str, float]:
    torch.manual_seed(seed)
    width = trained.features[0].shape[1]
    module = Pooling(width) if reader is None else Asked(reader, width)
    assert isinstance(module.whitener, Whitener)
    module.whitener.fit(torch.cat(trained.features[:1500]))
    rate = 1.5e-3 if reader is None else reader.learning_rate
    optimizer = torch.optim.AdamW(module.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.02)
    rng, begun = random.Random(seed), time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20)
        loss, _ = module(trained, rng.sample(range(len(trained.grids)), batch))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    seconds = time.process_time() - begun
    with torch.inference_mode():
        parts = torch.arange(len(held.grids)).split(50)
        right = torch.cat([module.eval()(held, part.tolist())[1] for part in parts]).float()
    colour, shape = (100 * right.mean(0)).tolist()
    return {"colour": colour, "shape": shape, "seconds": seconds}


def main() -> None:
    names = list(readers())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2750)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32, help="pictures a step")
    parser.add_argument("--sides", type=int, nargs=2, default=(48, 176))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sides = (asked.sides[0], asked.sides[1])
    trained = drawn(asked.pictures, sides, asked.seed)
    held = drawn(asked.held_out, sides, asked.seed + 1)
    print(json.dumps({**machine(), "steps": asked.steps, "pictures": asked.pictures}))
    for name in asked.only:
        found = learned(readers()[name], trained, held, asked.steps, asked.batch, asked.seed)
        print(
            f"{name:40} colour {found['colour']:5.1f}  shape {found['shape']:5.1f}  "
            f"{found['seconds']:5.0f} s of the processor",
            flush=True,
        )


if __name__ == "__main__":
    main()
