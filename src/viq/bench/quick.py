"""A guard against slow changes: a few speeds as ratios, beside those of the last commit.

    make bench-quick                            # bench/quick.py; under three minutes on two cores
    python bench/quick.py bench/last.json --save    # these are the last ones from now on

Each ratio is how many times as long the baseline takes, in runs that take turns with those of
ours, so that a slow machine slows both: less than before is slower than before. Baselines are
repeated until they take long enough to be timed, so a ratio by itself says nothing; `viq bench`
measures that. Times are of processors, not of the clock. Baselines are decoding JPEG, copying
memory, multiplying matrices, zstd.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from viq.bench.batches import drawn, write
from viq.bench.encode import mixed_images
from viq.bench.encode_tables import table
from viq.bench.setting import jpeg
from viq.core.measure import machine
from viq.models.tokenizer.loading import load
from viq.store.dataset import CodeDataset
from viq.store.folder import Store
from viq.store.rows import StoreInfo

FALL = 0.15  # of a median, that is flagged
_SIDES = (192, 320)  # px
_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class QuickWorkload:
    """How much is measured: `images` pictures are encoded, `samples` are read, at `model`s."""

    images: int = 8
    samples: int = 4000
    models: Sequence[str] = ("viq-tiny", "viq-transform")


Work = tuple[str, Callable[[], Any], Callable[[], Any]]  # name of the baseline, baseline, ours


def quick(
    work: QuickWorkload | None = None,
    *,
    repeats: int = 7,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure; the result is for `json.dumps`, `compared` and `as_text`.

    Args:
        repeats: runs of each, in turn with its baseline, after one to warm up.
        progress: called with the name of each before it starts.
    """
    result: dict[str, Any] = {"benchmark": "quick", "repeats": repeats, "ratios": {}}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result["machine"] = machine()
        with tempfile.TemporaryDirectory() as folder:
            for name, (baseline, first, ours) in _works(work or QuickWorkload(), Path(folder)):
                if progress:
                    progress(name)
                result["ratios"][name] = {"over": baseline, **_ratios(first, ours, repeats)}
    finally:
        torch.set_num_threads(threads)
    return result


def compared(new: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, float]:
    """How far the medians that fell by more than `FALL` fell, by name, as a share of before.

    One whose best run is as good as the median before is not among them: its runs differ by as much
    as it fell.
    """
    fallen = {}
    for name, now in new["ratios"].items():
        before = last.get("ratios", {}).get(name)
        if before and now["max"] < before["median"]:
            fall = 1 - now["median"] / before["median"]
            if fall > FALL:
                fallen[name] = fall
    return fallen


