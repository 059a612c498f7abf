"""The transformer of QLIP's encoder and decoder, with its switches.

Modules have the names of the published weights.

n = images, S = side of a picture in px, p = patch size, G = S / p, P = G * G, T = P plus the class
token where there is one, H = width, N = heads, d = values of a head.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.untrusted import ratio, shape

_ROPE_SPAN = 16  # positions of a picture run from 0 to below it, whatever its grid

Activation = Literal["gelu", "quick_gelu", "gelu_new", "gelu_pytorch_tanh"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes and switches of the encoder or the decoder, in the words of config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-5
    q_bias: bool = True
    k_bias: bool = True
    v_bias: bool = True
    subln: bool = False
    swiglu: bool = False
    rope: bool = False

    def __post_init__(self) -> None:
        shape(self, hidden_size=2**15, intermediate_size=2**17, num_hidden_layers=256)
        shape(self, num_attention_heads=2**10, image_size=2**13, patch_size=2**9)
        ratio(self, "layer_norm_eps", 1)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be split into "
                f"{self.num_attention_heads} heads"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.rope and self.hidden_size // self.num_attention_heads % 4:
            raise ValueError("rope needs heads of a multiple of 4 channels")

    @property
    def grid(self) -> int:
        """G."""
        return self.image_size // self.patch_size


@functools.lru_cache(maxsize=8)
def rope_angles(grid: int, head_dim: int) -> Tensor:
    """Angles (P, d/2) float32 of pairs of neighbouring channels: the first half by row, the second
    by column."""
    frequencies = 10000.0 ** (-4 * torch.arange(head_dim // 4, dtype=torch.float64) / head_dim)
    places = _ROPE_SPAN * torch.arange(grid, dtype=torch.float64) / grid
    angles = places[:, None] * frequencies
    by_row, by_column = angles.repeat_interleave(grid, 0), angles.repeat(grid, 1)
    return torch.cat([by_row, by_column], dim=1).float()


def rotate(x_nNTd: Tensor, angles: Tensor) -> Tensor:
    """The last P tokens with neighbouring channels rotated; a class token before them as it is."""
    others, turned = x_nNTd.split([x_nNTd.shape[2] - len(angles), len(angles)], dim=2)
    first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([others, pairs.flatten(-2)], dim=2)


def _activate(name: Activation, x: Tensor) -> Tensor:
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if name == "gelu" else "tanh")


class _Attention(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.grid = config.grid if config.rope else 0
        self.q_proj = nn.Linear(width, width, bias=config.q_bias)
        self.k_proj = nn.Linear(width, width, bias=config.k_bias)
        self.v_proj = nn.Linear(width, width, bias=config.v_bias)
        self.inner_attn_ln = _sub_norm(config, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_nTH: Tensor) -> Tensor:
        q, k, v = (
            project(x_nTH).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.grid:
            angles = rope_angles(self.grid, q.shape[-1])
            q, k = rotate(q, angles), rotate(k, angles)
        joined_nTH = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out_proj(self.inner_attn_ln(joined_nTH))


class _Mlp(nn.Module):
    """Linear, activation, Linear; a norm before the last where there are such."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.act: Activation = config.hidden_act
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_ln = _sub_norm(config, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ffn_ln(_activate(self.act, self.fc1(x))))


class _SwiGlu(nn.Module):
    """SiLU of one linear map gates another; a third after them."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w2 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.ffn_ln = _sub_norm(config, config.intermediate_size)
        self.w3 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


def _sub_norm(config: TowerConfig, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=config.layer_norm_eps) if config.subln else nn.Identity()


class _Block(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = _Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _SwiGlu(config) if config.swiglu else _Mlp(config)

    def forward(self, x_nTH: Tensor) -> Tensor:
        x_nTH = x_nTH + self.self_attn(self.layer_norm1(x_nTH))
        return x_nTH + self.mlp(self.layer_norm2(x_nTH))


class Blocks(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, x_nTH: Tensor) -> Tensor:
        for layer in self.layers:
            x_nTH = layer(x_nTH)
        return x_nTH


class Embeddings(nn.Module):
    """The class token, then patches in raster order, with learned positions."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.position_embedding = nn.Embedding(config.grid**2 + 1, width)

    def forward(self, values_n3SS: Tensor) -> Tensor:
        patches_nPH = self.patch_embedding(values_n3SS).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches_nPH), 1, -1)
        return torch.cat([first, patches_nPH], dim=1) + self.position_embedding.weight
