"""Packed batches out of an object store that answers each request late.

A store of codes lies in a server on this machine that s3fs reads from. A fresh process with an
empty cache opens it and takes batches, each time with a pause that stands for a step of training,
once from a server that answers at once and once from one that waits before each answer. Seconds are
those of the clock, as waiting is what is measured; what is imported whatever is read (PyTorch,
pyarrow) is there before they begin, and s3fs is imported within them.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

from viq.bench.batches import drawn, write
from viq.bench.object_store import ObjectStore, serving
from viq.core.measure import peak_memory
from viq.core.types import ViqError
from viq.store.dataset import CodeDataset
from viq.store.rows import StoreInfo

LATENCY = 0.05  # seconds before an answer
TOKENS = 8192  # visual tokens of a batch
STEPS = (0.02, 0.05)  # seconds that a step of training takes
SPENT = 4.0  # seconds of steps in a run
ORDERS = {"shuffled": 0, "in order": None}


def remote(info: StoreInfo, samples: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Time all ways in turn.

    Args:
        info: of the store that is made here, of codes drawn at random.
        samples: how many it has, one image of 256 to 512 px a side each.
        folder: for it, and for caches.

    Returns:
        By order and seconds of a step, with and without latency: `first_s`, seconds from opening
        the store to the first batch, with `first_requests` and `first_mib` until then, and
        `batches_per_s` after it, each as `median`, `min` and `max`; `ratio` is batches a second
        with latency over those without. `skipped` says why there is nothing.
    """
    result: dict[str, Any] = {"latency_s": LATENCY, "tokens": TOKENS, "skipped": {}, "orders": {}}
    try:
        with serving() as server:
            codes, texts = drawn(info, samples)
            store = write(info, codes, texts, folder / "codes")
            del codes, texts
            url = server.put(store, "store")
            result |= {"samples": samples, "shards": len(list(store.glob("*.parquet")))}
            result["mib"] = sum(path.stat().st_size for path in store.iterdir()) / 2**20
            for order, seed in ORDERS.items():
                result["orders"][order] = _compared(server, url, seed, folder, repeats)
    except ViqError as error:
        result["skipped"]["remote"] = str(error)
    return result


def _compared(
    server: ObjectStore, url: str, seed: int | None, folder: Path, repeats: int
) -> dict[str, Any]:
    runs: dict[tuple[float, float], list[dict[str, float]]] = {
        (step, latency): [] for step in STEPS for latency in (0.0, LATENCY)
    }
    for turn in range(repeats):
        for (step, latency), found in runs.items():
            server.latency_s = latency
            server.answers.clear()
            out, cache = folder / "told.json", folder / f"cache-{turn}-{step}-{latency}"
            peak_memory(reading, str(out), url, str(cache), seed, step)
            shutil.rmtree(cache)  # in our own folder, of the run just ended
            told = json.loads(out.read_text())
            before = [sent for at, sent in server.answers if at <= told["first_at"]]
            found.append(
                {
                    "first_s": told["first_s"],
                    "first_requests": len(before),
                    "first_mib": sum(before) / 2**20,
                    "batches_per_s": told["batches_per_s"],
                }
            )
    server.latency_s = 0.0
    result: dict[str, Any] = {}
    for step in STEPS:
        near, far = (_summary(runs[step, latency]) for latency in (0.0, LATENCY))
        ratio = far["batches_per_s"]["median"] / near["batches_per_s"]["median"]
        result[str(step)] = {"without": near, "with": far, "ratio": ratio}
    return result


def _summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
        for name in runs[0]
        for values in [[run[name] for run in runs]]
    }


def reading(out: str, url: str, cache: str, seed: int | None, step: float) -> None:
    """What a fresh process does: open a store, and take batches with a pause after each."""
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401  # here they are loaded when they are needed

    begun = time.monotonic()
    data = CodeDataset(url, columns=["text_ids"], shuffle=seed, cache=cache)
    batches = data.batches(tokens=TOKENS, packed=True)
    next(batches)
    first = time.monotonic()
    taken = 0
    for _ in islice(batches, round(SPENT / step)):
        time.sleep(step)
        taken += 1
    rate = taken / (time.monotonic() - first)
    told = {"first_at": first, "first_s": first - begun, "batches_per_s": rate}
    Path(out).write_text(json.dumps(told))
