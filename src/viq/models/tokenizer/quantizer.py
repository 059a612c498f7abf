"""The quantizer head: tokens to four slots a patch, through a bottleneck, and back to features.

Two bottlenecks are interchangeable: the proximal one of stage 2-1 (continuous, limited to the
unit L-infinity ball) and the position-aware finite scalar quantization of stage 2-2. Step numbers
are those of docs/model.md, "Quantizer head".

T = patches of all images, S = 4 slots, C = width, d = bottleneck dims, M = slot attention width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.levels import PRESETS, check_levels
from viq.core.types import CODES_PER_PATCH, Grid
from viq.image.patches import lengths_of
from viq.models.layers.attention import packed_attention
from viq.models.layers.blocks import Block, Mlp, ResidualMlp
from viq.models.layers.rope2d import angles, rotate
from viq.models.tokenizer.fsq import FSQ
from viq.models.tokenizer.transform_code import TransformConfig

Limit = Literal["linf", "l2", "tanh", "none"]


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Shape of the quantizer head; its width is the encoder's."""

    bottleneck: Literal["proximal", "fsq", "transform"] = "fsq"
    levels: tuple[int, ...] = PRESETS["64k"]  # of FSQ
    proximal_width: int = 128  # channels a slot of the proximal bottleneck
    proximal_limit: Limit = "linf"
    heads: int = 16
    pre_depth: int = 3  # attention blocks before the slots
    slot_depth: int = 3  # position-aware blocks on the slots, FSQ only
    slot_attention_width: int = 256  # M, at most the width
    slot_mlp_ratio: float = 4
    post_depth: int = 3  # residual MLPs after the bottleneck
    # The official code rounds rotation angles, up to 20 rad, to bf16 before cos and sin. That is
    # harmful, but published weights were trained and run that way: "bfloat16" is kept for them.
    # "none" leaves the rotation out, to measure what it is worth.
    rope_angle_dtype: Literal["float32", "bfloat16", "none"] = "float32"
    transform: TransformConfig | None = None  # of the bottleneck "transform", which has no other

    def __post_init__(self) -> None:
        if (self.bottleneck == "transform") != (self.transform is not None):
            raise ValueError("the bottleneck transform and the shape of its code go together")
        object.__setattr__(self, "levels", check_levels(self.levels))
        untrusted.shape(self, proximal_width=2**16, heads=1024, slot_attention_width=2**16)
        for name in ("pre_depth", "slot_depth", "post_depth"):
            untrusted.whole_number(getattr(self, name), name, 0, 512)
        untrusted.ratio(self, "slot_mlp_ratio")
        if self.slot_attention_width % 2:
            raise ValueError(
                f"slot_attention_width {self.slot_attention_width} must be even: positions rotate "
                "one half against the other"
            )


