"""Attention within each image of a packed sequence, with a plain and a fast twin.

T = tokens of all images, N = heads, c = values of a head. Both twins take and give the same things.
The plain one is a loop of PyTorch's scaled dot-product attention over images and runs
everywhere; on CPU it beat padding, block masks, nested tensors and flex attention. The fast one
is PyTorch's variable-length FlashAttention, for half precision on CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_attention(
    q_TNc: Tensor, k_TNc: Tensor, v_TNc: Tensor, lengths: Sequence[int], *, causal: bool = False
) -> Tensor:
    """Softmax attention, scale 1/sqrt(c), no token seeing another image. Gives (T, N, c).

    Args:
        k_TNc, v_TNc: may have fewer heads, which consecutive heads of q then share.
        lengths: tokens of each image, in order; they add up to T.
        causal: a token sees itself and those before it only.
    """
    if sum(lengths) != q_TNc.shape[0]:
        raise ValueError(f"lengths add up to {sum(lengths)} tokens, the sequence has {len(q_TNc)}")
    way = varlen_attention if _fast_is_possible(q_TNc) else looped_attention
    return way(q_TNc, k_TNc, v_TNc, lengths, causal=causal)


def looped_attention(
    q_TNc: Tensor, k_TNc: Tensor, v_TNc: Tensor, lengths: Sequence[int], *, causal: bool = False
) -> Tensor:
    """The plain twin: one attention call for each run of images of equal length."""
    half = q_TNc.dtype in (torch.float16, torch.bfloat16)
    if half and q_TNc.requires_grad and q_TNc.device.type == "cpu":
        # On CPUs the backward pass is far slower in half precision (bench/half_attention.py).
        with torch.autocast("cpu", enabled=False):
            q, k, v = (x.float() for x in (q_TNc, k_TNc, v_TNc))
            return looped_attention(q, k, v, lengths, causal=causal).to(q_TNc.dtype)
    shared = q_TNc.shape[1] != k_TNc.shape[1]
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    # The gradient of one split is one joining; that of slices, zeros of the whole for each of them.
    sizes = [length * count for length, count in runs]
    parts = zip(*(x.split(sizes) for x in (q_TNc, k_TNc, v_TNc)), strict=True)
    outputs = []
    for (length, count), each in zip(runs, parts, strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in each)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def varlen_attention(
    q_TNc: Tensor, k_TNc: Tensor, v_TNc: Tensor, lengths: Sequence[int], *, causal: bool = False
) -> Tensor:
    """The fast twin: one kernel for the whole sequence (CUDA, fp16 or bf16, c at most 256)."""
    from torch.nn.attention.varlen import varlen_attn

    if (share := q_TNc.shape[1] // k_TNc.shape[1]) > 1:
        # Not every release of the kernel takes fewer heads; copies cost little beside the rest.
        k_TNc, v_TNc = (x.repeat_interleave(share, dim=1) for x in (k_TNc, v_TNc))
    ends = _ends(tuple(lengths), q_TNc.device)
    longest = max(lengths)
    window = (-1, 0 if causal else -1)  # how far a token sees back and ahead; -1: all the way
    out = varlen_attn(q_TNc, k_TNc, v_TNc, ends, ends, longest, longest, window_size=window)
    return out if isinstance(out, Tensor) else out[0]


@functools.lru_cache(maxsize=16)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each image begins, and the end, int32; kept, since every layer asks for the same."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _fast_is_possible(q_TNc: Tensor) -> bool:
    if q_TNc.device.type != "cuda" or q_TNc.dtype not in (torch.float16, torch.bfloat16):
        return False
    if q_TNc.shape[-1] > 256 or q_TNc.shape[-1] % 8:
        return False
    # FlashAttention needs an Ampere card or newer.
    return torch.version.hip is None and torch.cuda.get_device_capability(q_TNc.device)[0] >= 8
