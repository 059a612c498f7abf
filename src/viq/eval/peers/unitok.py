"""UniTok: a ViTamin whose tokens are cut into chunks, each with a codebook of its own.

Loads the published pickle (weights only, nothing in it is run), or safetensors of the bare weights
beside a config.json with its arguments. Modules have the names of the published weights.

n = images, S = side of a picture in px, N = S / 16 squared, places of a picture; c = channels of
the transformer, w = channels that are quantised, k = codebooks.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.untrusted import ratio, shape
from viq.eval.peers.network import (
    SquarePeer,
    count_of,
    find_weights,
    first_size,
    load_frozen,
    named,
    section,
    wanted_weights,
    whole,
)
from viq.eval.peers.pictures import Pictures
from viq.eval.peers.vitamin import PATCH, PUBLISHED, Decoder, Encoder, GatedMlp, Widths
from viq.weights.checkpoint import (
    CONFIG_FILE,
    CheckpointError,
    building,
    from_dict,
    read_config,
    read_object,
)
from viq.weights.tensors import read_tensors

LICENCE = "MIT"

_FILES = ("unitok_tokenizer.pth", "*.pth", "model.safetensors", "weights.safetensors")
_INFO = "info.json"  # beside a model of other widths than the published: its number of heads
# The side of text, what CLIP compares with it, positions that are zeros, counts of training.
_UNUSED = re.compile(
    r"text_encoder\.|logit_scale$|fc_norm\.|projection\.|encoder\.pos_embed$|.*\.vocab_usage$"
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a published file says of its network, in its own words."""

    model: str
    img_size: int = 256
    vocab_size: int = 4096
    vocab_width: int = 64
    num_codebooks: int = 8
    quant_proj: Literal["attn", "linear"] = "attn"
    vocab_norm: bool = True
    num_query: int = 0
    resize_ratio: float = 1.125

    def __post_init__(self) -> None:
        shape(self, img_size=2**12, vocab_size=2**24, vocab_width=2**12, num_codebooks=2**8)
        ratio(self, "resize_ratio", 8)
        if self.img_size % PATCH:
            raise ValueError(f"img_size {self.img_size} is no multiple of {PATCH} px")
        if self.vocab_size % self.num_codebooks or self.vocab_width % self.num_codebooks:
            raise ValueError(
                f"vocab_size {self.vocab_size} and vocab_width {self.vocab_width} cannot be split "
                f"among {self.num_codebooks} codebooks"
            )
        if not self.vocab_norm or self.num_query:
            raise ValueError(
                "only the published kind is known: vocab_norm true, num_query 0; got "
                f"{self.vocab_norm} and {self.num_query}"
            )


