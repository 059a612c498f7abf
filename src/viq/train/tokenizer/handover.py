"""What a stage begins from (the stage before, SigLIP2, nothing), and what it leaves frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from viq.models.language.vision_language import VisionLanguageModel
from viq.models.tokenizer.tokenizer import TokenizerConfig, VisualTokenizer
from viq.train.tokenizer.init import initialize
from viq.train.tokenizer.recipe import PREFIXES, StageConfig
from viq.weights import checkpoint
from viq.weights.verify import verify_own

_SIGLIP = ("encoder.", "pool_norm.", "pool_head.")  # what SigLIP2 has of a tokenizer


def frozen_but(objective: nn.Module, stage: StageConfig) -> None:
    """Require gradients for the parts of a stage alone. Adapters keep their base frozen."""
    prefixes = tuple(PREFIXES[part] for part in stage.parts)
    for name, parameter in objective.named_parameters():
        if name.startswith("tokenizer."):
            parameter.requires_grad_(name.startswith(prefixes))
        elif name.startswith("teacher."):
            parameter.requires_grad_(False)
        elif name.startswith("reader.") and not name.startswith(prefixes):
            parameter.requires_grad_(False)


def begin(
    config: TokenizerConfig,
    bottleneck: str,
    previous: VisualTokenizer | None,
    seed: int,
    make: Callable[[TokenizerConfig], VisualTokenizer] = VisualTokenizer,
) -> VisualTokenizer:
    """A model with this bottleneck; every other part starts from the previous stage, if any.

    Args:
        make: gives a model of a config, with initial weights of any kind.
    """
    torch.manual_seed(seed)
    quantizer = replace(config.quantizer, bottleneck=bottleneck)
    model = make(replace(config, quantizer=quantizer))
    if config.quantizer.transform is None:  # else its parts know how they begin
        initialize(model)
    if previous is not None:
        fresh = PREFIXES["bottleneck"].removeprefix("tokenizer.")
        same = previous.config.quantizer.bottleneck == bottleneck
        kept = {k: v for k, v in previous.state_dict().items() if same or not k.startswith(fresh)}
        rest = {k: v for k, v in model.state_dict().items() if k not in kept}
        checkpoint.load_strictly(model, kept | rest, "previous stage")
    return model.requires_grad_(True)


def start_encoder(tokenizer: VisualTokenizer, source: str) -> None:
    """Begin encoder and pooling head from SigLIP2, resampled to this model's position grid."""
    from viq.models.vision.siglip import student_weights

    side = tokenizer.config.encoder.position_grid
    found: Mapping[str, Tensor] = student_weights(source, side)
    own = {k: v for k, v in tokenizer.state_dict().items() if not k.startswith(_SIGLIP)}
    checkpoint.load_strictly(tokenizer, own | dict(found), source)
    tokenizer.requires_grad_(True)


def load_reader(reader: VisionLanguageModel, path: Path) -> None:
    """Load what a stage trained of projector and language model."""
    given = checkpoint.shapes_in(path)
    wanted = {n: p for n, p in reader.named_parameters() if n in given}
    wrong = given.keys() - wanted.keys() | {n for n, p in wanted.items() if p.shape != given[n]}
    if wrong:
        raise checkpoint.CheckpointError(
            f"{path}: made with another language model or adapter (for example {min(wrong)})"
        )
    verify_own(path)
    weights = checkpoint.read_weights(path)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