class SlotAttention(nn.Module):
    """Attention across all patches of an image within one slot; slots never mix.

    Slot j plays head j of one attention whose head dim is M; projections are shared by the slots.
    """

    def __init__(self, width: int, attention_width: int, angle_dtype: str) -> None:
        super().__init__()
        m = min(width, attention_width)
        self.decrease = nn.Linear(width, m) if m < width else nn.Identity()
        self.qkv = nn.Linear(m, 3 * m)
        self.proj = nn.Linear(m, m)
        self.increase = nn.Linear(m, width) if m < width else nn.Identity()
        self.angle_dtype = angle_dtype

    def forward(self, x_TSC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        q, k, v = self.qkv(self.decrease(x_TSC)).chunk(3, dim=-1)
        if self.angle_dtype != "none":
            angles_TSF = self._angles(grids_hw, q)
            q, k = rotate(q, angles_TSF), rotate(k, angles_TSF)
        return self.increase(self.proj(packed_attention(q, k, v, lengths_of(grids_hw))))

    def _angles(self, grids_hw: Sequence[Grid], like_TSM: Tensor) -> Tensor:
        slots, width = like_TSM.shape[1:]
        if torch.compiler.is_exporting():  # sides are symbols, which no cache can hold
            return _angles_on(grids_hw, slots, width, self.angle_dtype, like_TSM.device)
        return _kept_angles(
            tuple(grids_hw),
            slots,
            width,
            self.angle_dtype,
            like_TSM.device,
            torch.is_inference_mode_enabled(),
        )


def _angles_on(
    grids_hw: Sequence[Grid], slots: int, width: int, dtype: str, device: torch.device
) -> Tensor:
    angles_TSF = torch.cat([angles(grid, slots, width) for grid in grids_hw])
    if dtype == "bfloat16":
        angles_TSF = angles_TSF.bfloat16().float()
    return angles_TSF.to(device)


@functools.lru_cache(maxsize=1)
def _kept_angles(
    grids_hw: tuple[Grid, ...],
    slots: int,
    width: int,
    dtype: str,
    device: torch.device,
    inference: bool,  # tensors made in inference mode cannot be used outside of it
) -> Tensor:
    """Those of the last batch: every block asks for the same, which would be copied each time."""
    return _angles_on(grids_hw, slots, width, dtype, device)


class SlotBlock(nn.Module):
    """Pre-norm block on slots: x += attention(LN x); x += MLP(LN x)."""

    def __init__(self, width: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SlotAttention(width, config.slot_attention_width, config.rope_angle_dtype)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, round(width * config.slot_mlp_ratio), width)

    def forward(self, x_TSC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        x_TSC = x_TSC + self.attn(self.norm1(x_TSC), grids_hw)
        return x_TSC + self.mlp(self.norm2(x_TSC))


class FSQBottleneck(nn.Module):
    """Steps 4 and 5: position-aware blocks, projection to d dims, FSQ in fp32."""

    def __init__(self, width: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.fsq = FSQ(config.levels)
        self.blocks = nn.ModuleList(SlotBlock(width, config) for _ in range(config.slot_depth))
        self.project_in = nn.Linear(width, len(config.levels))
        self.project_out = nn.Linear(len(config.levels), width)  # step 6, applied by the head

    def forward(self, slots_TSC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Values (T, S, d) before bounding and rounding."""
        for block in self.blocks:
            slots_TSC = block(slots_TSC, grids_hw)
        return self.project_in(slots_TSC)

    def bound(self, z_TSd: Tensor) -> Tensor:
        """Quantized codes (T, S, d) in about [-1, 1], straight-through gradient, fp32."""
        return self.fsq.quantize(z_TSd)


class ProximalBottleneck(nn.Module):
    """Steps 4 and 5 of stage 2-1: projection to a narrow vector, pulled into a unit ball.

    The default divides each slot vector by its largest absolute channel, so that every vector
    lies on the surface of the cube in which FSQ will later place its levels.
    """

    def __init__(self, width: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.kind = config.proximal_limit
        self.project_in = nn.Linear(width, config.proximal_width)
        self.project_out = nn.Linear(config.proximal_width, width)

    def forward(self, slots_TSC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Values (T, S, d) before the limit. `grids_hw` is unused: the interface is FSQ's."""
        return self.project_in(slots_TSC)

    def bound(self, z_TSd: Tensor) -> Tensor:
        """Values (T, S, d) inside the unit ball of the configured norm."""
        if self.kind == "linf":
            return z_TSd / z_TSd.abs().amax(-1, keepdim=True).clamp_min(1e-6)
        if self.kind == "l2":
            return F.normalize(z_TSd, dim=-1, eps=1e-6)
        return z_TSd.tanh() if self.kind == "tanh" else z_TSd


class DequantizeHead(nn.Module):
    """Steps 6 to 9, codes (T, 4, d) to features (T, C): all that a reader of codes needs.

    Attributes:
        bottleneck: of its parts, step 6 takes `project_out`, a linear map from d to C.
    """

    bottleneck: Any

    def add_dequantize(self, width: int, post_depth: int) -> None:
        """Build steps 7 to 9. Apart from `__init__`: in the whole head, other parts come first."""
        c, s = width, CODES_PER_PATCH
        self.merge_mlp = Mlp(s * c, s * c, c)
        self.post_mlp = Mlp(c, c, c)
        self.post_blocks = nn.ModuleList(ResidualMlp(c, 2 * c) for _ in range(post_depth))
        self.post_scale = nn.Parameter(torch.ones(c))
        self.post_shift = nn.Parameter(torch.zeros(c))

    def merge(self, codes_TSd: Tensor) -> Tensor:
        """Steps 6 and 7, (T, C), with the two adjacent linear maps folded into one.

        d -> C in every slot, then 4C -> 4C over the joined slots, is one map 4d -> 4C. It is
        formed anew in each call: that needs no state to keep in step with the weights, gradients
        flow through it, and it pays from about 64 patches on. Maps that are more than their
        weights (quantized ones, adapters) cannot be folded and run one after the other.
        """
        out, fc1 = self.bottleneck.project_out, self.merge_mlp.fc1
        if not (_is_plain(out) and _is_plain(fc1)):
            return self.merge_unfolded(codes_TSd)
        weight_KSC = fc1.weight.unflatten(1, (CODES_PER_PATCH, -1))
        # Weight and bias of the inner map in one product: fc1's weights are read only once.
        folded_KSd = weight_KSC @ torch.cat([out.weight, out.bias[:, None]], dim=1)
        bias = fc1.bias + folded_KSd[..., -1].sum(1)
        folded = folded_KSd[..., :-1].flatten(1)
        hidden = F.linear(codes_TSd.to(folded.dtype).flatten(1), folded, bias)
        return self.merge_mlp.fc2(self.merge_mlp.act(hidden))

    def merge_unfolded(self, codes_TSd: Tensor) -> Tensor:
        """The plain twin of `merge`: equal up to rounding, over twice the multiplications."""
        out = self.bottleneck.project_out
        # Not the dtype of the weights of maps, which may be quantized.
        return self.merge_mlp(out(codes_TSd.to(self.post_scale.dtype)).flatten(1))

    def dequantize(self, codes_TSd: Tensor) -> Tensor:
        """Steps 6 to 9: features (T, C), what language model and decoder read."""
        return self.refine(self.merge(codes_TSd))

    def refine(self, merged_TC: Tensor) -> Tensor:
        """Steps 8 and 9: features (T, C) of merged tokens (T, C)."""
        features_TC = self.post_mlp(merged_TC)
        for block in self.post_blocks:
            features_TC = block(features_TC)
        return features_TC * self.post_scale + self.post_shift

    def dequantize_flops(self, folded: bool) -> int:
        """Floating-point operations a patch of codes to features (steps 6 to 9)."""
        c, s, d = len(self.post_scale), CODES_PER_PATCH, self.bottleneck.project_out.in_features
        first = s * d * s * c if folded else s * d * c + (s * c) ** 2
        return 2 * (first + s * c * c + 2 * c * c + len(self.post_blocks) * 4 * c * c)


def _is_plain(linear: nn.Module) -> bool:
    """Whether a linear map is its weight and bias, as plain tensors. Tensors that stand for others,
    as those of torchao, tell PyTorch so by `__tensor_flatten__`."""
    return type(linear) is nn.Linear and not hasattr(linear.weight, "__tensor_flatten__")


class QuantizerHead(DequantizeHead):
    """Tokens (T, C) to bottleneck values (T, 4, d), and codes (T, 4, d) to features (T, C)."""

    def __init__(self, width: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        c, s = width, CODES_PER_PATCH
        self.pre_norm = nn.LayerNorm(c, eps=1e-5, elementwise_affine=False)
        self.pre_blocks = nn.ModuleList(
            Block(c, config.heads, 4 * c) for _ in range(config.pre_depth)
        )
        self.expand_mlp = Mlp(c, s * c, s * c)
        self.slot_mlp = Mlp(c, c, c)
        kinds = {"fsq": FSQBottleneck, "proximal": ProximalBottleneck}
        self.bottleneck = kinds[config.bottleneck](c, config)
        self.add_dequantize(c, config.post_depth)

    def expand(self, tokens_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Steps 1 to 3: slots (T, S, C)."""
        tokens_TC = self.pre_norm(tokens_TC)
        lengths = lengths_of(grids_hw)
        for block in self.pre_blocks:
            tokens_TC = block(tokens_TC, lengths)
        return self.slot_mlp(self.expand_mlp(tokens_TC).unflatten(-1, (CODES_PER_PATCH, -1)))

    def forward(self, tokens_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Steps 1 to 5 before the limit: values z (T, S, d)."""
        return self.bottleneck(self.expand(tokens_TC, grids_hw), grids_hw)
