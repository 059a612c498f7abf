"""What would make a step of training faster on a CPU: ways to compute it, in turn, on equal data.

    PYTHONPATH=src python bench/training_ways.py tiny --stage 0-detail-fsq --data PHOTOS

Forward and backward passes of one step of each stage, from nothing, one thread, seconds of the
thread, so that other programs of the machine do not count; medians of runs in turn, after one of
each to warm up. `gradient` is how far the gradient is from that of the usual way: the norm of the
difference over the norm. The optimizer is measured by itself. `products` is the share of a profile
of one step that products of matrices take, and beside it stands how fast these are by themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from viq.core.measure import machine
from viq.data.corpora.corpora import open_corpora
from viq.models.layers.blocks import Mlp
from viq.recipes.registry import RECIPES
from viq.train.loop import _counts, _Training
from viq.train.tokenizer.fitted_stages import KINDS as FITTED
from viq.train.tokenizer.run import TokenizerRun, TrainingData

Way = Callable[[_Training], AbstractContextManager[Any]]


def as_it_is(training: _Training) -> AbstractContextManager[Any]:
    return nullcontext()


def bfloat16(training: _Training) -> AbstractContextManager[Any]:
    """Products in bfloat16, as `accelerate launch --mixed_precision bf16` has them."""
    return mock.patch.object(
        training.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16)
    )


def plain_attention(training: _Training) -> AbstractContextManager[Any]:
    """Attention as two products and a softmax, in place of the kernel that joins them."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def channels_last(training: _Training) -> Iterator[None]:
    """Weights of convolutions in the order in which their input lies in memory."""
    convolutions = [m for m in training.bare.modules() if isinstance(m, nn.Conv2d)]
    kept = [m.weight.data for m in convolutions]
    for module in convolutions:
        module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    yield
    for module, weight in zip(convolutions, kept, strict=True):
        module.weight.data = weight


_compiled = torch.compile(Mlp.forward, dynamic=True)


def compiled(training: _Training) -> AbstractContextManager[Any]:
    """Two-layer networks by `torch.compile`, which joins what lies between the products."""
    return mock.patch.object(Mlp, "forward", _compiled)


WAYS: Mapping[str, Way] = {
    "as it is": as_it_is,
    "bfloat16": bfloat16,
    "plain attention": plain_attention,
    "channels last": channels_last,
    "compiled": compiled,
}


def passes(training: _Training, names: list[str], repeats: int, given: tuple[Any, ...]) -> Any:
    """Milliseconds of a forward and backward pass by each way, and how far gradients are off."""
    seconds: dict[str, list[float]] = defaultdict(list)
    gradients: dict[str, torch.Tensor] = {}
    for turn in range(repeats + 1):
        for name in names:
            training.bare.zero_grad(set_to_none=True)
            with WAYS[name](training):
                begun = time.thread_time()
                training._accumulated(*given)
                spent = time.thread_time() - begun
            if turn:
                seconds[name].append(spent)
            elif name not in gradients:
                found = [p.grad.flatten() for p in training.bare.parameters() if p.grad is not None]
                gradients[name] = torch.cat(found)
    first = gradients[names[0]]
    return {
        name: {
            "ms": round(1000 * statistics.median(spent), 1),
            "min_ms": round(1000 * min(spent), 1),
            "max_ms": round(1000 * max(spent), 1),
            "times_as_fast": statistics.median(seconds[names[0]]) / statistics.median(spent),
            "gradient": float((gradients[name] - first).norm() / first.norm()),
        }
        for name, spent in seconds.items()
    }


def optimizers(training: _Training, repeats: int) -> dict[str, float]:
    """Milliseconds of a step of AdamW, one weight after the other, in groups, and fused."""
    options: dict[str, Any] = {
        "one by one": {"foreach": False},
        "foreach": {"foreach": True},
        "fused": {"fused": True},
    }
    weights = [p for p in training.bare.parameters() if p.grad is not None]
    copies = {name: [p.detach().clone().requires_grad_() for p in weights] for name in options}
    made = {name: torch.optim.AdamW(copies[name], **options[name]) for name in options}
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeats + 1):
        for name, optimizer in made.items():
            for copy, weight in zip(copies[name], weights, strict=True):
                copy.grad = weight.grad
            begun = time.thread_time()
            optimizer.step()
            if turn:
                seconds[name].append(time.thread_time() - begun)
    return {name: round(1000 * statistics.median(spent), 2) for name, spent in seconds.items()}


