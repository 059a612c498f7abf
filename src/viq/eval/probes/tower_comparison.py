"""Towers side by side: the same small language model, data and steps on the features of each.

Pictures, questions and score are those of `viq eval understanding`; a blind model, which sees
nothing of the pictures but their sizes, tells what words alone are worth. A step has the same
questions for every tower, however many tokens its pictures take. Beside the answers stand linear
and nearest-neighbour classifiers that name what is in photos.

T = patches of several pictures, C = width of features, n = photos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.types import IGNORE, IMAGE_TOKEN, Grid, ViqError, grid_of, language_tokens
from viq.eval.probes.benchmark import ProbeBenchmark, ProbeConfig, ProbeQuestion
from viq.eval.probes.classifiers import mean_and_deviation
from viq.eval.probes.photos import LabelledPhotos
from viq.eval.probes.towers import Tower, open_tower
from viq.eval.probes.understanding import Features, Gathered, train_probe
from viq.image.patches import lengths_of
from viq.metrics.intervals import of_seeds
from viq.models.language.projector import Whitener
from viq.models.layers.ambient import tiny_as_zero

_FITTED_TO = 200  # pictures whose features tell the spread of all
_MOST_PLACES = 2**16  # of those, about: enough for any width, and they fit into memory

Progress = Callable[[], None]


def loadable(
    names: Iterable[str],
) -> tuple[dict[str, tuple[Features, ...]], dict[str, str]]:
    """Towers that can be loaded, with the kinds of their features; and the reasons of the others.

    Each is loaded and dropped again, as a wrong folder is best told before hours of training.

    Raises:
        ViqError: none can be loaded.
    """
    found: dict[str, tuple[Features, ...]] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = open_tower(name).kinds
        except (ViqError, OSError) as error:
            left_out[name] = str(error)
    if not found:
        raise ViqError("; ".join(left_out.values()) or "no tower is named: give one at least")
    return found, left_out


def steps_of(
    towers: dict[str, tuple[Features, ...]],
    benchmark: ProbeBenchmark,
    config: ProbeConfig,
    photos: LabelledPhotos | None,
) -> int:
    """How often `compare_towers` calls `progress`, if no tower fails."""
    read = len(benchmark.pictures) + (len(photos) if photos else 0)
    training = config.seeds * config.steps
    return sum(len(kinds) * (read + training) for kinds in towers.values()) + training


@tiny_as_zero()
def compare_towers(
    benchmark: ProbeBenchmark,
    towers: Iterable[str],
    config: ProbeConfig,
    *,
    photos: LabelledPhotos | None = None,
    left_out: dict[str, str] | None = None,
    progress: Progress = lambda: None,
    done: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Train and score a reader on each kind of features, `config.seeds` times; probe photos.

    Args:
        towers: names as `open_tower` takes them; one that cannot be used is left out.
        left_out: towers that were left out before, with reasons.
        progress: called after each picture that is read, and each step of training.
        done: called with the result so far after each tower.

    Returns:
        towers: by name and kind ("codes", "continuous"): `answers` (percent, by kind of question,
        with mean, half-width of Student's 95% interval, and each seed's value); `channels`;
        `tokens`, the mean number that a picture takes in the language model; with photos `linear`
        and `knn`, each `plain` and `whitened`: `percent` and half of Wilson's `interval`.
        blind: its `answers`. photos: their split and `chance`. left_out: reasons by name.
        licences: of the weights of others. settings, pictures, questions.
    """
    result: dict[str, Any] = {
        "settings": {**asdict(config), "vocabulary": benchmark.vocabulary},
        "pictures": len(benchmark.pictures),
        "questions": len(benchmark.test),
        "photos": photos.facts() if photos else None,
        "towers": {},
        "licences": {},
        "left_out": dict(left_out or {}),
    }
    for name in towers:
        try:
            tower = open_tower(name)
            found = {
                kind: _examined(tower, kind, benchmark, config, photos, progress)
                for kind in tower.kinds
            }
        except ViqError as error:
            result["left_out"][name] = str(error)
            continue
        result["towers"][name] = found
        if tower.licence is not None:
            result["licences"][name] = tower.licence
        done(result)
    result["blind"] = {"answers": _blind(benchmark, config, progress)}
    done(result)
    return result


