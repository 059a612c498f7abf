"""The blocks all models are made of, on packed sequences: T = tokens of all images, C = width.

N = heads, c = values of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from viq.models.layers.attention import packed_attention


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention within each image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_TC: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, v = self.qkv(x_TC).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return self.proj(packed_attention(q, k, v, lengths).flatten(1))


class Block(nn.Module):
    """Pre-norm transformer block: x += attention(LN x); x += MLP(LN x)."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_width, width)

    def forward(self, x_TC: Tensor, lengths: Sequence[int]) -> Tensor:
        x_TC = x_TC + self.attn(self.norm1(x_TC), lengths)
        return x_TC + self.mlp(self.norm2(x_TC))


class ResidualMlp(nn.Module):
    """x + MLP(LN x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width, hidden, width)

    def forward(self, x_TC: Tensor) -> Tensor:
        return x_TC + self.mlp(self.norm(x_TC))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: one learned query attends to an image's tokens, then a residual MLP.

    Gives (n, C) for n images.
    """

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=width**-0.5))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_width, width)

    def forward(self, x_TC: Tensor, lengths: Sequence[int]) -> Tensor:
        q_Nc = self.q(self.latent).view(self.heads, -1)
        k_TNc, v_TNc = self.kv(x_TC).unflatten(-1, (2, self.heads, -1)).unbind(1)
        pooled = [
            nn.functional.scaled_dot_product_attention(
                q_Nc[None, :, None], k.transpose(0, 1)[None], v.transpose(0, 1)[None]
            ).flatten(1)
            for k, v in zip(k_TNc.split(list(lengths)), v_TNc.split(list(lengths)), strict=True)
        ]
        x_nC = self.proj(torch.cat(pooled))
        return x_nC + self.mlp(self.norm(x_nC))
