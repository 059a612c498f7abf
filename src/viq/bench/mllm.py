"""What a step of a multimodal language model costs on stored codes, and with a vision tower in it.

    result = run(llms=["0.5b"], lengths=["4k"])
    print(format(result))

Four ways to fill the same packed sequence are timed in turn: plain text (the limit: nothing is
seen), codes from disk (the tokenizer's code-to-feature path and the projector), and the frozen
towers of SigLIP2-so400m and -g (their last tokens and the projector). Language model, places of
images, scored tokens, attention, gradient checkpointing and optimizer are the same; towers and
code path are frozen and run without gradients. Nothing is compiled. Weights are random, shapes are
the published ones. Pixels and codes lie on the device before the clock starts, which favours the
towers: they need 96 times the bytes.

Where there is no GPU the shapes are scaled down (`SCALED`), and the result says so.

L = tokens of a packed sequence, T = patches of its images, S = 4 slots, D = width, A = scored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.bench.measure import compare, machine
from viq.bench.mllm_report import format
from viq.models.encoder import Encoder, EncoderConfig
from viq.models.packed import checkpoint_layers, packed_hidden, use_packed_attention
from viq.models.projector import MergeProjector, ProjectorConfig
from viq.models.tokenizer import TokenizerConfig, VisualTokenizer
from viq.patches import PatchBatch, lengths_of
from viq.recipes import g, so400m
from viq.types import CODES_PER_PATCH, PATCH_SIZE, Grid, ViqError, language_tokens

__all__ = ["LANGUAGES", "SCALED", "WAYS", "LanguageShape", "Scale", "Work", "format", "run"]

WAYS = ("text", "codes", "so400m", "g")
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
class Work:
    """What is packed. Defaults are those of the tables in docs/speed.md."""

    side: int = 768  # px; an image has between a quarter of and all of this area squared
    text: int = 128  # tokens of text beside each image
    answer: int = 64  # of those, scored
    checkpointing: bool = True  # of the language model's layers
    scale: Scale = REAL


def run(
    llms: Sequence[str] = tuple(LANGUAGES),
    lengths: Sequence[str] = ("4k", "16k"),
    *,
    repeats: int = 5,
    work: Work | None = None,
    ways: Sequence[str] = WAYS,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Time every language model at every length; the result is for `json.dumps` and `format`.

    Args:
        llms: names of `LANGUAGES`.
        lengths: names of `LENGTHS`.
        repeats: interleaved runs of each way, after one to warm up; medians count.
        work: by default the real shapes on CUDA, `SCALED` elsewhere.
        ways: of `WAYS`; the first is what the others are divided by.
        progress: called with the name of each cell before it is measured.

    Raises:
        ViqError: an unknown language model or length.
    """
    _known("--llm", llms, LANGUAGES)
    _known("--length", lengths, LENGTHS)
    where = device or default_device()
    work = work or Work(scale=REAL if where.type == "cuda" else SCALED)
    dtype = _dtype(where)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    eyes = _Eyes(work.scale, where, dtype)
    packs = {name: pack_samples(LENGTHS[name], work, where, dtype) for name in lengths}
    extraction = {}
    for name in lengths:
        progress(f"extraction of codes, {name}")
        extraction[name] = eyes.extraction(packs[name], repeats)
    cells = []
    for llm in llms:
        subject = _Subject(scaled(LANGUAGES[llm], work.scale), eyes, work, where, dtype)
        for name in lengths:
            progress(f"{llm}, {name}")
            cell = {"llm": llm, "length": name, "extraction": extraction[name]}
            try:
                cell |= subject.measure(packs[name], ways, repeats)
            except torch.OutOfMemoryError:
                cell["skipped"] = "out of memory"
            cells.append(cell)
        del subject
        if where.type == "cuda":
            torch.cuda.empty_cache()
    return {**about(work, repeats, where), "cells": cells}


def about(work: Work, repeats: int, device: torch.device | None = None) -> dict[str, Any]:
    """How and on what is measured: a result without its cells."""
    where = device or default_device()
    return {
        "benchmark": "mllm",
        "device": where.type,
        "dtype": str(_dtype(where)).removeprefix("torch."),
        "repeats": repeats,
        "work": asdict(work),
        "scaled": work.scale != REAL,
        "machine": machine(),
        "cells": [],
    }


