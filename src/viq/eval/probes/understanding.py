"""What a language model understands of frozen codes: answers and linear probes, on pictures that
neither tokenizer nor language model were trained on.

One small language model is trained from scratch on the features of each tokenizer, with the same
questions, steps and seeds, and asked about held-out pictures. An answer counts if every token of it
is right; scored with the right tokens before each, which is what greedy decoding would have given
(or the first wrong token ends it). Linear probes ask the same of the mean feature alone.

T = patches of an image, C = width of features.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from viq.core.types import IGNORE, Grid, grid_of
from viq.data.text.chat_format import pack_chats
from viq.eval.probes.benchmark import ProbeBenchmark, ProbeConfig, ProbeQuestion, _group
from viq.eval.probes.classifiers import logistic
from viq.image.patches import PatchBatch, lengths_of, normalize
from viq.metrics.intervals import of_seeds
from viq.models.language.vision_language import AnswerScore, VisionLanguageModel, build_language
from viq.models.tokenizer.inference import whole_patches
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.train.in_memory import train_in_memory
from viq.train.loss_terms import Objective

Features = Literal["codes", "continuous", "teacher"]
Gathered = Callable[[Sequence[int]], Tensor]  # numbers of pictures to their features (T, C)
_GROUP = 32  # pictures a pass
_PROBE_CLASS = 15  # fewest training pictures of an answer that a probe tells apart


def kinds_of(tokenizer: VisualTokenizer) -> tuple[Features, ...]:
    """Features that a tokenizer has."""
    semantic = getattr(tokenizer.encoder, "semantic", None)
    return ("codes", "continuous") if semantic is None else ("codes", "continuous", "teacher")


def read_features(
    tokenizer: VisualTokenizer, pictures: Sequence[np.ndarray], kind: Features
) -> Tensor:
    """Features (T, C) of pictures (H, W, 3), uint8, one after another: of their codes; of what
    codes round; of the pretrained network whose meaning they learned (`kinds_of`)."""
    patch = tokenizer.config.encoder.patch_size
    batch = PatchBatch(
        patches_TD=torch.cat([whole_patches(tokenizer, normalize(each)) for each in pictures]),
        grids_hw=tuple(grid_of(each.shape[:2], patch) for each in pictures),
    )
    if kind == "codes":
        return tokenizer.features(tokenizer.ids(batch), batch.grids_hw)
    if kind == "continuous":
        return tokenizer.continuous_features(batch)
    return tokenizer.encoder.trunk_features(batch)


@torch.inference_mode()
def features_of(
    tokenizer: VisualTokenizer, pictures: Sequence[np.ndarray], kind: Features
) -> list[Tensor]:
    """Features (T, C) of each picture, as `read_features` gives them.

    Pictures are small here and run in groups.
    """
    found: list[Tensor] = []
    for start in range(0, len(pictures), _GROUP):
        group = pictures[start : start + _GROUP]
        lengths = lengths_of([grid_of(picture.shape[:2]) for picture in group])
        found += [part.clone() for part in read_features(tokenizer, group, kind).split(lengths)]
    return found


def evaluate_features(
    benchmark: ProbeBenchmark,
    features: Sequence[Tensor],
    config: ProbeConfig,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train the reader once a seed and score it; probes once.

    Returns accuracies in percent: `answers` (all, and by kind) with mean, the half-width of the
    95% interval over seeds (Student's t), and each seed's value; `probes` by question.
    """
    grids = [grid_of(p.shape[:2]) for p in benchmark.pictures]
    # A fresh projector expects centred channels of unit size; tokenizers differ in that.
    sample = torch.cat(list(features[:500]))
    mean, std = sample.mean(0), sample.std(0) + 1e-6
    features = [(feature - mean) / std for feature in features]
    width = features[0].shape[1]

    def gathered(pictures: Sequence[int]) -> Tensor:
        return torch.cat([features[picture] for picture in pictures])

    by_seed = [
        train_probe(benchmark, gathered, width, grids, config, seed, progress)
        for seed in range(config.seeds)
    ]
    kinds = sorted({kind for score in by_seed for kind in score})
    return {
        "questions": dict(Counter(_group(q.kind) for q in benchmark.test))
        | {"all": len(benchmark.test)},
        "answers": {kind: of_seeds([score[kind] for score in by_seed]) for kind in kinds},
        "probes": _probes(benchmark, features),
    }


