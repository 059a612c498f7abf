"""Weights of SigLIP and SigLIP2 vision towers, under the names of our own modules.

Two namings are read: timm's (OpenCLIP files, and the towers of official ViQ training) and
transformers' (a vision tower alone, or the tower inside a whole model; fixed resolution or NaFlex).
They serve twice: as the frozen teacher of `models/vision/tower.py`, with the position grid as it is
stored, and as the start of a student, resampled to its patches and its position grid.

C = width, G = side of the position grid, p = patch size.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.types import PATCH_SIZE
from viq.models.layers.blocks import AttentionPool
from viq.models.tokenizer.encoder import Encoder, EncoderConfig
from viq.weights import checkpoint
from viq.weights.checkpoint import CheckpointError
from viq.weights.tensors import SUFFIXES, read_tensors

Gelu = Literal["exact", "tanh"]

HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}  # of published widths; timm files do not tell
OFFICIAL_PREFIX = "base_model.model.model.vision_tower.vision_tower."
# Pattern at the start of a foreign name, and ours; the first match wins.
TIMM_NAMES: tuple[tuple[str, str], ...] = (
    (r"pos_embed$", "encoder.position"),
    (r"patch_embed\.proj\.", "encoder.patch_embed."),
    (r"blocks\.", "encoder.blocks."),
    (r"norm\.", "pool_norm."),
    (r"attn_pool\.", "pool_head."),
)
_TRANSFORMERS_NAMES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.position_embedding\.weight$", "encoder.position"),
    (r"embeddings\.patch_embedding\.", "encoder.patch_embed."),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.", r"encoder.blocks.\1.norm\2."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"encoder.blocks.\1.attn.proj."),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.blocks.\1.attn."),
    (r"encoder\.layers\.(\d+)\.mlp\.", r"encoder.blocks.\1.mlp."),
    (r"post_layernorm\.", "pool_norm."),
    (r"head\.probe$", "pool_head.latent"),
    (r"head\.attention\.in_proj_", "pool_head.qkv."),
    (r"head\.attention\.out_proj\.", "pool_head.proj."),
    (r"head\.layernorm\.", "pool_head.norm."),
    (r"head\.mlp\.", "pool_head.mlp."),
)
# What tells a naming, and the prefixes that whole models put before it.
_NAMINGS = (
    ("patch_embed.proj.weight", ("visual.trunk.", OFFICIAL_PREFIX, "")),
    ("embeddings.patch_embedding.weight", ("vision_model.", "")),
)
_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_GELUS: dict[str, Gelu] = {"gelu": "exact", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True, kw_only=True)
class SiglipVision:
    """A vision tower: `encoder.*`, `pool_norm.*` and `pool_head.*`, complete, as stored."""

    encoder: EncoderConfig
    gelu: Gelu
    weights: dict[str, Tensor]


def read_siglip(source: str | os.PathLike[str], *, heads: int | None = None) -> SiglipVision:
    """The vision tower in a folder or a weight file.

    Args:
        heads: attention heads; needed only where no config.json and no published width tells.

    Raises:
        CheckpointError: no vision tower, one of another kind, or tensors that do not fit it.
    """
    path, config = _find(Path(source))
    tensors = read_tensors(path)
    prefix, timm = _naming(tensors, path)
    weights = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    others = sorted(key for key, value in weights.items() if not isinstance(value, Tensor))
    if others:
        raise CheckpointError(f"{path}: no tensors: {', '.join(others[:6])}")
    weights = _from_timm(weights) if timm else _from_transformers(weights)
    width, patch, grid = _shape(weights, path)
    weights = {name: reshaped(name, tensor) for name, tensor in weights.items()}
    heads = heads or config.get("num_attention_heads") or HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"{path}: width {width} does not tell the number of attention heads; give heads"
        )
    try:
        encoder = EncoderConfig(
            width=width,
            depth=_depth(weights),
            heads=heads,
            mlp_width=next((len(t) for k, t in weights.items() if k.endswith(".mlp.fc1.bias")), 1),
            patch_size=patch,
            position_grid=grid,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _check_complete(encoder, weights, path)
    # SigLIP was trained with the approximation, the towers of ViQ with the exact function.
    default: Gelu = "exact" if prefix == OFFICIAL_PREFIX else "tanh"
    return SiglipVision(encoder=encoder, gelu=_gelu(config, path) or default, weights=weights)


def student_weights(
    source: str | os.PathLike[str], position_grid: int = 128, patch_size: int = PATCH_SIZE
) -> dict[str, Tensor]:
    """What a student starts from: `encoder.*`, `pool_norm.*`, `pool_head.*`, fp32.

    Patch kernel and position grid are resampled bicubically where they have another size, as the
    official code does. The student's exact GELU takes the place of the approximation.

    Raises:
        CheckpointError: as `read_siglip`.
    """
    tower = read_siglip(source, heads=1)  # weights are the same whatever the number of heads
    weights = {name: tensor.float() for name, tensor in tower.weights.items()}
    if tower.encoder.position_grid != position_grid:
        stored_1NW = weights["encoder.position"].flatten(0, 1)[None]
        resampled = resample_position_grid(stored_1NW, position_grid)
        weights["encoder.position"] = resampled.unflatten(1, (position_grid, -1))[0]
    if (p := tower.encoder.patch_size) != patch_size:
        kernel_C3pp = weights["encoder.patch_embed.weight"].unflatten(1, (3, p, p))
        resampled = resample_patch_kernel(kernel_C3pp, patch_size)
        weights["encoder.patch_embed.weight"] = resampled.flatten(1)
    return weights


def resample_position_grid(pos_embed: Tensor, side: int) -> Tensor:
    """Bicubic resampling of [1, g*g, C] to [1, side*side, C], as done when weights are loaded."""
    old = math.isqrt(pos_embed.shape[1])
    grid = pos_embed.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(1, 2)


def resample_patch_kernel(kernel: Tensor, side: int) -> Tensor:
    """Bicubic resampling of a patch kernel [C, 3, p, p] to [C, 3, side, side]."""
    return F.interpolate(kernel.float(), (side, side), mode="bicubic", align_corners=False)


def reshaped(name: str, tensor: Tensor) -> Tensor:
    """A timm tensor in the shape that ours of this name has."""
    if name == "encoder.position":
        side = math.isqrt(tensor.shape[-2])
        return tensor.reshape(side, side, -1)
    return tensor.flatten(1) if name == "encoder.patch_embed.weight" else tensor


def _find(source: Path) -> tuple[Path, Mapping[str, Any]]:
    """The weight file, and what a config.json beside it says of the vision tower."""
    if source.is_file():
        if source.suffix not in SUFFIXES:
            raise CheckpointError(f"{source}: a weight file ends in {', '.join(SUFFIXES)}")
        return source, {}
    path = next((source / name for name in _FILES if (source / name).is_file()), None)
    if path is None:
        what = "no weights in this folder" if source.is_dir() else "no such file or folder"
        raise CheckpointError(f"{source}: {what}; give one that holds {' or '.join(_FILES[1:])}")
    values = {}
    if (source / checkpoint.CONFIG_FILE).is_file():
        values = checkpoint.read_config(source)
    inner = values.get("vision_config", values)
    return path, inner if isinstance(inner, dict) else {}


def _naming(tensors: Mapping[str, Any], path: Path) -> tuple[str, bool]:
    """The prefix of the vision tower's names, and whether they are timm's."""
    for mark, prefixes in _NAMINGS:
        for prefix in prefixes:
            if prefix + mark in tensors:
                return prefix, mark == _NAMINGS[0][0]
    held = sorted({key.partition(".")[0] for key in tensors})
    raise CheckpointError(
        f"{path}: no SigLIP vision tower: it has {', '.join(held[:6]) or 'no tensors'}; give the "
        "whole model or its vision tower"
    )


def _from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_rename(key, TIMM_NAMES): tensor for key, tensor in weights.items()}


def _from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {_rename(key, _TRANSFORMERS_NAMES): tensor for key, tensor in weights.items()}
    for name in [name for name in named if ".attn.q_proj." in name]:
        parts = [name.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        if all(part in named for part in parts):  # else they are reported as unknown
            joined = torch.cat([named.pop(part) for part in parts])
            named[name.replace("q_proj", "qkv")] = joined
    for kind in ("weight", "bias"):
        if (qkv := named.pop(f"pool_head.qkv.{kind}", None)) is not None:
            third = len(qkv) // 3
            named[f"pool_head.q.{kind}"], named[f"pool_head.kv.{kind}"] = qkv[:third], qkv[third:]
    kernel = named["encoder.patch_embed.weight"]
    if kernel.ndim == 2:  # NaFlex: patches are cut row, column, channel; ours channel first
        p = math.isqrt(kernel.shape[1] // 3)
        if kernel.shape[1] == 3 * p * p:
            named["encoder.patch_embed.weight"] = kernel.unflatten(1, (p, p, 3)).movedim(-1, 1)
    return named


def _rename(key: str, names: Sequence[tuple[str, str]]) -> str:
    """Our name; a key without a place here keeps its own, and is reported as unknown."""
    for pattern, ours in names:
        if match := re.match(pattern, key):
            return match.expand(ours) + key[match.end() :]
    return key


def _shape(weights: Mapping[str, Tensor], path: Path) -> tuple[int, int, int]:
    """Width, patch size, side of the position grid."""
    kernel, position = weights["encoder.patch_embed.weight"], weights.get("encoder.position")
    if kernel.ndim != 4 or kernel.shape[1] != 3 or kernel.shape[2] != kernel.shape[3]:
        raise CheckpointError(
            f"{path}: a patch embedding of shape {list(kernel.shape)}; square RGB patches expected"
        )
    if position is None or position.ndim < 2:
        raise CheckpointError(f"{path}: no position embedding: not a whole vision tower")
    places = position.shape[-2]
    if math.isqrt(places) ** 2 != places:
        raise CheckpointError(
            f"{path}: a position embedding of {places} places, which make no square grid"
        )
    return kernel.shape[0], kernel.shape[2], math.isqrt(places)


def _depth(weights: Mapping[str, Tensor]) -> int:
    numbers = (re.match(r"encoder\.blocks\.(\d+)\.", name) for name in weights)
    return max((int(match.group(1)) + 1 for match in numbers if match), default=0)


def _check_complete(encoder: EncoderConfig, weights: Mapping[str, Tensor], path: Path) -> None:
    with checkpoint.building(str(path)):
        tower = nn.ModuleDict(
            {
                "encoder": Encoder(encoder),
                "pool_norm": nn.LayerNorm(encoder.width),
                "pool_head": AttentionPool(encoder.width, encoder.heads, encoder.mlp_width),
            }
        )
    checkpoint.load_strictly(tower, weights, str(path))


def _gelu(config: Mapping[str, Any], path: Path) -> Gelu | None:
    """What a transformers config says; configs leave out what is the default."""
    if (eps := config.get("layer_norm_eps", 1e-6)) != 1e-6:
        raise CheckpointError(f"{path}: layer_norm_eps is {eps}; only 1e-6, SigLIP's, is supported")
    name = config.get("hidden_act")
    if name is not None and (not isinstance(name, str) or name not in _GELUS):
        raise CheckpointError(
            f"{path}: hidden_act is {name!s:.80}; supported are {', '.join(_GELUS)}"
        )
    return _GELUS[name] if name else None
