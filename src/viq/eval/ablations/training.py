"""Train an arm, stage by stage; stages that arms share are trained once a seed.

A stage is a function of the seed and of what the arm says up to it, so two arms that agree up to
there have the same weights, and one of them reads what the other has left:
FOLDER/STAGE-DIGEST.safetensors, written whole or not at all.

C = width of features.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from viq.data.batching.tokenizer_batches import MicroBatch
from viq.eval.ablations.arms import AblationConfig, Arm
from viq.eval.ablations.material import Material
from viq.eval.ablations.model import ArmObjective, batch_of, make, micro_batch
from viq.models.language.projector import Whitener
from viq.models.language.vision_language import VisionLanguageModel, build_language
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.train.in_memory import cosine_loop, train_in_memory
from viq.train.tokenizer.handover import begin
from viq.train.tokenizer.init import fit_fsq, fit_simvq
from viq.weights import checkpoint

_FITTED_TO = 96  # pictures that a whitener and the beginning of codes are fitted to
_GROUP = 24  # of them in one pass
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of an arm.

    Attributes:
        choices: of the arm, those that this stage or an earlier one obeys.
    """

    name: str
    bottleneck: Literal["none", "proximal", "fsq"]
    steps: int
    losses: dict[str, float]
    choices: tuple[tuple[str, Any], ...]


def stages_of(arm: Arm, config: AblationConfig) -> list[Stage]:
    """Alignment, the proximal stage unless the arm leaves it out, and codes."""
    said = asdict(arm)
    first, whole = dict(config.losses), dict(config.losses)
    del first["rmse"]
    for losses in (first, whole):
        if not arm.distill:
            del losses["distill"]
    if not arm.reconstruct:
        del whole["rmse"]
    if arm.quantizer == "simvq":
        last = {**whole, "commit": 1.0}
    else:
        last = whole
    steps = {"proximal": config.proximal, "fsq": config.codes}
    if not arm.proximal:
        steps = {"proximal": 0, "fsq": config.proximal + config.codes}

    def stage(name: str, bottleneck: Any, count: int, losses: Any, choices: list[str]) -> Stage:
        kept = tuple((choice, said[choice]) for choice in choices)
        return Stage(name=name, bottleneck=bottleneck, steps=count, losses=losses, choices=kept)

    found = [
        stage("1-align", "none", config.align, first, ["distill"]),
        stage("2-1-proximal", "proximal", steps["proximal"], whole,
              ["distill", "reconstruct", "bound"]),
        stage("2-2-codes", "fsq", steps["fsq"], last,
              ["distill", "reconstruct", "bound", "proximal", "quantizer", "rope"]),
    ]  # fmt: skip
    return [stage for stage in found if stage.steps]


def train_arm(
    arm: Arm, seed: int, material: Material, config: AblationConfig, folder: Path, report: Report
) -> tuple[VisualTokenizer, VisionLanguageModel]:
    """Tokenizer and reader after the last stage, frozen, in eval mode.

    Stages in `folder` are not trained again.

    Args:
        report: called with records of the training loop.
    """
    previous: VisualTokenizer | None = None
    reader = _reader(material, config, seed)
    for number, stage in enumerate(stages_of(arm, config)):
        path = folder / f"{stage.name}-{_digest(stage)}.safetensors"
        tokenizer = _begun(stage, previous, material, config, 1000 * seed + number)
        both = torch.nn.ModuleDict({"tokenizer": tokenizer, "reader": reader})
        if path.is_file():
            _load(both, path)
        else:
            _train(tokenizer, reader, stage, material, config, 1000 * seed + number, report)
            checkpoint.write_weights(path, _state(both))
        previous = tokenizer.eval()
    assert previous is not None
    return previous.requires_grad_(False), reader.requires_grad_(False).eval()


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, of tied ones the first: the language model's embeddings are."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def _load(module: torch.nn.Module, path: Path) -> None:
    found, own = checkpoint.read_weights(path), _state(module)
    if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in own.items()}:
        raise checkpoint.CheckpointError(f"{path}: is of another arm or release; remove it")
    for name, tensor in own.items():
        tensor.copy_(found[name])


