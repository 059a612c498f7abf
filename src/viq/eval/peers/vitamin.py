"""ViTamin, the network of UniTok: convolutions to one vector a patch, a transformer, and back.

Modules have the names of the published weights.

n = images, S = side of a picture in px, N = S / 16 squared, places of a picture; a, b, c = widths
of the stem, of the convolutions after it and of the transformer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from viq.models.layers.blocks import Attention

PATCH = 16  # px


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Sizes of a ViTamin."""

    stem: int  # a
    stage: int  # b
    trunk: int  # c
    depth: int
    heads: int


PUBLISHED = {
    "vitamin_large": Widths(stem=160, stage=320, trunk=1024, depth=31, heads=16),
    "vitamin_base": Widths(stem=128, stage=256, trunk=768, depth=14, heads=12),
}


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (n, C, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def _channel_norm(width: int) -> _ChannelNorm:
    return _ChannelNorm(width, eps=1e-6)


def _conv3(width_in: int, width_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1)


class _Doubled(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = _conv3(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class _Halved(nn.Module):
    """The mean of each pixel's neighbours, at every other pixel, in as many channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False))


class _MobileBlock(nn.Module):
    """Inverted residual: expand, filter each channel, project; at half, equal or double size."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        step: Literal["halve", "keep", "double"] = "keep",
    ) -> None:
        super().__init__()
        hidden, stride = 4 * width_out, 2 if step == "halve" else 1
        doubled = step == "double"
        self.pre_norm = _channel_norm(width_in)
        self.conv1_1x1 = nn.Conv2d(width_in, hidden, 1)
        self.up = _Doubled(hidden, hidden) if doubled else nn.Identity()
        self.conv2_kxk = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden)
        self.conv3_1x1 = nn.Conv2d(hidden, width_out, 1)
        self.shortcut: nn.Module = nn.Identity()
        if step != "keep":
            self.shortcut = (_Doubled if doubled else _Halved)(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.gelu(self.conv1_1x1(self.pre_norm(x))))
        return self.conv3_1x1(F.gelu(self.conv2_kxk(y))) + self.shortcut(x)


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv3(3, width, stride=2)
        self.norm1 = _channel_norm(width)
        self.conv2 = _conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(x))))


class _Pool(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm = _channel_norm(width_in)
        self.proj = _conv3(width_in, width_out, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(x))


class _Backbone(nn.Module):
    """Convolutions from pixels to one vector a patch of 16 px."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        a, b = widths.stem, widths.stage
        self.stem = _Stem(a)
        self.stages = nn.Sequential(
            nn.Sequential(_MobileBlock(a, a, "halve"), _MobileBlock(a, a)),
            nn.Sequential(_MobileBlock(a, b, "halve"), *(_MobileBlock(b, b) for _ in range(3))),
        )
        self.pool = _Pool(b, widths.trunk)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.stages(self.stem(x)))


class _PatchEmbed(nn.Module):
    """Only a place for the published names."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.backbone = _Backbone(widths)


class GatedMlp(nn.Module):
    """LayerNorm; one linear map, through GELU (tanh), gates another; a third after them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.w0, self.w1 = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.w2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.w2(F.gelu(self.w0(x), approximate="tanh") * self.w1(x))


class _Block(nn.Module):
    """Pre-norm transformer block on the places of each picture."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = GatedMlp(width)

    def forward(self, x_nNc: Tensor) -> Tensor:
        packed = self.norm1(x_nNc).flatten(0, 1)
        attended = self.attn(packed, [x_nNc.shape[1]] * len(x_nNc))
        x_nNc = x_nNc + attended.view_as(x_nNc)
        return x_nNc + self.mlp(self.norm2(x_nNc))


def _blocks(widths: Widths) -> nn.Sequential:
    return nn.Sequential(*(_Block(widths.trunk, widths.heads) for _ in range(widths.depth)))


class Encoder(nn.Module):
    """Values (n, 3, S, S) to (n, N, c)."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(widths)
        self.blocks = _blocks(widths)
        self.norm = nn.LayerNorm(widths.trunk, eps=1e-6)

    def forward(self, values_n3SS: Tensor) -> Tensor:
        grid = self.patch_embed.backbone(values_n3SS)
        return self.norm(self.blocks(grid.flatten(2).transpose(1, 2)))


class Decoder(nn.Module):
    """(n, N, c) to values (n, 3, S, S)."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        a, b = widths.stem, widths.stage
        self.blocks = _blocks(widths)
        self.norm = nn.LayerNorm(widths.trunk, eps=1e-6)
        self.up_conv1 = _Doubled(widths.trunk, b)
        self.up_conv2 = nn.Sequential(
            _MobileBlock(b, b, "double"), *(_MobileBlock(b, b) for _ in range(3))
        )
        self.up_conv3 = nn.Sequential(_MobileBlock(b, a, "double"), _MobileBlock(a, a))
        self.up_conv4 = _Last(a)

    def forward(self, x_nNc: Tensor) -> Tensor:
        side = math.isqrt(x_nNc.shape[1])
        grid = self.norm(self.blocks(x_nNc)).transpose(1, 2).unflatten(2, (side, side))
        return self.up_conv4(self.up_conv3(self.up_conv2(self.up_conv1(grid))))


class _Last(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _Doubled(width, width)
        self.norm1 = _channel_norm(width)
        self.conv2 = _conv3(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm1(self.conv1(x))))
