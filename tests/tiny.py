"""A tokenizer of a few thousand parameters, with random weights, for tests."""

from dataclasses import replace

from viq.models.tokenizer import TokenizerConfig, VisualTokenizer
from viq.recipes import train_debug
from viq.train.stages import begin


def config(**changes: object) -> TokenizerConfig:
    return replace(train_debug().model, **changes)  # type: ignore[arg-type]


def tokenizer(bottleneck: str = "fsq", seed: int = 0, **changes: object) -> VisualTokenizer:
    return begin(config(**changes), bottleneck, None, seed).requires_grad_(False).eval()
