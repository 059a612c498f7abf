"""Attention within each image of a packed sequence, with a plain and a fast twin.

T = tokens of all images, H = heads, D = head dim. Both twins take and give the same things.
The plain one is a loop of PyTorch's scaled dot-product attention over images and runs
everywhere; on CPU it beat padding, block masks, nested tensors and flex attention. The fast one
is PyTorch's variable-length FlashAttention, for half precision on CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_attention(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, lengths: Sequence[int]) -> Tensor:
    """Softmax attention, scale 1/sqrt(D), no token seeing another image. Gives (T, H, D).

    Args:
        lengths: tokens of each image, in order; they add up to T.
    """
    if sum(lengths) != len(q_THD):
        raise ValueError(f"lengths add up to {sum(lengths)} tokens, the sequence has {len(q_THD)}")
    if _fast_is_possible(q_THD):
        return varlen_attention(q_THD, k_THD, v_THD, lengths)
    return looped_attention(q_THD, k_THD, v_THD, lengths)


def looped_attention(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, lengths: Sequence[int]) -> Tensor:
    """The plain twin: one attention call for each run of images of equal length."""
    outputs, start = [], 0
    for length, run in groupby(lengths):
        count = len(list(run))
        stop = start + count * length
        q, k, v = (
            x[start:stop].unflatten(0, (count, length)).transpose(1, 2)
            for x in (q_THD, k_THD, v_THD)
        )
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def varlen_attention(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, lengths: Sequence[int]) -> Tensor:
    """The fast twin: one kernel for the whole sequence (CUDA, fp16 or bf16, D at most 256)."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], device=q_THD.device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    out = varlen_attn(q_THD, k_THD, v_THD, ends, ends, longest, longest)
    return out if isinstance(out, Tensor) else out[0]


def _fast_is_possible(q_THD: Tensor) -> bool:
    if q_THD.device.type != "cuda" or q_THD.dtype not in (torch.float16, torch.bfloat16):
        return False
    if q_THD.shape[-1] > 256 or q_THD.shape[-1] % 8:
        return False
    # FlashAttention needs an Ampere card or newer.
    return torch.version.hip is None and torch.cuda.get_device_capability(q_THD.device)[0] >= 8
