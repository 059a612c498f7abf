"""Complete configurations of multimodal language models: `viq train mllm NAME`.

`tiny` needs nothing but a CPU: pictures that the project draws, a language model from scratch.
`small` takes photos, too; `base` is that of the bundled `viq-transform-chat`, for a GPU; `finetune`
goes on from it, or from any other.
`qwen` is for Qwen2.5 of any size and your own data; `qwen-16k` packs longer sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from viq.core.files import DEFAULT_CHAT
from viq.data.batching.code_batches import CodeDataConfig
from viq.data.corpora.synthetic_config import SyntheticConfig
from viq.data.text.chat_format import ChatConfig
from viq.models.language.vision_language import AdapterConfig, LanguageConfig
from viq.train.loop import LoopConfig
from viq.train.mllm.recipe import MllmRecipe, MllmStage
from viq.train.optim import OptimConfig


def tiny() -> MllmRecipe:
    """A language model of 0.8M parameters from scratch, on the codes of 12,000 synthetic pictures
    of one or two shapes, with one question each: a model this small learns to look only where
    little stands between picture and answer.

    The projector goes ahead alone for a few steps, as in the larger recipes, though here the
    language model has little to say yet.
    """
    chat = ChatConfig(system="", max_length=768)
    rates = OptimConfig(learning_rate=1e-3, weight_decay=0.02, betas=(0.9, 0.98), min_lr_ratio=0.02)
    data = CodeDataConfig(tokens=1024, chat=chat)
    return MllmRecipe(
        name="tiny",
        # Higher rates and initial weights of 0.02 put it off (bench/learning_to_look.py).
        language=LanguageConfig(
            width=128, depth=3, heads=4, mlp_width=384, vocabulary=512, initializer_range=0.09
        ),
        image_positions=True,
        synthetic=SyntheticConfig(
            pictures=12_000, kinds={"plain": 1.0, "single": 1.0}, sides=(48, 80), questions=1
        ),
        stages=(
            MllmStage(
                name="1-projector",
                parts=("projector",),
                data=data,
                loop=LoopConfig(steps=40, losses={"text": 1.0}, optim=rates),
            ),
            MllmStage(
                name="2-answers",
                data=data,
                loop=LoopConfig(steps=3000, losses={"text": 1.0}, optim=rates, save_every=200),
            ),
        ),
    )


def small() -> MllmRecipe:
    """2.2M parameters, some three hours of a CPU: 56,572 synthetic pictures with up to six
    questions each, and stores of one's own.

    Pictures of a single shape are the easiest to learn from: nothing has to be found by its name
    first (docs/mllm.md).

    `viq train mllm small --codes STORE.. --synthetic`.
    """
    recipe = tiny()
    first, second = recipe.stages
    return replace(
        recipe,
        name="small",
        language=LanguageConfig(
            width=192, depth=4, heads=6, mlp_width=512, vocabulary=1024, initializer_range=0.07
        ),
        synthetic=SyntheticConfig(
            pictures=56_572,
            kinds={"plain": 3.5, "scene": 2.75, "chart": 1.25, "single": 3.5},
            sides=(48, 176),
            questions=6,
        ),
        stages=(
            first,
            replace(second, loop=replace(second.loop, steps=12_000)),
            replace(second, name="3-answers", loop=replace(second.loop, steps=15_000)),
        ),
    )


def base() -> MllmRecipe:
    """The bundled `viq-transform-chat`: 6.7M parameters, 60,000 synthetic pictures, and stores of
    one's own. Minutes of a GPU (`scripts/gpu_day.py --only chat`), many hours of a CPU.

    Steps are sixteen times as large as those of `small`, whose rate they have.
    """
    recipe = small()
    assert recipe.synthetic is not None
    first, second, _ = recipe.stages
    optim = replace(second.loop.optim, warmup_ratio=0.03, decay_ratio=0.6)
    return replace(
        recipe,
        name="base",
        language=LanguageConfig(
            width=256, depth=8, heads=8, mlp_width=704, vocabulary=1024, initializer_range=0.0625
        ),
        synthetic=replace(recipe.synthetic, pictures=60_000),
        stages=(
            first,
            replace(
                second,
                data=replace(second.data, gradient_accumulation=16),
                loop=replace(second.loop, steps=3200, ema_decay=0.999, optim=optim),
            ),
        ),
    )


def finetune() -> MllmRecipe:
    """A trained model goes on with data of one's own: `viq train mllm finetune --codes STORE`.

    Everything but the path from codes to features is trained, at a third of the rate that a model
    has from nothing. With `--synthetic` also on the pictures, of several shapes and of large print
    among others, with which the bundled model went on after `base`.
    """
    recipe = base()
    assert recipe.synthetic is not None
    stage = recipe.stages[-1]
    optim = OptimConfig(
        learning_rate=3e-4, weight_decay=0.02, betas=(0.9, 0.98), warmup_ratio=0.03,
        min_lr_ratio=0.02,
    )  # fmt: skip
    return replace(
        recipe,
        name="finetune",
        start=DEFAULT_CHAT,
        synthetic=replace(
            recipe.synthetic,
            pictures=66_000,
            kinds={"scene": 26, "plain": 12, "several": 12, "word": 10, "chart": 4, "single": 2},
            seed=1,
        ),
        stages=(
            replace(
                stage,
                name="1-answers",
                data=replace(stage.data, gradient_accumulation=4),
                loop=replace(stage.loop, steps=2000, ema_decay=0.998, optim=optim),
            ),
        ),
    )


def debug() -> MllmRecipe:
    """Every kind of stage in seconds: projector, adapters, everything."""
    recipe = tiny()
    chat = ChatConfig(system="", max_length=192)
    data = CodeDataConfig(gradient_accumulation=2, tokens=256, chat=chat)
    loop = replace(recipe.stages[0].loop, steps=4, log_every=1, eval_every=2, save_every=2)
    stages = (
        MllmStage(name="1-projector", parts=("projector",), data=data, loop=loop),
        MllmStage(
            name="2-adapters", adapter=AdapterConfig(rank=4, alpha=8), data=data, loop=loop
        ),
        MllmStage(
            name="3-all", parts=("embedder", "projector", "language"), data=data, loop=loop
        ),
    )  # fmt: skip
    return replace(
        recipe,
        name="debug",
        language=LanguageConfig(width=32, depth=2, heads=2, mlp_width=64, vocabulary=400),
        synthetic=SyntheticConfig(pictures=40, sides=(48, 96), questions=3),
        stages=stages,
    )


def qwen() -> MllmRecipe:
    """A Qwen2.5 on the codes of the paper's model, as LLaVA is trained: projector, then all.

    `viq train mllm qwen --codes STORE --tokenizer MODEL --language Qwen/Qwen2.5-1.5B`. Rates are
    those of LLaVA-OneVision's; `qwen-lora` takes adapters where memory is short.
    """
    data = CodeDataConfig(gradient_accumulation=32, tokens=4096)
    loop = LoopConfig(
        steps=2000,
        losses={"text": 1.0},
        optim=OptimConfig(learning_rate=1e-3, warmup_ratio=0.03, min_lr_ratio=0.0, weight_decay=0),
        save_every=200,
    )
    return MllmRecipe(
        name="qwen",
        language=LanguageConfig(name="Qwen/Qwen2.5-0.5B-Instruct"),
        stages=(
            MllmStage(
                name="1-projector",
                parts=("projector",),
                data=data,
                loop=loop,
                gradient_checkpointing=True,
            ),
            MllmStage(
                name="2-answers",
                parts=("embedder", "projector", "language"),
                data=data,
                loop=replace(
                    loop, steps=10_000, optim=replace(loop.optim, learning_rate=1e-5)
                ),
                gradient_checkpointing=True,
            ),
        ),
    )  # fmt: skip


def qwen_lora() -> MllmRecipe:
    """`qwen` with adapters of rank 64 in its second stage; the language model stays as it is."""
    recipe = qwen()
    first, second = recipe.stages
    second = replace(
        second,
        parts=("projector", "language"),
        adapter=AdapterConfig(dora=False, alpha=128),
        loop=replace(second.loop, optim=replace(second.loop.optim, learning_rate=1e-4)),
    )
    return replace(recipe, name="qwen-lora", stages=(first, second))


def qwen_16k() -> MllmRecipe:
    """`qwen` with sequences of 16,384 tokens, for large pictures and many in a conversation."""
    recipe = qwen()

    def longer(stage: MllmStage) -> MllmStage:
        chat = replace(stage.data.chat, max_length=16_384)
        return replace(
            stage, data=replace(stage.data, gradient_accumulation=8, tokens=16_384, chat=chat)
        )

    return replace(recipe, name="qwen-16k", stages=tuple(map(longer, recipe.stages)))


RECIPES: Mapping[str, Callable[[], MllmRecipe]] = {
    "tiny": tiny,
    "small": small,
    "base": base,
    "finetune": finetune,
    "debug": debug,
    "qwen": qwen,
    "qwen-lora": qwen_lora,
    "qwen-16k": qwen_16k,
}
