"""Complete configurations: the shapes of the models, and how the bundled one is trained.

`tiny` is the bundled model: from scratch on two CPU cores. `so400m` and `g` are the shapes of
the paper; their weights come from `viq convert`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from viq.data.crops import CropConfig
from viq.models.decoder import DecoderConfig
from viq.models.encoder import EncoderConfig
from viq.models.quantizer import QuantizerConfig
from viq.models.tokenizer import TokenizerConfig
from viq.train.loop import StageConfig


def tiny() -> TokenizerConfig:
    """6.45M parameters, 64,000 codes; 12.9 MB in half precision."""
    return TokenizerConfig(
        name="viq-tiny",
        encoder=EncoderConfig(width=192, depth=4, heads=3, mlp_width=768, position_grid=16),
        quantizer=QuantizerConfig(
            proximal_width=32,
            heads=3,
            pre_depth=1,
            slot_depth=1,
            slot_attention_width=64,
            slot_mlp_ratio=1,
            post_depth=1,
        ),
        decoder=DecoderConfig(width=192, depth=5),
        tile=1024,
    )


def so400m() -> TokenizerConfig:
    """The encoder of SigLIP2-so400m with ViQ's quantizer and our pixel decoder."""
    return TokenizerConfig(
        name="viq-so400m",
        encoder=EncoderConfig(width=1152, depth=27, heads=16, mlp_width=4304),
        quantizer=QuantizerConfig(),
        decoder=DecoderConfig(width=768, depth=12),
        tile=2048,
    )


def g() -> TokenizerConfig:
    """The paper's model: the encoder of SigLIP2-g with ViQ's quantizer and our pixel decoder."""
    return TokenizerConfig(
        name="viq-g",
        encoder=EncoderConfig(width=1536, depth=40, heads=16, mlp_width=6144),
        quantizer=QuantizerConfig(),
        decoder=DecoderConfig(width=1024, depth=12),
        tile=2048,
    )


MODELS = {"tiny": tiny, "so400m": so400m, "g": g}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a tokenizer is trained: a model and its stages, each starting from the one before."""

    model: TokenizerConfig
    stages: tuple[StageConfig, ...]  # the name of a stage is the bottleneck it trains
    seed: int = 0


def train_tiny() -> Recipe:
    """The bundled model: `viq train tiny --data PHOTOS --out RUN`.

    Stage 2-1 learns to see and to draw through the wide proximal bottleneck, on small crops;
    stage 2-2 replaces the bottleneck by FSQ and meets every size up to that of a tile.
    """
    small = CropConfig(sides={4: 0.1, 8: 1, 12: 1, 16: 0.6, 24: 0.3})
    every = CropConfig(
        sides={3: 0.03, 8: 0.27, 12: 0.23, 16: 0.2, 24: 0.13, 32: 0.08, 44: 0.045, 64: 0.015}
    )
    return Recipe(
        model=tiny(),
        stages=(
            StageConfig(name="proximal", steps=400, crops=small, learning_rate=1e-3),
            StageConfig(name="fsq", steps=1700, crops=every, learning_rate=2e-4, decay_share=0.647),
        ),
    )


def train_debug() -> Recipe:
    """The same path in seconds, for tests: a smaller model, a few steps."""
    recipe = train_tiny()
    model = replace(
        recipe.model,
        name="viq-debug",
        encoder=EncoderConfig(width=32, depth=1, heads=2, mlp_width=64, position_grid=4),
        quantizer=replace(recipe.model.quantizer, heads=2, slot_attention_width=16),
        decoder=DecoderConfig(width=32, depth=1),
    )
    crops = CropConfig(sides={3: 1, 6: 1}, patches_per_group=32, patches_per_step=64)
    common = {"steps": 6, "crops": crops, "log_every": 2, "save_every": 3, "warmup_steps": 2}
    return replace(
        recipe,
        model=model,
        stages=(StageConfig(name="proximal", **common), StageConfig(name="fsq", **common)),
    )


RECIPES = {"tiny": train_tiny, "debug": train_debug}
