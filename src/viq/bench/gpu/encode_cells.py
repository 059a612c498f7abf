"""Encoding at the shape of SigLIP2-g: tokens a second, and the share of what the card can do (P1).

Images are of mixed sizes, patches and weights random. The floating-point operations of each way are
counted for the patches that it is asked for, so padding lowers its share, as it should. The peak is
that of a large bf16 product on the same card, measured in the same run.

T = patches of all images, C = width, S = 4 slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.bench.components import BUCKET, naflex_inputs, naflex_twin
from viq.bench.gpu.cells import Cells
from viq.bench.mllm_work import REAL, MllmWorkload, Scale, pack_samples, tokenizer_shape
from viq.core.measure import compare
from viq.core.types import CODES_PER_PATCH, Grid
from viq.image.patches import PatchBatch, lengths_of, unpatchify
from viq.models.layers import attention, rope2d
from viq.models.layers.attention import packed_attention
from viq.models.tokenizer.config import TokenizerConfig
from viq.models.tokenizer.presets import g
from viq.models.tokenizer.quantizer import SlotBlock
from viq.models.tokenizer.tokenizer import VisualTokenizer

_FLOPS = 2e14  # a second, by which cells are expected to end
_COMPILE_S = 35.0
_SETUP_S = 8.0


@dataclass(frozen=True, kw_only=True)
class EncodeScale:
    """How much is encoded. Defaults are those of docs/speed.md."""

    scale: Scale = REAL
    tokens: int = 16_384  # of the sequence that images are drawn for: 43,800 patches
    square: int = 8192  # side of the matrices whose product is the peak
    repeats: int = 5


def measure(
    cells: Cells, work: EncodeScale, *, backend: str = "inductor", compiled: bool = True
) -> None:
    """All cells of this part.

    Args:
        backend: of `torch.compile`.
        compiled: measure compiled ways, too.
    """
    part = _Part(cells, work)
    rough = part.flops * (work.repeats + 1) / _FLOPS if work.scale == REAL else 1.0
    cells.run("encode", "peak", part.peak, expected=10)
    cells.run("encode", "block", part.block, expected=_SETUP_S + 2)
    cells.run("encode", "trunk", part.trunk, expected=6 * rough + _SETUP_S)
    cells.run("encode", "codes", part.codes, expected=4 * rough + _SETUP_S)
    if compiled:
        cells.run(
            "encode", "compiled", lambda: part.compiled(backend),
            expected=4 * rough + _SETUP_S + (_COMPILE_S if work.scale == REAL else 0),
        )  # fmt: skip
        torch.compiler.reset()
    cells.run("encode", "float32", part.exact, expected=4 * rough + _SETUP_S)


class _Part:
    def __init__(self, cells: Cells, work: EncodeScale) -> None:
        self.device, self.work = cells.device, work
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.config = tokenizer_shape(g(), work.scale)
        self.batch = pack_samples(
            work.tokens, MllmWorkload(scale=work.scale), torch.device("cpu"), torch.float32
        ).batch
        self.flops = sum(encode_flops(self.config, self.batch.grids_hw).values())

    def peak(self) -> dict[str, Any]:
        """Products of random matrices, and of the shape of the trunk's widest layer."""
        side, width = self.work.square, self.config.encoder.width
        rows, mlp = len(self.batch.patches_TD), self.config.encoder.mlp_width
        shapes = {"square": (side, side, side), "mlp": (rows, width, mlp)}
        result = {}
        for name, (m, k, n) in shapes.items():
            a = torch.randn(m, k, device=self.device, dtype=self.dtype)
            b = torch.randn(k, n, device=self.device, dtype=self.dtype)
            times = compare({name: _calling(torch.mm, a, b)}, 4 * self.work.repeats)[name]
            result[name] = {**times, "tflops": 2 * m * k * n / times["median_s"] / 1e12}
        return {"products": result, "dtype": str(self.dtype).removeprefix("torch.")}

    @torch.inference_mode()
    def block(self) -> dict[str, Any]:
        """What a block of the trunk is made of, each part alone, and ways to compute attention."""
        encoder, rows = self.config.encoder, len(self.batch.patches_TD)
        width, mlp, heads = encoder.width, encoder.mlp_width, encoder.heads
        lengths = lengths_of(self.batch.grids_hw)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device, dtype=self.dtype)

        x_TC, wide_TM = random(rows, width), random(rows, mlp)
        q, k, v = (random(rows, heads, width // heads) for _ in range(3))
        products = {"qkv": (width, 3 * width), "out": (width, width), "mlp in": (width, mlp),
                    "mlp out": (mlp, width)}  # fmt: skip
        ways: dict[str, Callable[[], Any]] = {}
        flops: dict[str, float] = {}
        for name, (a, b) in products.items():
            x, weight, bias = (wide_TM if a == mlp else x_TC), random(b, a), random(b)
            ways[f"product, {name}"] = _calling(F.linear, x, weight, bias)
            flops[f"product, {name}"] = 2.0 * rows * a * b
        ones = random(width)
        ways["layer norm"] = _calling(F.layer_norm, x_TC, (width,), ones, ones)
        ways["gelu"] = _calling(F.gelu, wide_TM)
        ways["sum"] = _calling(torch.add, x_TC, x_TC)
        own = attention.packed_attention
        ways["attention"] = lambda: own(q, k, v, lengths)
        wide_q, wide_k, wide_v = (F.pad(each, (0, 128 - each.shape[-1])) for each in (q, k, v))
        ways["attention, heads of 128"] = lambda: own(wide_q, wide_k, wide_v, lengths)
        if self.device.type == "cuda":
            for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
                way = self._with(backend, q, k, v, lengths)
                with suppress(RuntimeError):  # not every backend takes heads of every width
                    way()
                    ways[f"attention, loop, {backend}"] = way
        for name in ways:
            if name.startswith("attention"):
                flops[name] = 4.0 * width * sum(length**2 for length in lengths)
        times = compare(ways, self.work.repeats)
        rates = {n: flops[n] / times[n]["median_s"] / 1e12 for n in times if n in flops}
        return {"times": times, "tflops": rates}

    def _with(self, backend: str, *qkv_lengths: Any) -> Callable[[], Any]:
        """Attention image after image by one backend of PyTorch."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def run() -> Any:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return attention.looped_attention(*qkv_lengths)

        return run

    @torch.inference_mode()
    def trunk(self) -> dict[str, Any]:
        """Tokens of patches: ours, image after image, the official structure, and the tower of
        transformers: padded, and in groups of like lengths."""
        tokenizer, batch = self._tokenizer(), self._batch()
        encoder = tokenizer.encoder
        tower = naflex_twin(encoder)
        whole = naflex_inputs(batch)
        lengths = lengths_of(batch.grids_hw)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        groups = [order[i : i + BUCKET] for i in range(0, len(order), BUCKET)]
        buckets = [naflex_inputs(batch, group) for group in groups]
        official = Official(tokenizer, batch)
        ways: dict[str, Callable[[], Any]] = {
            "viq": lambda: encoder(batch),
            "viq, loop over images": _looped(lambda: encoder(batch)),
            "official structure": official.trunk,
            "Siglip2 of transformers, padded": lambda: tower(**whole),
            "Siglip2 of transformers, groups of 8": lambda: [tower(**each) for each in buckets],
        }
        apart = encoder(batch) - official.trunk()
        times = compare(ways, self.work.repeats)
        flops = encode_flops(self.config, batch.grids_hw)["trunk"]
        padded = int(whole["pixel_attention_mask"].numel())
        return {**self._rates(times, flops), "patches_padded": padded,
                "max_difference_official": float(apart.abs().max())}  # fmt: skip

    @torch.inference_mode()
    def codes(self) -> dict[str, Any]:
        """Codes of patches: ours, and the official structure."""
        tokenizer, batch = self._tokenizer(), self._batch()
        official = Official(tokenizer, batch)
        ways: dict[str, Callable[[], Any]] = {
            "viq": lambda: tokenizer.ids(batch),
            "viq, loop over images": _looped(lambda: tokenizer.ids(batch)),
            "official structure": official.ids,
        }
        same = (tokenizer.ids(batch) == official.ids()).float().mean()
        return {**self._rates(compare(ways, self.work.repeats), self.flops),
                "same_codes_official": float(same)}  # fmt: skip

    @torch.inference_mode()
    def compiled(self, backend: str) -> dict[str, Any]:
        """The same with blocks compiled, one compilation for blocks of a shape."""
        eager, fast, batch = self._tokenizer(), self._tokenizer(), self._batch()
        fast.load_state_dict(eager.state_dict())
        head = fast.quantizer
        for block in [*fast.encoder.blocks, *head.pre_blocks]:
            block.compile(backend=backend, dynamic=False)
        head.slot_mlp.compile(backend=backend, dynamic=False)
        for block in head.bottleneck.blocks:
            block.mlp.compile(backend=backend, dynamic=False)
        ways: dict[str, Callable[[], Any]] = {
            "viq": lambda: eager.ids(batch),
            "viq, compiled": lambda: fast.ids(batch),
        }
        same = (eager.ids(batch) == fast.ids(batch)).float().mean()
        codes = self._rates(compare(ways, self.work.repeats), self.flops)
        ways = {
            "viq": lambda: eager.encoder(batch),
            "viq, compiled": lambda: fast.encoder(batch),
        }
        flops = encode_flops(self.config, batch.grids_hw)["trunk"]
        trunk = self._rates(compare(ways, self.work.repeats), flops)
        return {"codes": codes, "trunk": trunk, "same_codes_eager": float(same)}

    @torch.inference_mode()
    def exact(self) -> dict[str, Any]:
        """In float32, in which codes are the same on every machine but for flips."""
        tokenizer, batch = self._tokenizer().float(), self._batch()
        batch = PatchBatch(patches_TD=batch.patches_TD.float(), grids_hw=batch.grids_hw)
        times = compare({"viq, float32": lambda: tokenizer.ids(batch)}, 1)
        return self._rates(times, self.flops)

    def _tokenizer(self) -> VisualTokenizer:
        torch.manual_seed(0)
        with self.device:
            tokenizer = VisualTokenizer(self.config)
        return tokenizer.to(self.dtype).eval().requires_grad_(False)

    def _batch(self) -> PatchBatch:
        patches_TD = self.batch.patches_TD.to(self.device, self.dtype)
        return PatchBatch(patches_TD=patches_TD, grids_hw=self.batch.grids_hw)

    def _rates(self, times: dict[str, dict[str, float]], flops: float) -> dict[str, Any]:
        count = len(self.batch.patches_TD)
        return {
            "images": len(self.batch.grids_hw),
            "patches": count,
            "flops": flops,
            "times": times,
            "rates": {
                name: {
                    "patches_per_s": count / spent["median_s"],
                    "tflops": flops / spent["median_s"] / 1e12,
                }
                for name, spent in times.items()
            },
        }


class Official:
    """Our weights in the structure of the official code, as docs/model.md describes it: patches of
    each image through a convolution and a position table resized for it, rotation angles made anew
    for each image in every block, attention of packed images by the same variable-length kernel."""

    def __init__(self, tokenizer: VisualTokenizer, batch: PatchBatch) -> None:
        self.tokenizer, self.batch = tokenizer, batch
        side = tokenizer.config.encoder.patch_size
        parts = batch.patches_TD.split(lengths_of(batch.grids_hw))
        self.images = [
            unpatchify(part, (rows * side, cols * side))[None]
            for part, (rows, cols) in zip(parts, batch.grids_hw, strict=True)
        ]

    def trunk(self) -> Tensor:
        """Tokens (T, C)."""
        encoder = self.tokenizer.encoder
        embed, side = encoder.patch_embed, encoder.config.patch_size
        kernel = embed.weight.view(-1, 3, side, side)
        parts = []
        for image, grid in zip(self.images, self.batch.grids_hw, strict=True):
            tokens = F.conv2d(image, kernel, embed.bias, stride=side)[0].flatten(1).T
            parts.append(tokens + encoder._positions(grid))
        tokens_TC, lengths = torch.cat(parts), lengths_of(self.batch.grids_hw)
        for block in encoder.blocks:
            tokens_TC = block(tokens_TC, lengths)
        return tokens_TC

    def ids(self) -> Tensor:
        """Codes (T, S)."""
        head, grids = self.tokenizer.quantizer, self.batch.grids_hw
        slots_TSC = head.expand(self.trunk(), grids)
        for block in head.bottleneck.blocks:
            slots_TSC = self._slot_block(block, slots_TSC, grids)
        return head.bottleneck.fsq.indices(head.bottleneck.project_in(slots_TSC))

    def _slot_block(self, block: SlotBlock, x_TSC: Tensor, grids: Sequence[Grid]) -> Tensor:
        attn = block.attn
        q, k, v = attn.qkv(attn.decrease(block.norm1(x_TSC))).chunk(3, dim=-1)
        angles_TSF = torch.cat([self._angles(grid, *q.shape[1:]) for grid in grids])
        q, k = rope2d.rotate(q, angles_TSF), rope2d.rotate(k, angles_TSF)
        mixed = packed_attention(q, k, v, lengths_of(grids))
        x_TSC = x_TSC + attn.increase(attn.proj(mixed))
        return x_TSC + block.mlp(block.norm2(x_TSC))

    def _angles(self, grid: Grid, slots: int, width: int) -> Tensor:
        device = self.batch.patches_TD.device
        xy_P2 = rope2d.positions_xy(grid).to(device)
        freqs_SF2 = rope2d.frequencies(slots, width).to(device)
        x, y = xy_P2[:, 0, None, None], xy_P2[:, 1, None, None]
        return freqs_SF2[..., 0] * x + freqs_SF2[..., 1] * y


def encode_flops(config: TokenizerConfig, grids_hw: Sequence[Grid]) -> dict[str, float]:
    """Floating-point operations from patches to codes, those of matrix products alone."""
    encoder, head = config.encoder, config.quantizer
    c, lengths = encoder.width, lengths_of(grids_hw)
    total, pairs = sum(lengths), sum(length**2 for length in lengths)

    def block(width: int, mlp: int) -> float:
        return total * 2 * (4 * width**2 + 2 * width * mlp) + 4 * pairs * width

    trunk = total * 2 * 3 * encoder.patch_size**2 * c
    trunk += encoder.depth * block(c, encoder.mlp_width)
    m, hidden = min(c, head.slot_attention_width), round(c * head.slot_mlp_ratio)
    slot = 2 * (2 * c * m + 4 * m * m + 2 * c * hidden)  # a slot of a patch in a block
    s = CODES_PER_PATCH
    rest = head.pre_depth * block(c, 4 * c)
    rest += total * 2 * (s * c * c + (s * c) ** 2 + s * 2 * c * c)
    rest += head.slot_depth * (total * s * slot + 4 * pairs * s * m)
    rest += total * s * 2 * c * len(head.levels)
    return {"trunk": float(trunk), "head": float(rest)}


def _looped(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same with attention image after image in place of the variable-length kernel."""

    def run() -> Any:
        with _no_fast_kernel():
            return work()

    return run


@contextmanager
def _no_fast_kernel() -> Any:
    before = attention._fast_is_possible
    attention._fast_is_possible = lambda q_TNc: False
    try:
        yield
    finally:
        attention._fast_is_possible = before


def _calling(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)
