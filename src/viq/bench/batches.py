"""Packed batches a second of `CodeDataset` beside other libraries, and beside copying memory.

A step of training on codes needs one array of the codes of some samples, where each image begins,
its rows and columns, and the text ids. Here every library makes such batches of the same samples,
in shuffled order, each with its own loader and as many workers. Ours are cut at a number of visual
tokens; the others take as many samples as that is on average, as their loaders do, so what is
compared are visual tokens a second.

Without workers seconds are those of the processor, so that other programs of the machine do not
count; with workers those of the clock, as more than one process is at work.

Starting processes is counted apart, as seconds to the first batch: a training starts them once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from viq.bench.peer import BATCHED, clock_for, packed, time_batches
from viq.bench.peer_process import NO_PEER, peer_process, peer_python
from viq.core.codes import Codes
from viq.core.files import sha256_of
from viq.core.types import grid_of
from viq.store.columns import Extras
from viq.store.dataset import CodeDataset
from viq.store.folder import INDEX, Index, Shard, shard_name
from viq.store.packed import offsets_of
from viq.store.rows import CodesWriter, StoreInfo
from viq.store.views import CodeSample

TOKENS = (8192, 65536)
WORKERS = (0, 1, 2)
_SHARD = 1000  # samples, the default of `viq encode`

Timed = tuple[float, float, int]  # as `time_batches` gives it


def batches(
    info: StoreInfo, samples: int, folder: Path, peers: Path | None, repeats: int
) -> dict[str, Any]:
    """Time all ways in turn.

    Args:
        info: of the store that is made here, of codes drawn at random.
        samples: how many it has, one image of 256 to 512 px a side each.
        folder: for it, and for the copies of others.
        peers: folder of environments that bench/peers.sh made; None leaves them out.

    Returns:
        By tokens and workers, `median`, `min` and `max` of batches a second of each way, and
        `viq_over`; `first_s` are seconds to the first batch.
    """
    codes, texts = drawn(info, samples)
    store = write(info, codes, texts, folder / "codes")
    patches = sum(item.ids.size // 4 for item in codes)
    result: dict[str, Any] = {"samples": samples, "patches": patches, "versions": {}, "skipped": {}}
    with ExitStack() as stack:
        others: dict[str, Callable[[str], Any]] = {}
        for name in BATCHED:
            python = peer_python(peers, name)
            if python is None:
                result["skipped"][name] = NO_PEER
                continue
            asked = stack.enter_context(peer_process(name, python, codes, folder, texts))
            result["versions"][name] = asked.about["version"]
            others[name] = asked.read
        data = CodeDataset(store, columns=["text_ids"], shuffle=0, cache=folder / "cache")
        ordered = CodeDataset(store, columns=["text_ids"], cache=folder / "cache")
        flat = np.concatenate([item.ids.reshape(-1, 4) for item in codes])
        pieces = _pieces(flat, [item.ids.size // 4 for item in codes])
        del codes, texts
        result["by_tokens"] = {}
        for tokens in TOKENS:
            size = max(1, round(tokens / (patches / samples)))
            by_workers = result["by_tokens"][str(tokens)] = {}
            for workers in WORKERS:
                # Half of them, while workers start: that takes as long as dozens of batches.
                skipped = patches // tokens // (2 if workers else 10)
                clock = partial(time_batches, skipped=max(1, skipped), clock=clock_for(workers))
                ours = partial(data.batches, tokens=tokens, workers=workers)
                ways: dict[str, Callable[[], Timed]] = {
                    "viq": lambda go=ours, clock=clock: clock(_as_dicts(go(packed=True))),
                    "viq, sample by sample": lambda go=ours, clock=clock: clock(go(collate=_pack)),
                }
                for name, read in others.items():
                    ways[name] = partial(
                        read, f"batches {size} {workers} {clock.keywords['skipped']}"
                    )
                if not workers:
                    in_order = partial(ordered.batches, tokens=tokens, packed=True)
                    ways["viq, not shuffled"] = lambda go=in_order, clock=clock: clock(
                        _as_dicts(go())
                    )
                    ways["memcpy"] = lambda n=tokens, clock=clock: clock(_copied(flat, n))
                    ways["memcpy, shuffled"] = lambda n=size, clock=clock: clock(_joined(pieces, n))
                by_workers[str(workers)] = _compared(ways, repeats, tokens)
    return result


def _compared(
    ways: dict[str, Callable[[], Timed]], repeats: int, tokens: int
) -> dict[str, dict[str, Any]]:
    """Batches of so many tokens a second, of interleaved runs after one to warm up."""
    runs: dict[str, list[Timed]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            timed = way()
            if turn:
                runs[name].append(timed)
    rates = {
        name: [patches / tokens / seconds for _, seconds, patches in timed]
        for name, timed in runs.items()
    }
    ours = statistics.median(rates["viq"])
    return {
        name: {
            "median": statistics.median(found),
            "min": min(found),
            "max": max(found),
            "first_s": statistics.median(first for first, _, _ in runs[name]),
            "viq_over": ours / statistics.median(found),
        }
        for name, found in rates.items()
    }


def drawn(info: StoreInfo, samples: int) -> tuple[list[Codes], list[np.ndarray]]:
    """Codes at random, and text ids: speed does not depend on what they are."""
    draw, most = np.random.default_rng(0), int(np.prod(info.levels))
    codes, texts = [], []
    for _ in range(samples):
        size = tuple(draw.integers(256, 513, 2).tolist())
        ids = draw.integers(0, most, (*grid_of(size), 4)).astype(np.uint16)
        codes.append(Codes(ids, size, 0, info.fingerprint))
        texts.append(draw.integers(0, 150_000, draw.integers(16, 129)).astype(np.int32))
    return codes, texts


def write(
    info: StoreInfo, codes: Sequence[Codes], texts: Sequence[np.ndarray], folder: Path
) -> Path:
    """A store of them, in shards as large as `viq encode` makes them."""
    folder.mkdir()
    extras, shards = Extras.inferred([{"text_ids": [1]}]), []
    for number, first in enumerate(range(0, len(codes), _SHARD)):
        path, last = folder / shard_name(number), min(first + _SHARD, len(codes))
        with CodesWriter(path, info, extras) as writer:
            for i in range(first, last):
                row = extras.pack({"text_ids": texts[i].tolist()})
                writer.add(f"images/{i:08d}.jpg", codes[i], 0, row)
        shards.append(
            Shard(
                name=path.name, rows=last - first, inputs=(first, last),
                bytes=path.stat().st_size, sha256=sha256_of(path),
            )
        )  # fmt: skip
    totals = {"rows": len(codes), "failures": 0}
    index = Index(info=info, inputs=len(codes), shards=tuple(shards), totals=totals)
    (folder / INDEX).write_bytes(index.to_json())
    return folder


def _as_dicts(found: Iterable[Any]) -> Iterable[dict[str, Any]]:
    return ({"ids": batch.ids} for batch in found)


def _pack(samples: list[CodeSample]) -> dict[str, Any]:
    """What peers do, of our samples."""
    rows = []
    for sample in samples:
        (item,) = sample.codes
        height, width = item.size
        text = np.asarray(sample.extras["text_ids"], np.int32)
        rows.append({"height": height, "width": width, "ids": item.ids, "text_ids": text})
    return packed(rows)


def _copied(flat: np.ndarray, tokens: int) -> Iterable[dict[str, Any]]:
    """The same codes, which lie in memory one after another, copied batch by batch."""
    return ({"ids": flat[start : start + tokens].copy()} for start in range(0, len(flat), tokens))


def _pieces(flat: np.ndarray, patches: Sequence[int]) -> list[memoryview]:
    """The same codes sample by sample, in an order drawn at random."""
    ends = offsets_of(patches)
    cut = [flat[a:b].data.cast("B") for a, b in pairwise(ends.tolist())]
    return [cut[i] for i in np.random.default_rng(0).permutation(len(cut)).tolist()]


def _joined(pieces: Sequence[memoryview], size: int) -> Iterable[dict[str, Any]]:
    """So many samples a batch, copied one after another by one call: what shuffling must cost."""
    return (
        {"ids": np.frombuffer(b"".join(pieces[start : start + size]), np.uint16).reshape(-1, 4)}
        for start in range(0, len(pieces), size)
    )
