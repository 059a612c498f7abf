"""What a step of a multimodal language model costs on stored codes, and with a vision tower in it.

    result = run(llms=["0.5b"], lengths=["4k"])
    print(as_text(result))

Four ways to fill the same packed sequence are timed in turn: plain text (the limit: nothing is
seen), codes from disk (the tokenizer's code-to-feature path and the projector), and the frozen
towers of SigLIP2-so400m and -g (their last tokens and the projector). Language model, places of
images, scored tokens, attention, gradient checkpointing and optimizer are the same; towers and
code path are frozen and run without gradients. Nothing is compiled. Weights are random, shapes are
the published ones. Pixels and codes lie on the device before the clock starts, which favours the
towers: they need 96 times the bytes.

Where there is no GPU the shapes are scaled down (`SCALED`), and the result says so.

L = tokens of a packed sequence, T = patches of its images, S = 4 slots, E = width, A = scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.bench.mllm_tables import as_text
from viq.bench.mllm_work import (
    LANGUAGES,
    LENGTHS,
    REAL,
    SCALED,
    LanguageShape,
    MllmWorkload,
    Packed,
    Scale,
    make_language,
    pack_samples,
    scaled,
    tokenizer_shape,
)
from viq.core.measure import compare, machine
from viq.core.types import ViqError
from viq.models.language.packed import packed_hidden, use_packed_attention
from viq.models.language.projector import MergeProjector, ProjectorConfig
from viq.models.language.vision_language import recompute_activations
from viq.models.layers.ambient import tiny_as_zero
from viq.models.tokenizer.encoder import Encoder
from viq.models.tokenizer.presets import g, so400m
from viq.models.tokenizer.tokenizer import VisualTokenizer

__all__ = ["LANGUAGES", "REAL", "SCALED", "WAYS", "MllmWorkload", "about", "as_text", "run"]

WAYS = ("text", "codes", "so400m", "g")


@tiny_as_zero()
def run(
    llms: Sequence[str] = tuple(LANGUAGES),
    lengths: Sequence[str] = ("4k", "16k"),
    *,
    repeats: int = 5,
    work: MllmWorkload | None = None,
    ways: Sequence[str] = WAYS,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Time every language model at every length; the result is for `json.dumps` and `as_text`.

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
    work = work or MllmWorkload(scale=REAL if where.type == "cuda" else SCALED)
    dtype = _dtype(where)
    torch.manual_seed(0)
    eyes = Eyes(work.scale, where, dtype)
    packs = {name: pack_samples(LENGTHS[name], work, where, dtype) for name in lengths}
    extraction = {}
    for name in lengths:
        progress(f"extraction of codes, {name}")
        extraction[name] = eyes.extraction(packs[name], repeats)
    cells = []
    for llm in llms:
        subject = Subject(scaled(LANGUAGES[llm], work.scale), eyes, work, where, dtype)
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


def about(work: MllmWorkload, repeats: int, device: torch.device | None = None) -> dict[str, Any]:
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


# What is measured


class Eyes:
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
            return self.tokenizer.features(pack.codes_TS, pack.batch.grids_hw)
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


class Subject:
    """A language model in training, with projectors for each way to see."""

    def __init__(
        self,
        shape: LanguageShape,
        eyes: Eyes,
        work: MllmWorkload,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.eyes, self.device = eyes, device
        self.language = make_language(shape, device, dtype).train()
        use_packed_attention(self.language)
        if work.checkpointing:
            recompute_activations(self.language)
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
            **self.facts(pack),
            "forward": self.times("forward", pack, ways, repeats),
            "step": self.times("step", pack, ways, repeats),
            "peak_mib": {way: self._peak(way, pack) for way in ways},
        }

    def facts(self, pack: Packed) -> dict[str, int]:
        """What is counted of the work."""
        return {
            "tokens": len(pack.ids_L),
            "images": len(pack.batch.grids_hw),
            "patches": len(pack.codes_TS),
            "visual_tokens": int(pack.places_L.sum()),
            "scored_tokens": len(pack.scored_A),
            "parameters": sum(p.numel() for p in self.language.parameters()),
        }

    def times(
        self, kind: str, pack: Packed, ways: Sequence[str], repeats: int
    ) -> dict[str, dict[str, float]]:
        """Times of all ways, as `compare` gives them, of a "forward" pass or a "step"."""
        return compare({way: self.call(kind, way, pack) for way in ways}, repeats)

    def call(self, kind: str, way: str, pack: Packed) -> Callable[[], Any]:
        """One "forward" pass, or one "step", as a function."""
        return (self._forward if kind == "forward" else self._step)(way, pack)

    def compile(self, backend: str) -> None:
        """Compile layer by layer from the next call on, for good: language model, towers, code
        path, projectors. Layers of one shape are compiled once.

        Args:
            backend: of `torch.compile`.
        """
        own = self.eyes.tokenizer
        head = own.quantizer
        layers = [*self.language.get_decoder().layers, *self.eyes.so400m.blocks]
        layers += [*own.encoder.blocks, *(each.weigh for each in self.projectors.values())]
        for layer in layers:
            layer.compile(backend=backend, dynamic=False)
        head.dequantize = torch.compile(head.dequantize, backend=backend, dynamic=False)

    def loss(self, way: str, pack: Packed) -> Tensor:
        """Mean cross-entropy of the scored tokens."""
        inputs_LE = self.language.get_input_embeddings()(pack.ids_L)
        if way != "text":
            features_TC = self.eyes.features(way, pack)
            visual = torch.cat(self.projectors[way](features_TC, pack.batch.grids_hw))
            inputs_LE = inputs_LE.masked_scatter(pack.places_L[:, None], visual)
        hidden_LE = packed_hidden(self.language, inputs_LE, pack.lengths)
        logits = self.language.get_output_embeddings()(hidden_LE[pack.scored_A])
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


def _known(option: str, names: Sequence[str], choices: dict[str, Any]) -> None:
    unknown = [name for name in names if name not in choices]
    if unknown or not names:
        raise ViqError(f"{option} {','.join(unknown)}: choose from {', '.join(choices)}")
