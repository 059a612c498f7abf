"""Samples a second of `CodeDataset` beside other ways to read the same codes, and beside pixels."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from viq.bench import peer
from viq.bench.peer_process import NO_PEER, peer_process, peer_python
from viq.bench.setting import jpeg
from viq.core.measure import compare
from viq.store.dataset import CodeDataset
from viq.store.folder import Store

ORDERS = ("sequential", "random")
_JPEGS = 200  # pictures that are decoded for comparison; a sample of the sizes


def reading(
    store: Path, folder: Path, pictures: Sequence[np.ndarray], peers: Path | None, repeats: int
) -> dict[str, Any]:
    """Time all ways in turn; every one gives each sample's ids as int64, as a model takes them.

    Args:
        store: finished, of one image a sample.
        folder: for the copies of others.
        pictures: of the sizes in the store; what JPEG decoding is measured on.
        peers: folder of environments that bench/peers.sh made; None leaves them out.
    """
    samples = [codes for _, codes in Store(store)]
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    result: dict[str, Any] = {"samples": len(samples), "versions": {}, "skipped": {}}
    with ExitStack() as stack:
        readers: dict[str, Callable[[str], int]] = {}
        data = CodeDataset(store, columns=(), cache=folder / "cache")
        readers["viq"] = lambda kind: _use_all(data if kind == "sequential" else _each(data, order))
        rows = _Groups(store)
        readers["parquet row groups"] = lambda kind: _use_groups(rows, kind, order)
        with suppress(ImportError):
            readers["datasets"] = _datasets(store, folder / "datasets", order)
            result["versions"]["datasets"] = importlib.metadata.version("datasets")
        if "datasets" not in readers:
            result["skipped"]["datasets"] = "not installed: pip install datasets"
        for name in peer.PEERS:
            python = peer_python(peers, name)
            if python is None:
                result["skipped"][name] = NO_PEER
                continue
            asked = stack.enter_context(peer_process(name, python, samples, folder))
            result["versions"][name] = asked.about["version"]
            readers[name] = asked.read
        jpegs = [jpeg(picture) for picture in pictures[:_JPEGS]]
        for kind in ORDERS:
            counts = {name: len(samples) for name in readers}
            variants: dict[str, Callable[[], int]] = {
                name: partial(read, kind) for name, read in readers.items()
            }
            if kind == "sequential":
                counts["JPEG decoding"] = len(jpegs)
                variants["JPEG decoding"] = lambda: len([_decoded(data) for data in jpegs])
            # Reading one by one out of groups takes a thousand times longer than the rest.
            if kind == "random":
                counts["parquet row groups"] = min(_Groups.RANDOM, len(samples))
            times = compare(variants, repeats)
            rates = {name: counts[name] / spent["median_s"] for name, spent in times.items()}
            best = max((rate for name, rate in rates.items() if name in peer.PEERS), default=None)
            result[kind] = {
                "times": times,
                "samples_per_s": rates,
                "viq_over_best_peer": rates["viq"] / best if best else None,
                "viq_over": {name: rates["viq"] / rate for name, rate in rates.items()},
            }
    return result


def _each(data: CodeDataset, order: Sequence[int]) -> Iterator[Any]:
    return map(data.__getitem__, order)


def _use_all(samples: Iterator[Any] | CodeDataset) -> int:
    count = 0
    for sample in samples:
        sample.codes[0].ids.astype(np.int64)
        count += 1
    return count


class _Groups:
    """The Parquet file itself: a row comes with its whole group."""

    RANDOM = 200  # rows that are read at random

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        store = Store(path)
        self.store = store
        self.files = [pq.ParquetFile(store.file(shard)) for shard in store.shards]
        self.groups = [
            (file, group) for file in self.files for group in range(file.metadata.num_row_groups)
        ]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self.groups]
        self.firsts = np.cumsum([0, *sizes])

    def row(self, place: int) -> np.ndarray:
        number = int(np.searchsorted(self.firsts, place, side="right")) - 1
        file, group = self.groups[number]
        codes = file.read_row_group(group, columns=["codes"])["codes"]
        return codes[place - int(self.firsts[number])].values.to_numpy()


def _use_groups(groups: _Groups, kind: str, order: Sequence[int]) -> int:
    if kind == "sequential":
        count = 0
        for _, codes in groups.store:
            codes.ids.astype(np.int64)
            count += 1
        return count
    for place in order[: _Groups.RANDOM]:
        groups.row(place).astype(np.int64)
    return len(order[: _Groups.RANDOM])


def _datasets(store: Path, cache: Path, order: Sequence[int]) -> Callable[[str], int]:
    """Plain `datasets`, with the ids as numpy arrays."""
    import datasets

    datasets.disable_progress_bars()
    names = [str(file) for file in map(Store(store).file, Store(store).shards)]
    # Files of ours; nothing is fetched.
    loaded: Any = datasets.load_dataset(  # nosec B615
        "parquet", data_files=names, cache_dir=str(cache)
    )
    data = loaded["train"].with_format("numpy")

    def read(kind: str) -> int:
        count = 0
        for row in data if kind == "sequential" else map(data.__getitem__, order):
            row["codes"].astype(np.int64)
            count += 1
        return count

    return read


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
