"""Pictures and questions of all arms, and what a pretrained network sees in them, read once.

The network is EfficientNet-Lite0. It sees a picture at twice its size, so that its last block has
one vector for each patch of 16 px. The encoder of every arm reads these vectors beside the pixels,
as the paper's begins from SigLIP2; the teacher's token of a picture is their mean.

T = patches of a picture, F = channels that are kept of the network's, C = width of the tokenizer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from viq.core.types import ViqError, grid_of
from viq.data.corpora.corpora import Corpus, Example, synthetic_example
from viq.data.corpora.held_out import labelled
from viq.data.sources.base import Source
from viq.eval.ablations.arms import AblationConfig
from viq.eval.probes.benchmark import (
    ChartKinds,
    CountedShapes,
    ProbeBenchmark,
    SingleShape,
    benchmark_of,
)
from viq.eval.probes.photos import Labels
from viq.image.open import limit_pixels
from viq.image.patches import normalize
from viq.models.layers.efficientnet import STRIDE_32
from viq.models.vision.efficientnet import EfficientNetLite0
from viq.weights import checkpoint

_FITTED_TO = 400  # pictures whose vectors give the principal directions
_NAME = "what is in the photo?"
_CROP = 256  # px, of the pictures that reconstruction is measured on
_FILE, _LOOKING_FILE = "features.safetensors", "looking.safetensors"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures, and what the network sees in each.

    Attributes:
        pixels: uint8 (H, W, 3) each.
        seen: fp16 (T, F) each: whitened principal channels of the network's vectors.
    """

    pixels: tuple[np.ndarray, ...]
    seen: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Drawn pictures, asked where their shape is or how many there are, for a reader of their own.

    Attributes:
        benchmark: questions; its pictures are `pictures.pixels`.
    """

    benchmark: ProbeBenchmark
    pictures: Pictures


@dataclass(frozen=True, kw_only=True)
class Material:
    """What every arm is trained and measured on.

    Attributes:
        benchmark: questions; its pictures are `pictures.pixels`.
        taught_nC: the teacher's token of each picture, fp32: principal coordinates.
        vectors: fp16 (T, 320) of each picture: the network's own, for the comparison with codes.
        named: numbers of the pictures that are photos with names, as `labels` has them.
        crops: pictures for the quality of reconstruction; never trained on.
        looking: where they are asked for.
    """

    benchmark: ProbeBenchmark
    pictures: Pictures
    taught_nC: Tensor
    vectors: tuple[Tensor, ...]
    named: tuple[int, ...]
    labels: Labels
    crops: Pictures
    looking: Looking | None


def gather(
    photos: Source,
    label: str,
    where: dict[str, str],
    crops: Sequence[Image.Image],
    config: AblationConfig,
    folder: Path,
    progress: Callable[[], None] = lambda: None,
    *,
    looking: bool = False,
) -> Material:
    """Draw and read all pictures; the network's vectors come from `folder`, or go there.

    Args:
        crops: pictures whose middle 256 px are reconstructed.
        progress: called for each picture that the network sees.
        looking: also `Material.looking`.

    Raises:
        ViqError: too few photos with labels, or the network's package is missing.
    """
    rng = random.Random(0)
    gathered = _Gathered()
    named = _photos(photos, label, where, config, gathered)
    for held, groups in _drawn(config).items():
        for corpus, count in groups:
            for index in range(count):
                gathered.add(corpus.example(index, rng), held, config)
    middles = [_middle(image) for image in crops]
    if not middles:
        raise ViqError("no pictures for the quality of reconstruction: give some with --kodak")
    vectors = _vectors([*gathered.pictures, *middles], folder / _FILE, progress)
    count = len(gathered.pictures)
    trained = [number for number, _ in gathered.examples[False]]
    whiten, project = _directions([vectors[number] for number in trained], config)
    seen = [whiten(vector) for vector in vectors]
    benchmark = benchmark_of(gathered.pictures, gathered.examples, config.exam, rng)
    return Material(
        benchmark=benchmark,
        pictures=Pictures(pixels=benchmark.pictures, seen=tuple(seen[:count])),
        taught_nC=torch.stack([project(vector) for vector in vectors[:count]]),
        vectors=tuple(vectors[:count]),
        named=tuple(number for number, _, _ in named),
        labels=Labels.of([name for _, name, _ in named], [held for _, _, held in named]),
        crops=Pictures(pixels=tuple(middles), seen=tuple(seen[count:])),
        looking=_looking(whiten, config, folder, progress) if looking else None,
    )


def _looking(
    whiten: Callable[[Tensor], Tensor],
    config: AblationConfig,
    folder: Path,
    progress: Callable[[], None],
) -> Looking:
    """The network's vectors come from `folder`, or go there; `whiten` makes channels of them."""
    rng = random.Random(1)
    gathered = _Gathered()
    asked = [("shape", SingleShape, "place"), ("counted", CountedShapes, "count")]
    sides = {"": _trained_sides(config), "larger": config.larger}
    groups = [(False, "", config.looking), (True, "", config.drawn_test),
              (True, "larger", config.larger_test)]  # fmt: skip
    for held, size, count in groups:
        for name, corpus, kind in asked:
            one = _One(corpus("held-out" if held else "train", sides[size]), kind, size or name)
            for index in range(count):
                gathered.add(one.example(index, rng), held, config)
    vectors = _vectors(gathered.pictures, folder / _LOOKING_FILE, progress)
    benchmark = benchmark_of(gathered.pictures, gathered.examples, config.looking_exam, rng)
    seen = tuple(whiten(vector) for vector in vectors)
    return Looking(benchmark=benchmark, pictures=Pictures(pixels=benchmark.pictures, seen=seen))


