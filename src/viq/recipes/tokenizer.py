"""How tokenizers are trained: complete configurations.

`tiny` is the bundled model: from scratch on two CPU cores. `so400m` and `g` are the paper's, from
SigLIP2 and Qwen2.5, with the paper's stages; their weights can also come from `viq convert`. Every
recipe is plain data: `viq train NAME --print` shows it as JSON, `viq train FILE.json` runs it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from viq.data.batching.crops import CropConfig
from viq.data.batching.tokenizer_batches import DataConfig
from viq.data.text.chat_format import ChatConfig
from viq.models.language.vision_language import AdapterConfig, LanguageConfig
from viq.models.tokenizer.decoder import DecoderConfig
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.latent_head import LatentConfig
from viq.models.tokenizer.presets import g, so400m, tiny, transform
from viq.models.vision.tower import TowerConfig
from viq.train.entropy import TablesFitConfig
from viq.train.loop import LoopConfig
from viq.train.optim import OptimConfig
from viq.train.tokenizer.discriminator import DiscriminatorConfig
from viq.train.tokenizer.pool_fit import PoolFitConfig
from viq.train.tokenizer.recipe import Kind, StageConfig, TokenizerRecipe
from viq.train.tokenizer.refinement_fit import RefinementFitConfig
from viq.train.tokenizer.semantic_fit import SemanticFitConfig
from viq.train.tokenizer.transform_fit import TransformFitConfig

_SYNTHETIC = {"scene": 4.0, "word": 2.0, "chart": 1.0, "text": 1.0}
_CROPS = CropConfig(
    sides={3: 0.03, 8: 0.27, 12: 0.23, 16: 0.2, 24: 0.13, 32: 0.08, 44: 0.045, 64: 0.015},
    patches_per_group=256,
    patches_per_step=1024,
)


_SCRATCH = OptimConfig(learning_rate=1e-3, weight_decay=0.02, betas=(0.9, 0.99), warmup_ratio=0.05)
_BEGUN = replace(_SCRATCH, learning_rate=2e-4, new_module_lr=1e-3)  # of parts that can do something
_TALK = DataConfig(
    max_side=128,
    tokens=1024,
    patches=1536,
    chat=ChatConfig(system="", max_length=768),
    synthetic=_SYNTHETIC,
    synthetic_ratio=0.5,
)
_TALK_AND_CROPS = replace(_TALK, max_side=192, tokens=640, patches=1024, crops=_CROPS)
_MANY_CROPS = replace(_CROPS, patches_per_group=512, patches_per_step=2048)
_SMALL_CROPS = replace(_MANY_CROPS, sides={4: 0.1, 8: 1, 12: 1, 16: 0.6, 24: 0.3})
_DECODER_CROPS = CropConfig(
    sides={6: 0.2, 10: 1.0, 16: 0.3}, patches_per_group=400, patches_per_step=400
)
_ALIGN = {"text": 1.0, "distill": 1.0}
# The text loss has by far the smallest gradient in the encoder, that on pixels must not yield.
_ALIGN_AND_PAINT = {"text": 2.0, "distill": 0.5, "rmse": 5.0}


def train_tiny() -> TokenizerRecipe:
    """The bundled model: `viq train tiny --data PHOTOS --data PAIRS --out RUN`, about two hours.

    The stages of the paper at a thousandth of its size. The paper begins from SigLIP2; here a
    teacher and an encoder that knows details are trained first, from nothing (stages 0), and the
    rates after that are a few times the paper's. Begun from random weights, text alignment leaves
    an encoder that has lost the details of pictures and learns them again only slowly
    (docs/training.md). The loss on pixels stands for the paper's on VAE latents.
    """
    return TokenizerRecipe(
        name="tiny",
        model=tiny(),
        language=LanguageConfig(),
        tower=TowerConfig(
            name="tiny-teacher",
            side=96,
            encoder=EncoderConfig(width=192, depth=4, heads=3, mlp_width=768, position_grid=6),
        ),
        stages=(
            _teacher(),
            _detail_proximal(),
            _detail_fsq(),
            _align_small(),
            _align_large(),
            _proximal(),
            _fsq(),
            _decoder(),
        ),
    )


def _teacher() -> StageConfig:
    """A vision tower that tells which caption belongs to which picture."""
    return StageConfig(
        name="0-teacher",
        kind="tower",
        parts=(),
        data=replace(_TALK, patches=4096, synthetic_ratio=0.4, synthetic_sides=(96, 160)),
        loop=LoopConfig(steps=600, losses={"contrast": 1.0}, optim=_SCRATCH),
    )


def _detail_proximal() -> StageConfig:
    """Details of pictures, from nothing, with the bottleneck that is easier to begin with."""
    rates = replace(
        _SCRATCH, schedule="linear", warmup_ratio=0.25, decay_ratio=0.7, min_lr_ratio=0.0
    )
    return StageConfig(
        name="0-detail-proximal",
        bottleneck="proximal",
        data=DataConfig(crops=_SMALL_CROPS),
        loop=LoopConfig(steps=400, losses={"rmse": 1.0}, optim=rates),
    )


def _detail_fsq() -> StageConfig:
    """Details of pictures through codes: the longest stage."""
    rates = replace(
        _SCRATCH, learning_rate=2e-4, schedule="linear", decay_ratio=0.647, min_lr_ratio=0.0
    )
    return StageConfig(
        name="0-detail-fsq",
        bottleneck="fsq",
        data=DataConfig(crops=_MANY_CROPS),
        loop=LoopConfig(steps=1700, losses={"rmse": 1.0}, optim=rates),
    )


def _align_small() -> StageConfig:
    """Answers and distillation from the encoder's own tokens, on small pictures."""
    return StageConfig(
        name="1a-align",
        bottleneck="none",
        parts=("encoder", "pool", "reader"),
        new=("pool", "reader"),
        data=_TALK,
        loop=LoopConfig(
            steps=700,
            losses=_ALIGN,
            optim=replace(_BEGUN, learning_rate=1e-4, min_lr_ratio=1.0),
        ),
    )


