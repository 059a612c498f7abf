"""Attention of packed samples in bfloat16 on a CPU, forward and backward: as `packed_attention`
computes it where gradients are wanted, in float32, beside PyTorch's own in bfloat16.

    PYTHONPATH=src python bench/half_attention.py

Shapes of a packed sequence of `viq-transform-chat`: 1,024 tokens, 16 samples, 8 heads of 32. One
thread, seconds of the processor, medians of runs in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.core.measure import machine
from viq.models.layers.attention import packed_attention

Attention = Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]


def in_bfloat16(q_TNc: Tensor, k_TNc: Tensor, v_TNc: Tensor, lengths: list[int]) -> Tensor:
    outputs = []
    for parts in zip(*(x.split(lengths) for x in (q_TNc, k_TNc, v_TNc)), strict=True):
        q, k, v = (part[None].transpose(1, 2) for part in parts)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        outputs.append(found.transpose(1, 2)[0])
    return torch.cat(outputs)


def ours(q_TNc: Tensor, k_TNc: Tensor, v_TNc: Tensor, lengths: list[int]) -> Tensor:
    return packed_attention(q_TNc, k_TNc, v_TNc, lengths, causal=True)


def seconds(
    attention: Attention, inputs: list[Tensor], lengths: list[int], gradient: Tensor
) -> float:
    begun = time.process_time()
    attention(*inputs, lengths).backward(gradient)
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=31)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lengths = [48 + 2 * number for number in range(16)]
    lengths[-1] += 1024 - sum(lengths)
    inputs = [torch.randn(1024, 8, 32, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(1024, 8, 32, dtype=torch.bfloat16)
    ways: dict[str, Attention] = {"float32": ours, "bfloat16": in_bfloat16}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            taken = seconds(way, inputs, lengths, gradient)
            if run:  # the first warms up
                times[name].append(taken)
    found = {name: statistics.median(each) for name, each in times.items()}
    ratios = [b / a for a, b in zip(times["float32"], times["bfloat16"], strict=True)]
    print(json.dumps(machine()))
    for name, value in found.items():
        print(f"{name:10} {1000 * value:6.1f} ms")
    print(f"float32 is {statistics.median(ratios):.1f} times as fast")


if __name__ == "__main__":
    main()
