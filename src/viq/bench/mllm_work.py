"""What the speed table is measured on: language models and towers in their published shapes, or
scaled down alike, with random weights, and sequences packed exactly full.

L = tokens of a packed sequence, T = patches of its images, S = 4 slots, D = values of a patch,
A = scored.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from viq.core.errors import require
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, Grid, ViqError, language_tokens
from viq.image.patches import PatchBatch, lengths_of
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.tokenizer import TokenizerConfig

LENGTHS = {"1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192, "16k": 16384, "32k": 32768}


@dataclass(frozen=True, kw_only=True)
class LanguageShape:
    """A Qwen2.5 language model, as its published config.json has it."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocabulary: int = 151_936
    tied: bool = True  # input and output embeddings are one


LANGUAGES = {
    "0.5b": LanguageShape(width=896, depth=24, heads=14, kv_heads=2, mlp_width=4864),
    "1.5b": LanguageShape(width=1536, depth=28, heads=12, kv_heads=2, mlp_width=8960),
    "3b": LanguageShape(width=2048, depth=36, heads=16, kv_heads=2, mlp_width=11_008),
    "7b": LanguageShape(width=3584, depth=28, heads=28, kv_heads=4, mlp_width=18_944,
                        vocabulary=152_064, tied=False),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the published numbers are divided by.

    With a vocabulary divided by `width * depth`, layers and output head shrink alike, and so do
    language models and towers; an image of a sixteenth of the area keeps its share of a sequence
    of a sixteenth of the tokens.
    """

    width: int = 1  # all widths, those of attention heads too
    depth: int = 1
    length: int = 1  # tokens
    side: int = 1  # of images


REAL, SCALED = Scale(), Scale(width=8, depth=4, length=16, side=4)


@dataclass(frozen=True, kw_only=True)
class MllmWorkload:
    """What is packed. Defaults are those of the tables in docs/speed.md."""

    side: int = 768  # px; an image has between a quarter of and all of this area squared
    text: int = 128  # tokens of text beside each image
    answer: int = 64  # of those, scored
    checkpointing: bool = True  # of the language model's layers
    scale: Scale = REAL


def scaled(shape: LanguageShape, scale: Scale) -> LanguageShape:
    """A smaller language model of the same proportions; heads keep their number."""
    return replace(
        shape,
        width=shape.width // scale.width,
        depth=round(shape.depth / scale.depth),
        mlp_width=shape.mlp_width // scale.width,
        vocabulary=shape.vocabulary // (scale.width * scale.depth),
    )


def tokenizer_shape(config: TokenizerConfig, scale: Scale) -> TokenizerConfig:
    """A smaller tokenizer of the same proportions, without decoder."""
    encoder, quantizer = config.encoder, config.quantizer

    def fewer(depth: int) -> int:
        return max(1, round(depth / scale.depth))

    return replace(
        config,
        decoder=None,
        encoder=EncoderConfig(
            width=encoder.width // scale.width,
            depth=fewer(encoder.depth),
            heads=encoder.heads,
            mlp_width=encoder.mlp_width // scale.width,
            position_grid=encoder.position_grid // scale.side,
        ),
        quantizer=replace(
            quantizer,
            pre_depth=fewer(quantizer.pre_depth),
            slot_depth=fewer(quantizer.slot_depth),
            post_depth=fewer(quantizer.post_depth),
            slot_attention_width=quantizer.slot_attention_width // scale.width,
        ),
    )


# One packed sequence


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A packed sequence of samples, each an image and text about it, on the device.

    Attributes:
        lengths: tokens of each sample; they add up to L.
        ids_L: words; anything where an image stands.
        places_L: where the visual tokens go.
        scored_A, targets_A: which places are scored, and the word to come there.
        batch, codes_TS: the images as pixels and as codes.
    """

    lengths: tuple[int, ...]
    ids_L: Tensor
    places_L: Tensor
    scored_A: Tensor
    targets_A: Tensor
    batch: PatchBatch
    codes_TS: Tensor


def pack_samples(
    length: int, work: MllmWorkload, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Packed:
    """Samples until `length` tokens (scaled) are exactly full; the same for every language model.

    Raises:
        ViqError: not even one sample fits.
    """
    rng, scale = random.Random(seed), work.scale
    side, text, answer = (
        work.side // scale.side,
        max(2, work.text // scale.length),
        max(1, work.answer // scale.length),
    )
    room, samples = length // scale.length, []
    while True:
        grid = _grid(side, rng)
        tokens = language_tokens(grid) + text
        if tokens > room:
            break
        samples.append((grid, tokens))
        room -= tokens
    if not samples:
        raise ViqError(f"{length} tokens hold no image of up to {side}x{side} px: give more")
    samples[-1] = (samples[-1][0], samples[-1][1] + room)  # the rest is text of the last one
    places, scored, at = [], [], 0
    for grid, tokens in samples:
        visual = language_tokens(grid)
        places += [True] * visual + [False] * (tokens - visual)
        at += tokens
        scored += range(at - answer - 1, at - 1)
    grids = tuple(grid for grid, _ in samples)
    numbers = torch.Generator().manual_seed(seed)
    vocabulary = min(scaled(shape, scale).vocabulary for shape in LANGUAGES.values())
    ids_L = torch.randint(vocabulary, (at,), generator=numbers)
    patches = sum(lengths_of(grids))
    pixels = torch.rand(patches, 3 * PATCH_SIZE**2, generator=numbers) * 2 - 1
    codes = torch.randint(64_000, (patches, CODES_PER_PATCH), generator=numbers)
    return Packed(
        lengths=tuple(tokens for _, tokens in samples),
        ids_L=ids_L.to(device),
        places_L=torch.tensor(places, device=device),
        scored_A=torch.tensor(scored, device=device),
        targets_A=ids_L[torch.tensor(scored) + 1].to(device),
        batch=PatchBatch(patches_TD=pixels.to(device, dtype), grids_hw=grids),
        codes_TS=codes.to(device),
    )


def _grid(side: int, rng: random.Random) -> Grid:
    """Patches of an image of at most side x side px, of any shape up to 2:1, either way."""
    mean, aspect = side * rng.uniform(0.5, 1), rng.uniform(1, 2) ** rng.choice((-0.5, 0.5))
    return max(1, int(mean * aspect) // PATCH_SIZE), max(1, int(mean / aspect) // PATCH_SIZE)


# One language model


def make_language(shape: LanguageShape, device: torch.device, dtype: torch.dtype) -> Any:
    """A Qwen2.5 with random weights, made on the device in its dtype.

    Raises:
        ViqError: transformers is not installed.
    """
    with require("transformers", "bench", "this benchmark"):
        from transformers import AutoModelForCausalLM, Qwen2Config
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        rms_norm_eps=1e-6,
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