def train_probe(
    benchmark: ProbeBenchmark,
    features: Gathered,
    width: int,
    grids: Sequence[Grid],
    config: ProbeConfig,
    seed: int,
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Exact-match accuracy in percent by kind, of one reader trained from scratch.

    Args:
        features: of pictures by their numbers; `width` channels wide.
        grids: of all pictures.
        progress: called with the number of each step.
    """
    torch.manual_seed(seed)
    reader = VisionLanguageModel(
        build_language(config.language, benchmark.vocabulary), width, positions=config.positions
    )
    train_in_memory(
        _ReaderObjective(reader, features, grids),
        map(_Pack, _packs(benchmark.train, config.tokens, random.Random(seed))),
        config.loop(),
        name="probe",
        seed=seed,
        log=lambda record: progress(record["step"] - 1),
    )
    return score_reader(reader, benchmark.test, features, grids)


@torch.inference_mode()
def score_reader(
    reader: VisionLanguageModel,
    test: Sequence[ProbeQuestion],
    features: Gathered,
    grids: Sequence[Grid],
) -> dict[str, float]:
    """Exact-match accuracy in percent by kind, of a trained reader; as `train_probe` gives it."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(test), 16):
        questions = test[start : start + 16]
        pack = _Pack(questions)
        correct = _score(reader, pack, features, grids).correct_A
        owners_L = torch.arange(len(questions)).repeat_interleave(torch.tensor(pack.text.lengths))
        owner = owners_L[pack.text.targets_L != IGNORE]
        for i, question in enumerate(questions):
            right = bool(correct[owner == i].all())
            for kind in ("all", _group(question.kind), question.kind):
                hits[kind].append(right)
    return {kind: 100 * sum(found) / len(found) for kind, found in hits.items()}


class _Pack:
    """Questions in one sequence."""

    def __init__(self, questions: Sequence[ProbeQuestion]) -> None:
        self.questions, self.text = questions, pack_chats([q.chat for q in questions])

    @property
    def counts(self) -> dict[str, int]:
        return {"answers": self.text.answers, "tokens": len(self.text.ids_L)}

    def to(self, device: torch.device) -> _Pack:
        """Itself: probes are trained on the CPU."""
        return self


class _ReaderObjective(Objective):
    """Cross-entropy of the answers.

    Args:
        features, grids: see `train_probe`.
    """

    counted_in = {"text": "answers"}

    def __init__(
        self, reader: VisionLanguageModel, features: Gathered, grids: Sequence[Grid]
    ) -> None:
        super().__init__()
        self.reader, self.features, self.grids = reader, features, grids

    def forward(self, pack: _Pack) -> dict[str, Tensor]:
        """Sums by name, nats."""
        return {"text": _score(self.reader, pack, self.features, self.grids).loss_A.sum()}


def _score(
    reader: VisionLanguageModel, pack: _Pack, features: Gathered, grids: Sequence[Grid]
) -> AnswerScore:
    """Loss and hit of every scored token."""
    pictures = [question.picture for question in pack.questions]
    return reader(
        features(pictures),
        [grids[picture] for picture in pictures],
        pack.text.ids_L,
        pack.text.targets_L,
        pack.text.lengths,
    )


def _packs(
    questions: Sequence[ProbeQuestion], tokens: int, rng: random.Random
) -> Iterator[list[ProbeQuestion]]:
    """Endless packs of at most so many tokens, shuffled anew each round."""
    held: list[ProbeQuestion] = []
    used = 0
    while True:
        for question in rng.sample(questions, len(questions)):
            if held and used + question.tokens > tokens:
                yield held
                held, used = [], 0
            held.append(question)
            used += question.tokens


def _probes(benchmark: ProbeBenchmark, features: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """Accuracy in percent of linear classifiers on the mean feature, by question.

    Only questions that are asked of many pictures in the same words, over answers with enough
    training pictures. `chance` is that of the most frequent answer.
    """
    by_question: dict[str, list[tuple[int, str, bool]]] = defaultdict(list)
    for picture, question, answer, held in benchmark.probes:
        by_question[question].append((picture, answer, held))
    results = {}
    for question, found in by_question.items():
        counts = Counter(answer for _, answer, held in found if not held)
        classes = sorted(answer for answer, n in counts.items() if n >= _PROBE_CLASS)
        known = [(p, classes.index(a), held) for p, a, held in found if a in classes]
        test = [item for item in known if item[2]]
        if len(classes) < 2 or len(test) < 30:
            continue
        x = torch.stack([features[p].mean(0) for p, _, _ in known])
        y = torch.tensor([label for _, label, _ in known])
        held = torch.tensor([h for _, _, h in known])
        right = logistic(x[~held], y[~held], x[held], len(classes)) == y[held]
        chance = y[held].bincount().max() / held.sum()
        results[question] = {
            "accuracy": round(100 * float(right.float().mean()), 2),
            "chance": round(100 * float(chance), 2),
            "classes": len(classes),
            "pictures": len(test),
        }
    return results


def compare(
    benchmark: ProbeBenchmark,
    candidates: Sequence[tuple[str, VisualTokenizer, Features]],
    config: ProbeConfig,
    *,
    progress: Callable[[int], None] = lambda step: None,
    done: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Examine several tokenizers with the same questions.

    Args:
        candidates: (name, tokenizer, which features).
        done: called with the result so far after each.
    """
    result: dict[str, Any] = {
        "settings": {**dataclasses.asdict(config), "vocabulary": benchmark.vocabulary},
        "pictures": len(benchmark.pictures),
        "candidates": {},
    }
    for name, tokenizer, kind in candidates:
        features = features_of(tokenizer, benchmark.pictures, kind)
        found = evaluate_features(benchmark, features, config, progress)
        result["questions"] = found.pop("questions")
        result["candidates"][name] = {"features": kind, **found}
        done(result)
    return result