def default_device() -> torch.device:
    """CUDA if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


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
    length: int, work: Work, device: torch.device, dtype: torch.dtype, seed: int = 0
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


# What is measured


class _Eyes:
    """Both towers and the code-to-feature path, frozen."""

    def __init__(self, scale: Scale, device: torch.device, dtype: torch.dtype) -> None:
        with device:
            self.tokenizer = VisualTokenizer(tokenizer_shape(g(), scale))
            self.so400m = Encoder(tokenizer_shape(so400m(), scale).encoder)
        for module in (self.tokenizer, self.so400m):
            module.to(dtype).eval().requires_grad_(False)
        self.dtype = dtype

    def widths(self) -> dict[str, int]:
        """Channels of the features of each way to see."""
        own = self.tokenizer.width
        return {"codes": own, "so400m": self.so400m.config.width, "g": own}

    @torch.no_grad()
    def features(self, way: str, pack: Packed) -> Tensor:
        """Features (T, C)."""
        if way == "codes":
            return self.tokenizer.features(pack.codes_TS)
        return (self.so400m if way == "so400m" else self.tokenizer.encoder)(pack.batch)

    @torch.inference_mode()
    def extraction(self, pack: Packed, repeats: int) -> dict[str, float]:
        """Seconds to make the codes of all images in one sequence, by dtype.

        `viq encode` computes in float32 by default; the official code in bfloat16.
        """
        spent = {}
        for dtype in dict.fromkeys((self.dtype, torch.float32)):
            self.tokenizer.to(dtype)
            times = compare({"ids": lambda: self.tokenizer.ids(pack.batch)}, repeats)
            spent[str(dtype).removeprefix("torch.")] = times["ids"]["median_s"]
        self.tokenizer.to(self.dtype)
        return spent

    def parts(self, way: str) -> list[nn.Module]:
        """What one way needs on the device."""
        own = self.tokenizer
        needed = {"codes": [own.quantizer], "so400m": [self.so400m], "g": [own.encoder]}
        return needed.get(way, [])


class _Subject:
    """A language model in training, with projectors for each way to see."""

    def __init__(
        self,
        shape: LanguageShape,
        eyes: _Eyes,
        work: Work,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.eyes, self.device = eyes, device
        self.language = make_language(shape, device, dtype).train()
        use_packed_attention(self.language)
        if work.checkpointing:
            checkpoint_layers(self.language)
        with device:
            self.projectors = nn.ModuleDict(
                {
                    way: MergeProjector(ProjectorConfig(features=width, width=shape.width))
                    for way, width in eyes.widths().items()
                }
            ).to(dtype)
        parameters = [*self.language.parameters(), *self.projectors.parameters()]
        # A rate of nearly nothing: the work of a step is the same, and random weights stay sound.
        cuda = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-8, fused=cuda, foreach=not cuda)

    def measure(self, pack: Packed, ways: Sequence[str], repeats: int) -> dict[str, Any]:
        """Times of all ways, forward and whole step, and peak memory of a step."""
        return {
            "tokens": len(pack.ids_L),
            "images": len(pack.batch.grids_hw),
            "patches": len(pack.codes_TS),
            "visual_tokens": int(pack.places_L.sum()),
            "scored_tokens": len(pack.scored_A),
            "parameters": sum(p.numel() for p in self.language.parameters()),
            "forward": compare({way: self._forward(way, pack) for way in ways}, repeats),
            "step": compare({way: self._step(way, pack) for way in ways}, repeats),
            "peak_mib": {way: self._peak(way, pack) for way in ways},
        }

    def loss(self, way: str, pack: Packed) -> Tensor:
        """Mean cross-entropy of the scored tokens."""
        inputs_LD = self.language.get_input_embeddings()(pack.ids_L)
        if way != "text":
            features_TC = self.eyes.features(way, pack)
            visual = torch.cat(self.projectors[way](features_TC, pack.batch.grids_hw))
            inputs_LD = inputs_LD.masked_scatter(pack.places_L[:, None], visual)
        hidden_LD = packed_hidden(self.language, inputs_LD, pack.lengths)
        logits = self.language.get_output_embeddings()(hidden_LD[pack.scored_A])
        return F.cross_entropy(logits.float(), pack.targets_A)

    def _forward(self, way: str, pack: Packed) -> Callable[[], Any]:
        """As in training: what the backward pass needs is kept."""
        return lambda: self.loss(way, pack)

    def _step(self, way: str, pack: Packed) -> Callable[[], None]:
        def step() -> None:
            self.loss(way, pack).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return step

    def _peak(self, way: str, pack: Packed) -> float | None:
        """Most memory of the GPU in a step, MiB, with only what this way needs in it."""
        if self.device.type != "cuda":
            return None
        with self._only(way):
            torch.cuda.reset_peak_memory_stats()
            self._step(way, pack)()
            return torch.cuda.max_memory_allocated() / 2**20

    @contextmanager
    def _only(self, way: str) -> Iterator[None]:
        """Whatever else can see is off the GPU for a while."""
        self.eyes.tokenizer.cpu()
        self.eyes.so400m.cpu()
        for part in self.eyes.parts(way):
            part.to(self.device)
        try:
            yield
        finally:
            self.eyes.tokenizer.to(self.device)
            self.eyes.so400m.to(self.device)


def make_language(shape: LanguageShape, device: torch.device, dtype: torch.dtype) -> Any:
    """A Qwen2.5 with random weights, made on the device in its dtype.

    Raises:
        ViqError: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, Qwen2Config
    except ImportError:
        raise ViqError("this benchmark needs transformers: pip install 'viq[bench]'") from None
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


def _known(option: str, names: Sequence[str], choices: dict[str, Any]) -> None:
    unknown = [name for name in names if name not in choices]
    if unknown or not names:
        raise ViqError(f"{option} {','.join(unknown)}: choose from {', '.join(choices)}")