def _align_large() -> StageConfig:
    """The same on larger pictures, with falling rates."""
    return replace(
        _align_small(),
        name="1b-align",
        data=replace(_TALK, max_side=224, patches=2048),
        loop=LoopConfig(
            steps=300,
            losses=_ALIGN,
            optim=replace(_BEGUN, learning_rate=1e-4, min_lr_ratio=0.5, warmup_ratio=0.0),
        ),
    )


def _proximal() -> StageConfig:
    """All losses, through the proximal bottleneck."""
    return StageConfig(
        name="2-1-proximal",
        bottleneck="proximal",
        new=("bottleneck", "reader"),
        data=_TALK_AND_CROPS,
        loop=LoopConfig(
            steps=250, losses=_ALIGN_AND_PAINT, optim=replace(_BEGUN, min_lr_ratio=0.4)
        ),
    )


def _fsq() -> StageConfig:
    """All losses, through the codes that the tokenizer keeps."""
    return StageConfig(
        name="2-2-fsq",
        bottleneck="fsq",
        new=("bottleneck", "reader"),
        data=_TALK_AND_CROPS,
        loop=LoopConfig(
            steps=700,
            losses=_ALIGN_AND_PAINT,
            optim=replace(_BEGUN, new_module_lr=5e-4, min_lr_ratio=0.0),
            ema_decay=0.99,
        ),
    )


def _decoder() -> StageConfig:
    """The pixel decoder, on frozen codes."""
    return StageConfig(
        name="3-decoder",
        kind="decoder",
        parts=("decoder",),
        perceptual="teacher",
        discriminator=DiscriminatorConfig(),
        data=DataConfig(crops=_CROPS),
        loop=LoopConfig(
            steps=250,
            losses={
                "rmse": 1.0,
                "perceptual": 0.02,
                "features": 0.02,
                "adversarial": 0.001,
                "discriminator": 1.0,
            },
            optim=replace(_SCRATCH, learning_rate=4e-4, min_lr_ratio=0.0),
            ema_decay=0.98,
        ),
    )


