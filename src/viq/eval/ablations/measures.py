"""Outcome measures of a trained arm; scores are of pictures that it was not trained on.

`probe_names`  photos named by a linear classifier on the mean and deviation of whitened features
`reader`       answers of the small language model that the arm was trained with: mean over kinds of
               question (`READER_KINDS`), each of which is also there
`understanding`    mean of these two
`place_and_count`  mean of these two kinds, on pictures of trained sizes and on larger ones
`looked`       mean of these two on pictures of trained sizes, by a reader that is trained anew on
               the codes' features of other pictures
`kodak_db`     PSNR of the middle 256 px of the Kodak pictures, painted by a linear map of the
               features of 3 x 3 patches, fitted to training pictures by least squares
`perplexity`, `used`   of the codes of all these and the training pictures: perplexity, and how
               many codes occur

T = patches of all pictures, C = width of features, D = values per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.core.types import Grid, grid_of
from viq.eval.ablations.arms import AblationConfig
from viq.eval.ablations.material import Looking, Material, Pictures
from viq.eval.ablations.model import SeenBatch, batch_of, code_ids
from viq.eval.probes.benchmark import ProbeBenchmark, ProbeConfig
from viq.eval.probes.classifiers import mean_and_deviation, whitened
from viq.eval.probes.understanding import score_reader, train_probe
from viq.image.patches import denormalize, lengths_of, normalize, patchify, unpatchify
from viq.metrics.codebook import code_use
from viq.metrics.images import psnr
from viq.models.language.projector import Whitener
from viq.models.language.vision_language import VisionLanguageModel
from viq.models.tokenizer.tokenizer import VisualTokenizer

READER_KINDS = {
    "name": "photo/name", "colour": "shape/color", "shape": "shape/shape", "place": "shape/place",
    "background": "shape/background", "count": "counted/count", "chart": "chart/kind",
}  # fmt: skip
LOOKED = {
    "place, fresh reader": "shape/place", "count, fresh reader": "counted/count",
    "place, larger, fresh reader": "larger/place", "count, larger, fresh reader": "larger/count",
}  # fmt: skip
LARGER = {"place, larger": "larger/place", "count, larger": "larger/count"}
_GROUP = 48  # pictures a pass
_FITTED_TO = 500  # pictures a whitener or a linear map to pixels is fitted to
_RIDGE = 1e-3  # of the linear map to pixels, times the number of patches


@torch.inference_mode()
def features_of(pictures: Pictures, give: Callable[[SeenBatch], Tensor]) -> tuple[Tensor, ...]:
    """Features (patches, C), fp32, of each picture.

    Args:
        give: features of packed pictures.
    """
    found: list[Tensor] = []
    for start in range(0, len(pictures.pixels), _GROUP):
        batch = batch_of(pictures, range(start, min(start + _GROUP, len(pictures.pixels))))
        found += [part.float().clone() for part in give(batch).split(lengths_of(batch.grids_hw))]
    return tuple(found)


def measure(
    tokenizer: VisualTokenizer,
    reader: VisionLanguageModel,
    material: Material,
    config: AblationConfig,
) -> dict[str, float]:
    """All measures by name: percent, dB, or codes.

    Args:
        reader: what the arm's text loss was of.
    """
    ids: list[Tensor] = []

    def features(batch: SeenBatch) -> Tensor:
        return tokenizer(batch).features_TC

    def counted(batch: SeenBatch) -> Tensor:
        output = tokenizer(batch)
        ids.append(code_ids(tokenizer, output.z_TSd))
        return output.features_TC

    found = features_of(material.pictures, counted)
    names = probe_names(found, material)
    white = whitener_of(found, material.benchmark)
    clear = tuple(white(feature) for feature in found)
    score = score_reader(
        reader.eval(), material.benchmark.test,
        lambda numbers: torch.cat([found[number] for number in numbers]), _grids(material),
    )  # fmt: skip
    answers = _by_kind(score)
    painted = [white(feature) for feature in features_of(material.crops, features)]
    sized = [answers[kind] for kind in ("place", "count", *LARGER)]
    return {
        "understanding": fmean([names, answers["reader"]]),
        "probe_names": names,
        **answers,
        "place_and_count": fmean(sized),
        "kodak_db": linear_psnr(clear, painted, material),
        **_use(ids, config),
    }


def whitener_of(features: Sequence[Tensor], benchmark: ProbeBenchmark) -> Whitener:
    """Fitted to the features of training pictures."""
    trained = [question.picture for question in benchmark.train]
    whitener = Whitener(features[0].shape[1])
    whitener.fit(torch.cat([features[number] for number in trained[:: _stride(trained)]]))
    return whitener


def _stride(numbers: Sequence[int]) -> int:
    return -(-len(numbers) // _FITTED_TO)


def exam(
    features: Sequence[Tensor], material: Material, config: AblationConfig, seed: int
) -> dict[str, float]:
    """Right answers in percent, by kind of question, of a reader that is trained anew.

    Args:
        features: whitened, of every picture.
    """
    return _by_kind(_read(features, material, config.exam, seed))


def look(
    tokenizer: VisualTokenizer, looking: Looking, config: AblationConfig, seed: int
) -> dict[str, float]:
    """Right answers in percent about places and numbers (`LOOKED`), of a reader that is trained
    anew on whitened features of codes and told where its tokens lie; and `looked`."""
    found = features_of(looking.pictures, lambda batch: tokenizer(batch).features_TC)
    white = whitener_of(found, looking.benchmark)
    score = _read([white(feature) for feature in found], looking, config.looking_exam, seed)
    answers = {name: score.get(kind, 0.0) for name, kind in LOOKED.items()}
    return {"looked": fmean([*answers.values()][:2]), **answers}


def _read(
    features: Sequence[Tensor], about: Material | Looking, config: ProbeConfig, seed: int
) -> dict[str, float]:
    """Score of a reader that is trained anew on features of every picture, by kind."""
    return train_probe(
        replace(about.benchmark, pictures=()),
        lambda numbers: torch.cat([features[number] for number in numbers]),
        features[0].shape[1],
        _grids(about),
        config,
        seed,
        lambda step: None,
    )


def _grids(about: Material | Looking) -> list[Grid]:
    return [grid_of(picture.shape[:2]) for picture in about.benchmark.pictures]


def _by_kind(score: Mapping[str, float]) -> dict[str, float]:
    """`reader`, the mean over `READER_KINDS`; these, and those of larger pictures."""
    answers = {name: score.get(kind, 0.0) for name, kind in {**READER_KINDS, **LARGER}.items()}
    return {"reader": fmean(answers[kind] for kind in READER_KINDS), **answers}


def probe_names(features: Sequence[Tensor], material: Material) -> float:
    """Held-out photos named, percent."""
    vectors = torch.stack([mean_and_deviation(features[number]) for number in material.named])
    white = whitened(vectors, ~material.labels.held_n)
    return material.labels.score(white)["percent"]


def _use(ids: Sequence[Tensor], config: AblationConfig) -> dict[str, float]:
    record = code_use([part.numpy() for part in ids], config.levels)
    return {"perplexity": record["perplexity"], "used": float(record["used"])}


# Pixels from features


def linear_psnr(
    features: Sequence[Tensor], of_crops: Sequence[Tensor], material: Material
) -> float:
    """Mean PSNR in dB of the crops, painted by the best linear map.

    Args:
        features, of_crops: whitened, of every picture and every crop.
    """
    trained = [question.picture for question in material.benchmark.train]
    chosen = trained[:: _stride(trained)]
    pictures = [material.pictures.pixels[number] for number in chosen]
    grids = [grid_of(picture.shape[:2]) for picture in pictures]
    x = torch.cat([_with_neighbours(features[n], g) for n, g in zip(chosen, grids, strict=True)])
    y = torch.cat([patchify(normalize(p), pad_mode="replicate") for p in pictures])
    gram = (x.T @ x).double()
    gram.diagonal().add_(_RIDGE * len(x))
    weight = torch.linalg.solve(gram, (x.T @ y).double()).float()
    found = []
    for picture, feature in zip(material.crops.pixels, of_crops, strict=True):
        size = picture.shape[:2]
        painted = unpatchify(_with_neighbours(feature, grid_of(size)) @ weight, size)
        found.append(psnr(picture, denormalize(painted).numpy()))
    return fmean(found)


def _with_neighbours(features_TC: Tensor, grid: Grid) -> Tensor:
    """Features of each patch and its eight neighbours, and a one: (T, 9C + 1)."""
    rows, cols = grid
    image = features_TC.T.reshape(1, -1, rows, cols)
    around = F.unfold(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3)[0].T
    return torch.cat([around, around.new_ones(len(around), 1)], dim=1)