class _Gathered:
    """Pictures, and what is asked about them, by whether they are held out."""

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []
        self.examples: dict[bool, list[tuple[int, Example]]] = {False: [], True: []}

    def add(self, example: Example, held: bool, config: AblationConfig) -> int:
        """Take a picture, shrunk unless it is to be larger than the others; gives its number."""
        area = max(config.max_side, config.larger[1]) ** 2 if held else config.max_side**2
        if not example.kinds[0].startswith("larger/"):
            area = config.max_side**2
        number = len(self.pictures)
        self.pictures.append(np.asarray(limit_pixels(example.pictures[0], area)))
        self.examples[held].append((number, example))
        return number


def _photos(
    source: Source, label: str, where: dict[str, str], config: AblationConfig, gathered: _Gathered
) -> list[tuple[int, str, bool]]:
    """Add the photos with names; gives number, name, and whether it is held out, of each."""
    rows, _ = labelled(source, label, where)
    if len(rows) > config.photos:  # of each name the same share
        rows = rows[:: -(-len(rows) // config.photos)]
    named = []
    for index, name, held in rows:
        try:
            image = source[index].open()
        except ViqError:
            continue
        asked = [("photo/name", _NAME, name.replace("_", " "))]
        example = synthetic_example(f"photo:{index}", image, asked)
        named.append((gathered.add(example, held, config), name, held))
    if len({name for _, name, held in named if not held}) < 2:
        raise ViqError(
            f"{len(named)} photos with a frequent value of the column {label!r}: give --data "
            "photos of two names at least, and their column as --label"
        )
    return named


class _One:
    """Pictures of another corpus, asked one kind of question.

    Args:
        group: what the question is counted under; "larger" ones have drawings of their own.
    """

    length, samples = None, None

    def __init__(self, corpus: SingleShape | CountedShapes, kind: str, group: str) -> None:
        self.name, self._corpus = f"{group} {corpus.name}", corpus
        self._kind, self._group = kind, group

    def key(self, index: int) -> str:
        return f"{self.name}:{index}"

    def example(self, index: int, rng: random.Random) -> Example:
        first = 1 << 20 if self._group == "larger" else 0  # numbers that no other picture reaches
        found = self._corpus.example(index + first, rng)
        turns = found.chat.turns
        place = [kind.split("/")[1] for kind in found.kinds].index(self._kind)
        question, answer = turns[2 * place], turns[2 * place + 1]
        text = question.text.replace("<image>", "").strip()
        asked = [(f"{self._group}/{self._kind}", text, answer.text)]
        return synthetic_example(self.key(index), found.pictures[0], asked)


def _trained_sides(config: AblationConfig) -> tuple[int, int]:
    return config.max_side * 4 // 7, config.max_side


def _drawn(config: AblationConfig) -> dict[bool, list[tuple[Corpus, int]]]:
    """Corpora of drawn pictures and how many of each, by whether they are held out."""
    third, held, larger = config.drawn // 3, config.drawn_test, config.larger_test
    sides = _trained_sides(config)
    shapes, counted = (
        SingleShape("held-out", config.larger),
        CountedShapes("held-out", config.larger),
    )
    return {
        False: [
            (SingleShape("train", sides), third),
            (CountedShapes("train", sides), third),
            (ChartKinds("train"), third),
        ],
        True: [
            (SingleShape("held-out", sides), held),
            (CountedShapes("held-out", sides), held),
            (ChartKinds("held-out"), held),
            (_One(shapes, "place", "larger"), larger),
            (_One(counted, "count", "larger"), larger),
        ],
    }


def _middle(image: Image.Image) -> np.ndarray:
    side = min(_CROP, *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.convert("RGB").crop((left, top, left + side, top + side)))


# What the network sees


def _vectors(
    pictures: Sequence[np.ndarray], path: Path, progress: Callable[[], None]
) -> list[Tensor]:
    """Vectors (T, 320), fp16, of each picture."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(str(picture.shape).encode() + picture.tobytes())
    name, lengths = digest.hexdigest()[:16], [_patches(picture) for picture in pictures]
    if path.is_file():
        found = checkpoint.read_weights(path)
        if name in found and len(found[name]) == sum(lengths):
            return list(found[name].split(lengths))
    network = EfficientNetLite0.from_package()
    vectors = torch.cat([*_seen(network, pictures, progress)])
    checkpoint.write_weights(path, {name: vectors})
    return list(vectors.split(lengths))


def _patches(picture: np.ndarray) -> int:
    rows, cols = grid_of(picture.shape[:2])
    return rows * cols


@torch.inference_mode()
def _seen(
    network: EfficientNetLite0, pictures: Sequence[np.ndarray], progress: Callable[[], None]
) -> Iterator[Tensor]:
    for picture in pictures:
        rows, cols = grid_of(picture.shape[:2])
        image = F.interpolate(
            normalize(picture)[None], scale_factor=2, mode="bilinear", align_corners=False
        )
        missing = (0, 32 * cols - image.shape[3], 0, 32 * rows - image.shape[2])
        (found,) = network(F.pad(image, missing), (STRIDE_32,))
        progress()
        yield found[0].flatten(1).T.half()


def _directions(
    vectors: Sequence[Tensor], config: AblationConfig
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Maps of a picture's vectors: to its channels (T, F), fp16, and to its token (C,), fp32."""
    stride = -(-len(vectors) // _FITTED_TO)
    patches = torch.cat([vector.float() for vector in vectors[::stride]])
    center, axes = patches.mean(0), torch.linalg.svd(
        patches - patches.mean(0), full_matrices=False
    )  # fmt: skip
    count = min(config.seen, len(axes[1]))
    scales = (axes[1][:count] / len(patches) ** 0.5).clamp_min(1e-4)
    whiten = axes[2][:count].T / scales
    means = torch.stack([vector.float().mean(0) for vector in vectors])
    middle = means.mean(0)
    main = torch.linalg.svd(means - middle, full_matrices=False)[2][: config.width].T
    if main.shape[1] < config.width:  # of a few pictures
        main = F.pad(main, (0, config.width - main.shape[1]))
    return (
        lambda vector: ((vector.float() - center) @ whiten).half(),
        lambda vector: (vector.float().mean(0) - middle) @ main,
    )