def _digest(stage: Stage) -> str:
    return hashlib.sha256(json.dumps(asdict(stage), sort_keys=True).encode()).hexdigest()[:8]


def _reader(material: Material, config: AblationConfig, seed: int) -> VisionLanguageModel:
    torch.manual_seed(seed)
    language = build_language(config.language, material.benchmark.vocabulary)
    return VisionLanguageModel(language, config.width, whiten=True)


def _begun(
    stage: Stage,
    previous: VisualTokenizer | None,
    material: Material,
    config: AblationConfig,
    seed: int,
) -> VisualTokenizer:
    """The tokenizer before the first step of a stage."""
    kind: Literal["proximal", "fsq"] = "proximal" if stage.bottleneck == "proximal" else "fsq"
    arm = Arm(name=stage.name, **dict(stage.choices))  # as far as the stage obeys one
    seen = material.pictures.seen[0].shape[1]
    shape = config.model(arm, kind)
    tokenizer = begin(shape, kind, previous, seed, partial(_made, arm, seen))
    if previous is not None and previous.config.quantizer.bottleneck == "proximal":
        fit = fit_simvq if arm.quantizer == "simvq" else fit_fsq
        fit(tokenizer, previous, _first_batches(material))
    return tokenizer


def _made(arm: Arm, seen: int, config: Any) -> VisualTokenizer:
    return make(arm, config, seen)


def _first_batches(material: Material) -> list[Any]:
    numbers = [question.picture for question in material.benchmark.train]
    chosen = numbers[:: max(1, len(numbers) // _FITTED_TO)]
    groups = (chosen[start : start + _GROUP] for start in range(0, len(chosen), _GROUP))
    return [batch_of(material.pictures, group) for group in groups]


def _train(
    tokenizer: VisualTokenizer,
    reader: VisionLanguageModel,
    stage: Stage,
    material: Material,
    config: AblationConfig,
    seed: int,
    report: Report,
) -> None:
    """Train a stage in place."""
    reads_codes = stage.bottleneck != "none"
    _whiten(tokenizer, reader, material, reads_codes)
    objective = ArmObjective(
        tokenizer, bottleneck=reads_codes, reader=reader, reconstruct="rmse" in stage.losses
    )
    tokenizer.requires_grad_(True)
    loop = cosine_loop(
        stage.steps, stage.losses, config.learning_rate, warmup_ratio=0.05, weight_decay=0.02,
        records=5,
    )  # fmt: skip
    batches = _batches(material, config, seed, distill="distill" in stage.losses)
    train_in_memory(objective, batches, loop, name=stage.name, seed=seed, log=report)


@torch.no_grad()
def _whiten(
    tokenizer: VisualTokenizer, reader: VisionLanguageModel, material: Material, reads_codes: bool
) -> None:
    """Fit the reader's whitener to what the stage begins with: features lie almost on a line."""
    found = []
    for batch in _first_batches(material):
        features = tokenizer(batch).features_TC if reads_codes else tokenizer.encoder(batch)
        found.append(features)
    whitener = reader.projector.whitener
    assert isinstance(whitener, Whitener)
    whitener.fit(torch.cat(found))


def _batches(
    material: Material, config: AblationConfig, seed: int, *, distill: bool
) -> Iterator[MicroBatch]:
    """Endless: half photos, half drawn pictures, each shuffled anew in every round."""
    rng = random.Random(seed)
    photos = set(material.named)
    kinds = [[], []]
    for question in material.benchmark.train:
        kinds[question.picture in photos].append(question)
    half = config.pictures_a_step // 2
    streams = [_shuffled(kind, rng) for kind in kinds]
    taught = material.taught_nC if distill else None
    while True:
        questions = [next(stream) for stream in streams for _ in range(half)]
        yield micro_batch(material.pictures, questions, taught)


def _shuffled(items: list[Any], rng: random.Random) -> Iterator[Any]:
    while True:
        yield from rng.sample(items, len(items))
