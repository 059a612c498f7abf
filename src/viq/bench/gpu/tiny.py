"""Shapes of every part that a CPU measures within a minute or two: to try it, not to quote it."""

from __future__ import annotations

from typing import Any

from viq.bench.gpu.encode_cells import EncodeScale
from viq.bench.gpu.train_cells import SmallWork
from viq.bench.mllm_work import MllmWorkload, Scale
from viq.models.tokenizer.decoder import DecoderConfig

PARITY: dict[str, Any] = {"lengths": (1, 7, 30, 30), "side": 96}
MLLM = MllmWorkload(text=64, answer=32, scale=Scale(width=8, depth=24, length=32, side=8))
# A backend that needs no C++ compiler, but traces all that the real one does.
MLLM_OPTIONS: dict[str, Any] = {"llms": ("0.5b",), "repeats": 1, "backend": "aot_eager",
                                "compiled": (("0.5b", "4k"),)}  # fmt: skip
ENCODE = EncodeScale(
    scale=Scale(width=8, depth=20, length=32, side=8), tokens=4096, square=128, repeats=1
)
ENCODE_OPTIONS: dict[str, Any] = {"backend": "aot_eager"}
SMALL = SmallWork(
    decoder=DecoderConfig(width=32, depth=1, refine_depth=1), patches=64, steps=3, drawn=2,
    scales=(1.0,), side=96, photos=2, judged=2,
)  # fmt: skip