class _ProjectionAttention(nn.Module):
    """Attention that changes the width: heads are joined, or averaged to shrink."""

    def __init__(self, width_in: int, width_out: int, heads: int) -> None:
        super().__init__()
        inner = max(width_in, width_out)
        self.heads, self.mean = heads, width_out < width_in
        self.qkv = nn.Linear(width_in, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.empty(inner))
        self.zero_k_bias = nn.Parameter(torch.empty(inner))
        self.v_bias = nn.Parameter(torch.empty(inner))
        self.proj = nn.Linear(width_out, width_out)

    def forward(self, x_nNc: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = F.linear(x_nNc, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        heads = F.scaled_dot_product_attention(q, k, v)
        joined = heads.mean(1) if self.mean else heads.transpose(1, 2).flatten(2)
        return self.proj(joined)


class _Projection(nn.Module):
    """A block that changes the width."""

    def __init__(self, width_in: int, width_out: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width_in)
        self.attn = _ProjectionAttention(width_in, width_out, heads)
        self.norm2 = nn.LayerNorm(width_out)
        self.mlp = GatedMlp(width_out)
        self.norm3 = nn.LayerNorm(width_in)
        self.proj = nn.Linear(width_in, width_out)

    def forward(self, x_nNc: Tensor) -> Tensor:
        y = self.proj(self.norm3(x_nNc)) + self.attn(self.norm1(x_nNc))
        return y + self.mlp(self.norm2(y))


class _Codebook(nn.Module):
    """Only a place for the published names."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codes, width)


class _Quantizer(nn.Module):
    """Chunks of channels to the rows of their own codebooks that have the nearest direction."""

    def __init__(self, arguments: Arguments) -> None:
        super().__init__()
        count = arguments.num_codebooks
        self.codebooks = nn.ModuleList(
            _Codebook(arguments.vocab_size // count, arguments.vocab_width // count)
            for _ in range(count)
        )

    def nearest(self, z_nNw: Tensor) -> Tensor:
        """int64 (n, k, N)."""
        chunks = z_nNw.chunk(len(self.codebooks), dim=-1)
        found = [
            (F.normalize(chunk, dim=-1) @ rows.T).argmax(-1)
            for chunk, rows in zip(chunks, self._rows(), strict=True)
        ]
        return torch.stack(found, dim=1)

    def values(self, codes_nkN: Tensor) -> Tensor:
        """(n, N, w)."""
        parts = zip(self._rows(), codes_nkN.unbind(1), strict=True)
        return torch.cat([rows[codes] for rows, codes in parts], dim=-1)

    def _rows(self) -> list[Tensor]:
        """Unit rows of each codebook."""
        weights = (next(book.parameters()) for book in self.codebooks)
        return [F.normalize(weight, dim=-1) for weight in weights]


class UniTok(nn.Module):
    """Codes are int64 (n, k, N)."""

    code_dtype = np.int32

    def __init__(self, arguments: Arguments, widths: Widths) -> None:
        super().__init__()
        side, c, w = arguments.img_size // PATCH, widths.trunk, arguments.vocab_width
        self.code_shape = (arguments.num_codebooks, side**2)
        self.code_count = arguments.vocab_size // arguments.num_codebooks
        self.encoder, self.decoder = Encoder(widths), Decoder(widths)
        self.quantizer = _Quantizer(arguments)
        if arguments.quant_proj == "linear":
            self.quant_proj, self.post_quant_proj = nn.Linear(c, w), nn.Linear(w, c)
            return
        if c % w:
            raise ValueError(f"{c} channels cannot be split into heads of {w}, the vocab_width")
        self.quant_proj = _Projection(c, w, c // w)
        self.post_quant_proj = _Projection(w, c, c // w)

    def codes(self, values_n3SS: Tensor) -> Tensor:
        return self.quantizer.nearest(self.quant_proj(self.encoder(values_n3SS)))

    def features(self, codes: Tensor) -> Tensor:
        return self.post_quant_proj(self.quantizer.values(codes))

    def pixels(self, codes: Tensor) -> Tensor:
        return self.decoder(self.features(codes))


def load(path: str | os.PathLike[str]) -> SquarePeer:
    """UniTok of a weight file, or of a folder with one.

    Raises:
        CheckpointError: files are missing, damaged, or of another model.
    """
    file = find_weights(Path(path), _FILES, "UniTok")
    content = read_tensors(file)
    where = str(file)
    if file.suffix == ".safetensors":
        described, state = read_config(file.parent), content
        where = str(file.with_name(CONFIG_FILE))
    else:
        described = section(content, "args", where)
        state = section(section(content, "trainer", where), "unitok", where)
    known = {field.name for field in fields(Arguments)}
    needed = {field.name for field in fields(Arguments) if field.default is MISSING}
    if missing := sorted(needed - described.keys()):
        raise CheckpointError(f"{where}: describes no UniTok, as it has no {', '.join(missing)}")
    arguments = from_dict(Arguments, {k: v for k, v in described.items() if k in known}, where)
    weights = wanted_weights(state, lambda name: bool(_UNUSED.match(name)), str(file))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with building(where):
        network = UniTok(arguments, _widths(arguments, shapes, file))
        pictures = Pictures(
            shorter=int(arguments.img_size * arguments.resize_ratio),
            side=arguments.img_size,
            written="rounded",
        )
    load_frozen(network, weights, str(file))
    bits = math.prod(network.code_shape) * math.log2(network.code_count)
    return SquarePeer(network, pictures, name=named("unitok", path), licence=LICENCE, bits=bits)


def _widths(arguments: Arguments, shapes: Mapping[str, Sequence[int]], file: Path) -> Widths:
    """The published sizes; of models with other names, what the shapes of their weights tell."""
    if arguments.model in PUBLISHED:
        return PUBLISHED[arguments.model]
    size = functools.partial(first_size, shapes, source=str(file), what="UniTok tokenizer")
    trunk = size("encoder.norm.weight")
    return Widths(
        stem=size("encoder.patch_embed.backbone.stem.norm1.weight"),
        stage=size("encoder.patch_embed.backbone.pool.norm.weight"),
        trunk=trunk,
        depth=count_of(shapes, "encoder.blocks."),
        # No shape tells heads; the published models have one for each `vocab_width` channels.
        heads=_heads(file.with_name(_INFO)) or max(1, trunk // arguments.vocab_width),
    )


def _heads(path: Path) -> int | None:
    """Heads by {"widths": {"heads": ...}} of a file that need not be there."""
    widths = read_object(path).get("widths") if path.is_file() else None
    heads = widths.get("heads") if isinstance(widths, dict) else None
    return None if heads is None else whole(heads, f"{path}: heads", 2**12)