def product_share(training: _Training, given: tuple[Any, ...]) -> float:
    """Of a forward and backward pass, by a profile, what products of matrices take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        training._accumulated(*given)
    found = profile.key_averages()
    spent = {event.key: event.self_cpu_time_total for event in found}
    products = sum(spent.get(f"aten::{name}", 0.0) for name in ("mm", "addmm", "bmm", "baddbmm"))
    return round(products / sum(spent.values()), 3)


def product_speed() -> dict[str, list[float]]:
    """Least and most GFLOP/s of the products of a linear layer and its gradients, by type."""
    rates: dict[str, list[float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for tokens, cin, cout in ((2816, 192, 768), (2816, 768, 192), (2816, 192, 576)):
            x, w, g = (
                torch.randn(*shape).to(dtype)
                for shape in ((tokens, cin), (cout, cin), (tokens, cout))
            )
            for a, b in ((x, w.t()), (g, w), (g.t(), x)):
                spent = []
                for _ in range(12):
                    begun = time.thread_time()
                    torch.mm(a, b)
                    spent.append(time.thread_time() - begun)
                found.append(2e-9 * tokens * cin * cout / statistics.median(spent))
        rates[str(dtype).removeprefix("torch.")] = [round(min(found)), round(max(found))]
    return rates


def measure(
    recipe: str, stages: list[str], names: list[str], repeats: int, data: list[str]
) -> list[dict[str, Any]]:
    """A row for each stage."""
    chosen, rows = RECIPES[recipe](), list[dict[str, Any]]()
    wanted = [s for s in chosen.stages if s.kind not in FITTED and (not stages or s.name in stages)]
    short = [replace(s, loop=replace(s.loop, steps=1, log_every=1, eval_every=2)) for s in wanted]

    def step(training: _Training, number: int, lanes: Any, micros: Any) -> Any:
        counts = {name: float(value) for name, value in _counts(micros).items()}
        given = number, lanes, micros, counts
        rows.append(
            {
                "stage": training.name,
                "patches": int(counts["patches"]),
                "ways": passes(training, names, repeats, given),
                "products": product_share(training, given),
                "optimizer_ms": optimizers(training, repeats),
            }
        )
        training.bare.zero_grad(set_to_none=True)
        return original(training, number, lanes, micros)

    original, corpora = _Training.step, open_corpora(data, "train")
    with mock.patch.object(_Training, "step", step), tempfile.TemporaryDirectory() as folder:
        run = replace(chosen, stages=tuple(short))
        TokenizerRun(run, TrainingData.of(corpora, data), Path(folder, "run"), hidden=True).train()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", choices=[name for name in RECIPES if name not in ("so400m", "g")])
    parser.add_argument("--stage", action="append", default=[], help="again for more; all if none")
    parser.add_argument(
        "--ways", default=",".join(WAYS), help="by commas; the first is the baseline"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", action="append", default=[], help="as viq train takes it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(asked.recipe, asked.stage, asked.ways.split(","), asked.repeats, asked.data)
    about = {"recipe": asked.recipe, "repeats": asked.repeats, "machine": machine()}
    print(json.dumps({**about, "stages": rows}))
    print(
        "| stage | way | ms | least to most | times as fast | gradient |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        for name, one in row["ways"].items():
            least, most = (f"{one[key]:,.0f}" for key in ("min_ms", "max_ms"))
            figures = f"{one['ms']:,.0f} | {least} to {most} | {one['times_as_fast']:.2f}"
            print(f"| {row['stage']} | {name} | {figures} | {one['gradient']:.1e} |")
    for row in rows:
        told = ", ".join(f"{name} {spent} ms" for name, spent in row["optimizer_ms"].items())
        print(f"{row['stage']}: AdamW {told}; products {row['products']:.0%}")
    for name, (least, most) in product_speed().items():
        print(f"products in {name}: {least:.0f} to {most:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
