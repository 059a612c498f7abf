"""Ablations of the tokenizer recipe."""

from __future__ import annotations

from dataclasses import replace

from viq.data.batching.tokenizer_batches import DataConfig
from viq.data.text.chat_format import ChatConfig
from viq.models.language.vision_language import LanguageConfig
from viq.models.tokenizer.presets import tiny
from viq.models.tokenizer.quantizer import Limit
from viq.recipes.tokenizer import _CROPS, _SYNTHETIC
from viq.train.loop import LoopConfig
from viq.train.optim import OptimConfig
from viq.train.tokenizer.recipe import StageConfig, TokenizerRecipe


def ablation(
    *,
    text: bool = True,
    distill: bool = True,
    proximal: bool = True,
    limit: Limit = "linf",
    rope: bool = True,
) -> TokenizerRecipe:
    """The paper's stages in a quarter of an hour on one core, from random weights.

    One choice of the paper can be taken back; docs/training.md compares. Every variant sees as
    many pictures in as many steps. Without a text loss, stage 1 has nothing to learn from, so its
    steps go to reconstruction; without the proximal stage, its steps go to FSQ. Give all of them
    the same teacher (`--teacher`).
    """
    optim = OptimConfig(learning_rate=1e-3, weight_decay=0.02, betas=(0.9, 0.99), min_lr_ratio=1.0)
    chat = ChatConfig(system="", max_length=768)
    talk = DataConfig(max_side=128, patches=1536, chat=chat, synthetic=_SYNTHETIC)
    # About as many patches a step for every variant: conversations bring some 320 of them.
    crops = replace(_CROPS, patches_per_step=640 if text else 960)
    both = replace(talk, tokens=640, patches=1024, crops=crops)
    losses = {"text": 1.0, "distill": 1.0, "rmse": 2.0}
    if not text:
        del losses["text"]
    if not distill:
        del losses["distill"]
    first, second, third = 400, 150, 300
    align = StageConfig(
        name="1a-align",
        bottleneck="none",
        parts=("encoder", "pool", "reader"),
        data=talk,
        loop=LoopConfig(
            steps=first,
            losses={k: v for k, v in losses.items() if k != "rmse"},
            optim=optim,
            save_every=100,
        ),
    )
    begin = StageConfig(
        name="2-1-proximal",
        bottleneck="proximal",
        new=("quantizer", "decoder"),
        data=both,
        loop=LoopConfig(
            steps=second if text else first + second,
            losses=losses,
            optim=replace(optim, learning_rate=5e-4, new_module_lr=1e-3, min_lr_ratio=0.4),
            save_every=100,
        ),
    )
    end = StageConfig(
        name="2-2-fsq",
        bottleneck="fsq",
        data=both,
        loop=LoopConfig(
            steps=third if proximal else second + third,
            losses=losses,
            optim=replace(optim, learning_rate=4e-4, min_lr_ratio=0.0),
            ema_decay=0.99,
            save_every=100,
        ),
    )
    model = tiny()
    quantizer = replace(
        model.quantizer,
        proximal_limit=limit,
        rope_angle_dtype="float32" if rope else "none",
    )
    return TokenizerRecipe(
        name="ablation",
        model=replace(model, quantizer=quantizer),
        language=LanguageConfig(),
        stages=(*([align] if text else []), *([begin] if proximal else []), end),
    )