def _examined(
    tower: Tower,
    kind: Features,
    benchmark: ProbeBenchmark,
    config: ProbeConfig,
    photos: LabelledPhotos | None,
    progress: Progress,
) -> dict[str, Any]:
    """One kind of a tower's features. Raises `ViqError`: the tower gives none that can be used."""

    def read(image: Image.Image) -> tuple[Tensor, Grid]:
        found = tower.features(image, kind)
        progress()
        return found

    probes = (
        photos.labels.probes(torch.stack([mean_and_deviation(read(p)[0]) for p in photos]))
        if photos
        else {}
    )
    stored = _Stored(read(Image.fromarray(picture)) for picture in benchmark.pictures)
    whitener = Whitener(stored.width)
    sample_TC = stored(range(min(_FITTED_TO, len(stored.grids))))
    whitener.fit(sample_TC[:: -(-len(sample_TC) // _MOST_PLACES)])
    answers = _answers(
        regridded(benchmark, stored.grids), lambda pictures: whitener(stored(pictures)),
        stored.width, stored.grids, config, progress,
    )  # fmt: skip
    return {
        "answers": answers,
        "channels": stored.width,
        "tokens": round(float(np.mean([*map(language_tokens, stored.grids)])), 1),
        **probes,
    }


def _blind(benchmark: ProbeBenchmark, config: ProbeConfig, progress: Progress) -> dict[str, Any]:
    """Answers of a reader of zeros."""
    grids = [grid_of(picture.shape[:2]) for picture in benchmark.pictures]

    def zeros(pictures: Sequence[int]) -> Tensor:
        return torch.zeros(sum(lengths_of([grids[picture] for picture in pictures])), 1)

    return _answers(benchmark, zeros, 1, grids, config, progress)


def _answers(
    benchmark: ProbeBenchmark,
    features: Gathered,
    width: int,
    grids: Sequence[Grid],
    config: ProbeConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Percent of right answers by kind of question, of a reader for each seed."""
    by_seed = [
        train_probe(benchmark, features, width, grids, config, seed, lambda step: progress())
        for seed in range(config.seeds)
    ]
    kinds = sorted({kind for score in by_seed for kind in score})
    return {kind: of_seeds([score[kind] for score in by_seed]) for kind in kinds}


class _Stored:
    """Features of pictures by their numbers, in a temporary file: a thousand places a picture and
    a thousand channels a place are more than memory holds.

    Attributes:
        width: C.
        grids: of each picture.
    """

    def __init__(self, found: Iterable[tuple[Tensor, Grid]]) -> None:
        """
        Args:
            found: features (T, C) of each picture, and the grid that they fill.
        """
        self.width, self.grids = 0, list[Grid]()
        with tempfile.TemporaryFile() as file:
            for features_TC, grid in found:
                self.width = features_TC.shape[1]
                self.grids.append(grid)
                file.write(features_TC.numpy().tobytes())
            file.flush()
            self._ends = np.cumsum([0, *lengths_of(self.grids)])
            shape = (int(self._ends[-1]), self.width)
            self._values_TC = np.memmap(file, np.float32, "r", shape=shape)

    def __call__(self, pictures: Sequence[int]) -> Tensor:
        """Features (T, C) of pictures, one after another."""
        ends = self._ends
        parts = [self._values_TC[ends[p] : ends[p + 1]] for p in pictures]
        return torch.from_numpy(np.concatenate(parts))


def regridded(benchmark: ProbeBenchmark, grids: Sequence[Grid]) -> ProbeBenchmark:
    """The same questions on pictures of other grids; a step has the same ones as before."""

    def moved(question: ProbeQuestion) -> ProbeQuestion:
        chat, count = question.chat, language_tokens(grids[question.picture])
        first, before = chat.ids.index(IMAGE_TOKEN), chat.ids.count(IMAGE_TOKEN)
        ids, labels = (
            [*tokens[:first], *[place] * count, *tokens[first + before :]]
            for tokens, place in ((chat.ids, IMAGE_TOKEN), (chat.labels, IGNORE))
        )
        return replace(
            question, chat=replace(chat, ids=ids, labels=labels), counted=question.tokens
        )

    return replace(
        benchmark,
        train=tuple(map(moved, benchmark.train)),
        test=tuple(map(moved, benchmark.test)),
    )
