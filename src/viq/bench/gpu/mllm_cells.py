"""Steps on codes against a vision tower in the loop and plain text, cell by cell (P3).

What is measured is `viq.bench.mllm`; here is in which order, and what fits. Forward pass and step
are cells of their own, so that one that runs out of memory leaves the other. Compiled cells come
last, since compiling takes longer than measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from viq.bench.gpu.cells import Cells
from viq.bench.mllm import Eyes, MllmWorkload, Subject
from viq.bench.mllm_work import (
    LANGUAGES,
    LENGTHS,
    REAL,
    Packed,
    make_language,
    pack_samples,
    scaled,
)
from viq.models.layers.ambient import tiny_as_zero

WAYS = ("text", "codes", "g", "so400m")
ORDER = ("0.5b", "7b", "1.5b", "3b")  # the hardest for the limit, then for the saving
_COMPILED = (("0.5b", "16k"), ("1.5b", "16k"), ("0.5b", "4k"), ("7b", "16k"))
_FLOPS = 2e14  # a second, by which cells are expected to end: half of what large products reach
_COMPILE_S = 20.0  # of the layers of one shape, forward and backward
_LONG_S = 30.0  # a cell expected to take longer leaves out so400m and a run of each
_SETUP_S = 10.0  # a model of random weights


def measure(
    cells: Cells,
    work: MllmWorkload,
    *,
    llms: Sequence[str] = ORDER,
    lengths: Sequence[str] = ("4k", "16k"),
    ways: Sequence[str] = WAYS,
    repeats: int = 3,
    backend: str = "inductor",
    compiled: Sequence[tuple[str, str]] = _COMPILED,
) -> None:
    """All cells of this part.

    Args:
        work: what is packed, at which scale.
        llms, lengths: names of `LANGUAGES` and `LENGTHS`, in the order of measuring.
        ways: of `WAYS`; the first is what the others are divided by.
        repeats: interleaved runs of each way, after one to warm up.
        backend: of `torch.compile`.
        compiled: language models and lengths that are also measured compiled.
    """
    part = _Part(cells, work, ways, repeats)
    for llm in llms:
        for length in lengths:
            part.eager(llm, length)
    part.release()
    part.extraction(lengths)
    for llm, length in compiled:
        if llm in llms and length in lengths:
            part.compiled(llm, length, backend)


class _Part:
    """The model that is on the device, and what it reads."""

    def __init__(self, cells: Cells, work: MllmWorkload, ways: Sequence[str], repeats: int) -> None:
        self.cells, self.work, self.ways, self.repeats = cells, work, ways, repeats
        self.real = work.scale == REAL
        self.dtype = torch.bfloat16 if cells.device.type == "cuda" else torch.float32
        self.subject: tuple[str, Subject] | None = None
        name = str(self.dtype).removeprefix("torch.")
        cells.note("mllm", "setting", {"work": asdict(work), "repeats": repeats, "dtype": name})

    def eager(self, llm: str, length: str) -> None:
        for kind in ("forward", "step"):
            name = f"{llm} {length} {kind}"
            if not self.cells.is_done("mllm", name):
                expected = self._expected(llm, length, kind)
                self.cells.run(
                    "mllm", name, self._work(llm, length, kind, backend=None), expected=expected
                )

    def compiled(self, llm: str, length: str, backend: str) -> None:
        """Both kinds in one cell: they share what was compiled."""
        name = f"{llm} {length} compiled"
        expected = sum(self._expected(llm, length, kind) for kind in ("forward", "step"))
        if not self.cells.is_done("mllm", name):
            self.release()
            self.cells.run(
                "mllm", name, self._work(llm, length, "both", backend),
                expected=expected + (_COMPILE_S * len(self.ways) / 2 if self.real else 5),
            )  # fmt: skip
            self.release()
            torch.compiler.reset()

    def extraction(self, lengths: Sequence[str]) -> None:
        """Seconds to make the codes of a sequence's images."""

        def work() -> dict[str, Any]:
            with tiny_as_zero():
                eyes = Eyes(self.work.scale, self.cells.device, self.dtype)
                packs = {name: self._pack(name) for name in lengths}
                return {
                    "spent": {n: eyes.extraction(p, self.repeats) for n, p in packs.items()},
                    "patches": {n: len(p.codes_TS) for n, p in packs.items()},
                }

        self.cells.run("mllm", "extraction of codes", work, expected=15)

    def release(self) -> None:
        self.subject = None

    def _work(
        self, llm: str, length: str, kind: str, backend: str | None
    ) -> Callable[[], dict[str, Any]]:
        def work() -> dict[str, Any]:
            with tiny_as_zero():
                subject, pack = self._subject(llm), self._pack(length)
                result: dict[str, Any] = {"llm": llm, "length": length, **subject.facts(pack)}
                kinds = ("forward", "step") if kind == "both" else (kind,)
                if backend is not None:
                    subject.compile(backend)
                long = self._expected(llm, length, kind) > _LONG_S
                ways = self.ways[:3] if long else self.ways
                repeats = min(2, self.repeats) if long else self.repeats
                result["repeats"] = repeats
                for each in kinds:
                    result[f"{each}_peak_mib"] = self._peaks(subject, each, pack, ways)
                    result[each] = subject.times(each, pack, ways, repeats)
                return result

        return work

    def _peaks(
        self, subject: Subject, kind: str, pack: Packed, ways: Sequence[str]
    ) -> dict[str, float]:
        """Most memory of the device by way, MiB, with everything else that is on it."""
        if self.cells.device.type != "cuda":
            return {}
        peaks = {}
        for way in ways:
            torch.cuda.reset_peak_memory_stats()
            subject.call(kind, way, pack)()
            peaks[way] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return peaks

    def _subject(self, llm: str) -> Subject:
        if self.subject is None or self.subject[0] != llm:
            self.subject = None  # before another one is made
            torch.manual_seed(0)
            device = self.cells.device
            eyes = Eyes(self.work.scale, device, self.dtype)
            shape = scaled(LANGUAGES[llm], self.work.scale)
            self.subject = llm, Subject(shape, eyes, self.work, device, self.dtype)
        return self.subject[1]

    def _pack(self, length: str) -> Packed:
        return pack_samples(LENGTHS[length], self.work, self.cells.device, self.dtype)

    def _expected(self, llm: str, length: str, kind: str) -> float:
        """Seconds of a cell by rough count: products of all weights with all tokens, a step four
        times as many as a forward pass, and the towers."""
        if not self.real:
            return 0.5
        kind = "step" if kind == "both" else kind
        language = make_language(LANGUAGES[llm], torch.device("meta"), torch.bfloat16)
        weights = sum(p.numel() for p in language.parameters())
        tokens = LENGTHS[length]
        reader = 2 * weights * tokens * (4 if kind == "step" else 1)
        towers = 2 * 1.6e9 * 2.7 * tokens  # both, at 2.7 patches a token
        runs = (self.repeats + 2) * (len(self.ways) * reader + towers)
        return runs / _FLOPS + _SETUP_S