def as_text(new: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Ratios of `quick` beside those before; with a flag where one fell."""
    rows: list[tuple[str, ...]] = [
        ("", "over", "median", "min", "max", "last", "change", ""),
    ]
    fallen = compared(new, last)
    for name, now in new["ratios"].items():
        before = last.get("ratios", {}).get(name)
        change = f"{now['median'] / before['median'] - 1:+.0%}" if before else "new"
        values = (f"{now[key]:.3g}" for key in ("median", "min", "max"))
        was = f"{before['median']:.3g}" if before else ""
        rows.append((name, now["over"], *values, was, change, "FELL" * (name in fallen)))
    lines = [
        f"{new['machine']['cpu']}, torch {new['machine']['torch']}, one thread; time of the "
        f"baseline over ours, {new['repeats']} runs in turn; only its change says something",
        *table(rows),
    ]
    where = {key: last.get("machine", {}).get(key) for key in ("cpu", "torch", "python")}
    if last.get("ratios") and any(new["machine"][key] != value for key, value in where.items()):
        lines.append(f"  the last ones are of another machine: {where}")
    missing = sorted(last.get("ratios", {}).keys() - new["ratios"].keys())
    lines += [f"  {name} was measured last, and is no more" for name in missing]
    return "\n".join(lines)


def _ratios(baseline: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> dict[str, float]:
    baseline()
    ours()
    ratios = []
    for _ in range(repeats):
        # Before and after ours, as the machine may be slower from one to the other.
        spent = [_seconds(function) for function in (baseline, ours, baseline)]
        ratios.append((spent[0] + spent[2]) / 2 / spent[1])
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _seconds(function: Callable[[], Any]) -> float:
    """Of processors, in this process and those that it has started and that have ended: what else
    the machine does meanwhile is not in it."""
    start = _spent()
    function()
    return _spent() - start


def _spent() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _works(work: QuickWorkload, folder: Path) -> Iterator[tuple[str, Work]]:
    pictures = mixed_images(work.images, _SIDES)
    files = [jpeg(picture) for picture in pictures]

    def decode_jpeg() -> None:
        for data in files * 8:  # long enough to be timed
            Image.open(io.BytesIO(data)).convert("RGB").load()

    for model in work.models:
        tokenizer = load(model)
        codes = tokenizer.encode(pictures)
        patches = sum(item.ids.size // 4 for item in codes)
        yield (
            f"encode, {model}",
            ("JPEG decoding", decode_jpeg, lambda t=tokenizer: t.encode(pictures)),
        )
        yield f"decode, {model}", (
            "JPEG decoding", decode_jpeg, lambda t=tokenizer, c=codes: t.decode(c),
        )  # fmt: skip
        yield (
            f"embed, {model}",
            ("matmul", _matmul(patches), lambda t=tokenizer, c=codes: t.embed(c)),
        )
        packed = tokenizer.entropy.compress(codes)
        plain = [item.ids.tobytes() for item in codes]
        sizes, tiles = [item.size for item in codes], [item.tile for item in codes]
        pack = _zstd(plain * 32)
        yield f"pack codes, {model}", (
            "zstd", pack, partial(tokenizer.entropy.compress, codes),
        )  # fmt: skip
        yield f"unpack codes, {model}", (
            "zstd", pack, partial(tokenizer.entropy.decompress, packed, sizes, tiles),
        )  # fmt: skip
    yield from _reading(work, folder)


def _reading(work: QuickWorkload, folder: Path) -> Iterator[tuple[str, Work]]:
    tokenizer = load(work.models[0])
    info = StoreInfo(
        model=tokenizer.config.name, fingerprint=tokenizer.fingerprint, levels=tokenizer.levels
    )
    codes, texts = drawn(info, work.samples)
    store = write(info, codes, texts, folder / "codes")
    flat = np.concatenate([item.ids.reshape(-1, 4) for item in codes])
    data = CodeDataset(store, columns=["text_ids"], shuffle=0, cache=folder / "cache")

    def copy() -> None:
        for _ in range(8):
            for start in range(0, len(flat), _TOKENS):
                flat[start : start + _TOKENS].copy()

    def every(**options: Any) -> Callable[[], None]:
        def read() -> None:
            for _ in data.batches(tokens=_TOKENS, **options):
                pass

        return read

    yield "packed batches", ("memcpy", copy, every(packed=True))
    yield "batches of samples", ("memcpy", copy, every())
    yield "packed batches, a worker", ("memcpy", copy, every(packed=True, workers=1))
    few = folder / "few"
    few.mkdir()
    runs = iter(range(10**6))
    yield "write a store", (
        "memcpy", copy, lambda: write(info, codes[:500], texts[:500], few / str(next(runs))),
    )  # fmt: skip
    yield "read a store in order", ("memcpy", copy, lambda: sum(1 for _ in Store(store)))


def _matmul(patches: int) -> Callable[[], Any]:
    """As many rows as there are patches, through a square matrix."""
    seed = torch.Generator().manual_seed(0)
    rows, square = torch.randn(patches, 512, generator=seed), torch.randn(512, 512, generator=seed)

    def multiply() -> None:
        for _ in range(16):
            torch.mm(rows, square)

    return multiply


def _zstd(parts: Sequence[bytes]) -> Callable[[], Any]:
    import pyarrow as pa

    codec = pa.Codec("zstd")
    return lambda: [codec.compress(data, asbytes=True) for data in parts]