def train_transform() -> TokenizerRecipe:
    """A code fitted in closed form, a decoder that begins as its inverse, and what other numbers of
    codes than four and compression need: `viq train transform --data PHOTOS --data PAGES --out
    RUN`, an hour on one core.

    Pictures without text are taken for photos, those with text for pages.
    """
    rates = OptimConfig(
        learning_rate=1.2e-3, weight_decay=0.02, betas=(0.9, 0.99), warmup_ratio=0.03,
        min_lr_ratio=0.0,
    )  # fmt: skip
    return TokenizerRecipe(
        name="transform",
        model=transform(),
        stages=(
            _fitted(
                "1-code",
                "transform",
                fit=TransformFitConfig(),
                semantic=SemanticFitConfig(),
                pool=PoolFitConfig(),
            ),
            StageConfig(
                name="2-decoder",
                kind="decoder",
                bottleneck="transform",
                parts=("decoder",),
                data=DataConfig(crops=_DECODER_CROPS),
                loop=LoopConfig(steps=2000, losses={"rmse": 1.0}, optim=rates, eval_every=500),
            ),
            _fitted("3-refinement", "refinement", refinement=RefinementFitConfig()),
            _fitted("4-entropy", "entropy", entropy=TablesFitConfig()),
        ),
    )


def _fitted(name: str, kind: Kind, **how: Any) -> StageConfig:
    """A stage of a transform code that has no loop."""
    return StageConfig(
        name=name, kind=kind, bottleneck="transform", parts=(), data=DataConfig(),
        loop=LoopConfig(steps=1, losses={}), **how,
    )  # fmt: skip


def train_small() -> TokenizerRecipe:
    """The code of `transform`, and a decoder of 27M parameters in place of 0.5M, for one GPU: `viq
    train small --data PHOTOS --out RUN`.

    A decoder is no part of a tokenizer's fingerprint, so a better one reads the codes that there
    are. `scripts/gpu_day.py` trains it alone, on the bundled code, within minutes.
    """
    recipe = train_transform()
    fit, decoder, *last = recipe.stages
    crops = CropConfig(
        sides={10: 0.3, 16: 0.5, 24: 0.2}, patches_per_group=1024, patches_per_step=8192
    )
    rates = replace(decoder.loop.optim, learning_rate=6e-4, warmup_ratio=0.05)
    loop = replace(decoder.loop, steps=8000, optim=rates, ema_decay=0.998, log_every=50)
    return TokenizerRecipe(
        name="small",
        model=replace(
            recipe.model,
            name="viq-small",
            decoder=DecoderConfig(width=640, depth=8, mlp_ratio=4, refine_depth=4),
        ),
        stages=(fit, replace(decoder, data=DataConfig(crops=crops), loop=loop), *last),
    )


def train_debug() -> TokenizerRecipe:
    """All stages in seconds, for tests and first steps: a smaller model, a few steps each."""
    recipe = train_tiny()
    model = replace(
        recipe.model,
        name="viq-debug",
        encoder=EncoderConfig(width=32, depth=1, heads=2, mlp_width=64, position_grid=4),
        quantizer=replace(recipe.model.quantizer, heads=2, slot_attention_width=16),
        decoder=DecoderConfig(width=32, depth=1),
    )
    crops = CropConfig(sides={3: 1, 6: 1}, patches_per_group=32, patches_per_step=64)

    def short(stage: StageConfig) -> StageConfig:
        data = replace(
            stage.data,
            gradient_accumulation=2,
            tokens=256,
            patches=128,
            synthetic={"scene": 1.0},
            synthetic_sides=(48, 64),
            crops=stage.data.crops and crops,
        )
        loop = replace(stage.loop, steps=6, log_every=1, eval_every=3, save_every=3)
        judge = stage.discriminator and DiscriminatorConfig(width=8, depth=1)
        return replace(stage, data=data, loop=loop, discriminator=judge)

    assert recipe.tower is not None
    return replace(
        recipe,
        name="debug",
        model=model,
        language=LanguageConfig(width=32, depth=1, heads=2, mlp_width=64, vocabulary=400),
        tower=replace(recipe.tower, side=32, encoder=replace(model.encoder, position_grid=2)),
        stages=tuple(short(stage) for stage in recipe.stages),
    )


