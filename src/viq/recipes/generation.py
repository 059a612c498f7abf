"""Complete configurations of models that draw: `viq train generation NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from viq.models.language.vision_language import LanguageConfig
from viq.train.generation.recipe import GenerationRecipe
from viq.train.loop import LoopConfig
from viq.train.optim import OptimConfig


def tiny() -> GenerationRecipe:
    """2.3M parameters from scratch, pictures of 96x96 px with one or two shapes: about fifteen
    minutes on one core, no download."""
    rates = OptimConfig(
        learning_rate=1.5e-3, weight_decay=0.02, betas=(0.9, 0.98), min_lr_ratio=0.02
    )
    return GenerationRecipe(
        name="tiny",
        language=LanguageConfig(width=192, depth=4, heads=3, mlp_width=512, vocabulary=512),
        loop=LoopConfig(
            steps=1500,
            losses={"next": 1.0},
            optim=rates,
            ema_decay=0.99,
            log_every=20,
            eval_every=500,
            save_every=100,
        ),
    )


def transform() -> GenerationRecipe:
    """2.6M parameters from scratch on codes of `viq-transform`, the same pictures as `tiny`, drawn
    and encoded as it trains: about an hour on one core, no download."""
    recipe = tiny()
    rates = replace(recipe.loop.optim, learning_rate=1e-3, warmup_ratio=0.015, decay_ratio=0.4)
    loop = replace(
        recipe.loop, steps=9000, optim=rates, log_every=10, eval_every=200, save_every=25
    )
    return replace(
        recipe,
        name="transform",
        language=replace(recipe.language, initializer_range=0.07),
        tokenizer="viq-transform",
        uses=2,
        samples=16,
        caption_ratio=0.2,
        loop=loop,
    )


def base() -> GenerationRecipe:
    """12.5M parameters from scratch on codes of `viq-transform`, 75,000 pictures encoded first.
    Minutes of a GPU (`scripts/gpu_day.py --only draw`), a day of a CPU."""
    recipe = transform()
    optim = replace(recipe.loop.optim, warmup_ratio=0.03, decay_ratio=0.5)
    return replace(
        recipe,
        name="base",
        language=LanguageConfig(width=384, depth=6, heads=6, mlp_width=1024, vocabulary=512),
        head_width=256,
        uses=0,
        pictures=75_000,
        samples=128,
        loop=replace(recipe.loop, steps=2500, ema_decay=0.999, optim=optim),
    )


def debug() -> GenerationRecipe:
    """The whole path in seconds, for tests and first steps."""
    recipe = tiny()
    loop = replace(recipe.loop, steps=6, ema_decay=0.5, log_every=1, eval_every=3, save_every=3)
    return replace(
        recipe,
        name="debug",
        language=LanguageConfig(width=32, depth=1, heads=2, mlp_width=64, vocabulary=400),
        head_width=16,
        pictures=24,
        size=(48, 32),
        samples=4,
        loop=loop,
    )


def qwen() -> GenerationRecipe:
    """Qwen2.5-0.5B, all of it trained, for `--codes FILE --tokenizer NAME`."""
    return GenerationRecipe(
        name="qwen",
        language=LanguageConfig(name="Qwen/Qwen2.5-0.5B"),
        head_width=512,
        samples=16,
        gradient_accumulation=8,
        loop=LoopConfig(
            steps=20_000,
            losses={"next": 1.0},
            optim=OptimConfig(learning_rate=1e-4, betas=(0.9, 0.98)),
            ema_decay=0.999,
            save_every=500,
            eval_every=500,
        ),
    )


RECIPES: Mapping[str, Callable[[], GenerationRecipe]] = {
    "tiny": tiny,
    "transform": transform,
    "base": base,
    "debug": debug,
    "qwen": qwen,
}