def train_g() -> TokenizerRecipe:
    """The paper's recipe: `viq train g --start SIGLIP2 --teacher SIGLIP2 --vae VAE --data ...`.

    Steps follow from the paper's tokens (3B, 3B, 1B, 30B) at 64 micro-batches of 4,096. Stage 1's
    rate is printed there as "2e-5 to 5e-5"; it is read as a fall to a tenth. The released recipe
    differs: one stage, 1e-4 for everything, 16k codes.
    """
    model = replace(g(), latents=LatentConfig())
    rates = OptimConfig(learning_rate=5e-5)
    data = DataConfig(
        gradient_accumulation=64, max_side=768, tokens=4096, patches=16384,
        synthetic=_SYNTHETIC, synthetic_ratio=0.1, synthetic_sides=(128, 768),
    )  # fmt: skip
    align = {"text": 1.0, "distill": 10.0}  # of the released code; the paper's are unpublished
    whole = {**align, "latents": 1.0}
    loop = LoopConfig(steps=11_444, losses=align, optim=rates, save_every=500, eval_every=500)
    parts = ("encoder", "pool", "reader")
    everything = ("encoder", "quantizer", "pool", "latent_head", "reader")
    return TokenizerRecipe(
        name="g",
        model=model,
        expects_start=True,
        language=LanguageConfig(
            name="Qwen/Qwen2.5-0.5B", adapter=AdapterConfig(), gradient_checkpointing=True
        ),
        stages=(
            StageConfig(
                name="1a-align",
                bottleneck="none",
                parts=parts,
                new=("reader",),
                data=replace(data, max_side=384, merge_size=4),
                loop=loop,
                gradient_checkpointing=True,
            ),
            StageConfig(
                name="1b-align",
                bottleneck="none",
                parts=parts,
                data=data,
                loop=loop,
                gradient_checkpointing=True,
            ),
            StageConfig(
                name="2-1-proximal",
                bottleneck="proximal",
                parts=everything,
                new=("quantizer", "latent_head"),
                data=data,
                loop=replace(
                    loop,
                    steps=3_815,
                    losses=whole,
                    optim=replace(rates, new_module_lr=1e-4),
                ),
                gradient_checkpointing=True,
            ),
            StageConfig(
                name="2-2-fsq",
                bottleneck="fsq",
                parts=everything,
                data=data,
                loop=replace(
                    loop, steps=114_441, losses=whole, optim=replace(rates, schedule="constant")
                ),
                gradient_checkpointing=True,
            ),
            StageConfig(
                name="3-decoder",
                kind="decoder",
                parts=("decoder",),
                perceptual="lpips",
                discriminator=DiscriminatorConfig(width=512, depth=4),
                data=replace(
                    data, synthetic={}, max_side=256, crops=replace(_CROPS, patches_per_step=16384)
                ),
                loop=LoopConfig(
                    steps=50_000,
                    losses={
                        "mse": 1.0,
                        "perceptual": 1.0,
                        "features": 1.5,
                        "adversarial": 0.1,
                        "discriminator": 1.0,
                    },
                    optim=OptimConfig(learning_rate=6e-4, schedule="constant", warmup_ratio=0.1),
                    ema_decay=0.999,
                    save_every=500,
                    eval_every=500,
                ),
            ),
        ),
    )


def train_so400m() -> TokenizerRecipe:
    """The same stages from the smaller SigLIP2 tower."""
    return replace(train_g(), name="so400m", model=replace(so400m(), latents=LatentConfig()))
