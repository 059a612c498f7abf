"""How fast and how small stores are: packing, reading beside others, encoding, memory.

    viq bench store --pictures kodak/ --peers PEERS

`viq bench store` prints this. Times are medians of interleaved runs, beside a baseline.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from viq.bench.batches import batches
from viq.bench.encode import mixed_images
from viq.bench.packing import packing, untrained_network
from viq.bench.reading import reading
from viq.bench.remote import remote
from viq.bench.setting import Setting, chosen_sections, jpeg
from viq.bench.store_tables import as_text
from viq.codec.level_network import LevelNetwork
from viq.core.codes import Codes
from viq.core.measure import compare, machine, peak_memory
from viq.core.types import grid_of
from viq.data.sources.base import ImageBytes, Row, Source
from viq.image.open import ImageError, list_images, open_image
from viq.jobs.encode import encode
from viq.models.tokenizer.loading import load
from viq.store.rows import CodesWriter, StoreInfo

__all__ = ["FULL", "QUICK", "SECTIONS", "StoreWorkload", "as_text", "run"]


@dataclass(frozen=True, kw_only=True)
class StoreWorkload:
    """How much is measured.

    Attributes:
        images: synthetic pictures that are encoded; their sides are within `sides` px.
        samples: rows that are read; with sides of 256 to 512 px, as in a set of photos.
        batched: samples that are read in packed batches, here and from an object store.
        counts: images of encode runs whose peak memory is taken.
    """

    images: int = 96
    sides: tuple[int, int] = (128, 512)
    samples: int = 10000
    batched: int = 24000
    counts: tuple[int, ...] = (1000, 10000, 50000)


FULL = StoreWorkload()
QUICK = StoreWorkload(images=12, samples=1000, batched=2000, counts=(100, 400))


@dataclass(frozen=True, kw_only=True)
class _Setting(Setting[StoreWorkload]):
    pictures: Sequence[Path]
    peers: Path | None
    folder: Path


def run(
    model: str,
    *,
    pictures: Sequence[Path] = (),
    peers: Path | None = None,
    repeats: int = 5,
    quick: bool = False,
    work: StoreWorkload | None = None,
    sections: Collection[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure stores made with a tokenizer; the result is for `json.dumps` and `as_text`.

    Args:
        model: as `viq.load` takes it.
        pictures: sets (files or folders) whose codes are packed, each for itself; they should not
            be those that the entropy model was fitted to. Without any, drawn ones.
        peers: folder of environments that bench/peers.sh made.
        repeats: timed runs of everything that is compared, after one to warm up.
        quick: little work, instead of the usual.
        sections: names of `SECTIONS`; None runs all.
        progress: called with the name of each section before it starts.
    """
    chosen = chosen_sections(SECTIONS, sections, progress)
    tokenizer = load(model)
    result: dict[str, Any] = {
        "benchmark": "store",
        "model": tokenizer.config.name,
        "fingerprint": tokenizer.fingerprint,
        "repeats": repeats,
        "machine": machine(),
    }
    for name, section in chosen:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = section(
                _Setting(
                    tokenizer=tokenizer,
                    model=model,
                    pictures=pictures,
                    peers=peers,
                    work=work or (QUICK if quick else FULL),
                    repeats=repeats,
                    folder=Path(folder),
                )
            )
    return result


def _packing(s: _Setting) -> dict[str, Any]:
    sets: dict[str, Sequence[Any]] = {str(path): _readable(path) for path in s.pictures}
    sets = sets or {"drawn": mixed_images(s.work.images, s.work.sides)}
    entropy, baselines = s.tokenizer.entropy, {}
    if not isinstance(entropy, LevelNetwork):
        network = untrained_network(entropy.levels, entropy.fingerprint)
        baselines["network of viq 0.1, untrained"] = network
    return {
        "entropy_model": entropy.digest,
        "sets": {
            name: packing(s.tokenizer.encode(images), entropy, s.repeats, baselines)
            for name, images in sets.items()
        },
    }


def _readable(path: Path) -> list[Image.Image]:
    """Pictures of a folder, a file, or the image column of a Parquet file; bad ones left out."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        sources = pq.read_table(path, columns=["image"])["image"].to_pylist()
    else:
        sources = list_images([path])
    images = []
    for source in sources:
        try:
            images.append(open_image(source))
        except ImageError:
            continue
    return images


def _reading(s: _Setting) -> dict[str, Any]:
    """Ids are drawn: speed does not depend on what they are."""
    draw = np.random.default_rng(0)
    info = _info(s)
    size = int(np.prod(info.levels))
    store = s.folder / "codes.parquet"
    pictures = []
    with CodesWriter(store, info) as writer:
        for i in range(s.work.samples):
            height, width = (int(side) for side in draw.integers(256, 513, 2))
            ids = draw.integers(0, size, (*grid_of((height, width)), 4)).astype(np.uint16)
            writer.add(f"images/{i:08d}.jpg", Codes(ids, (height, width), 0, info.fingerprint))
            if i < 200:
                pictures.append((height, width))
    drawn = mixed_images(min(len(pictures), 24), (256, 512))
    jpegs = [_resized(drawn[i % len(drawn)], size) for i, size in enumerate(pictures)]
    return reading(store, s.folder, jpegs, s.peers, s.repeats)


def _batches(s: _Setting) -> dict[str, Any]:
    return batches(_info(s), s.work.batched, s.folder, s.peers, s.repeats)


def _remote(s: _Setting) -> dict[str, Any]:
    return remote(_info(s), s.work.batched, s.folder, s.repeats)


def _info(s: _Setting) -> StoreInfo:
    return StoreInfo(
        model=s.tokenizer.config.name,
        fingerprint=s.tokenizer.fingerprint,
        levels=s.tokenizer.levels,
    )


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0])))


class _Jpegs(Source):
    """JPEG files in memory, from which a job reads as from any source."""

    def __init__(self, data: Sequence[bytes], count: int) -> None:
        self._data, self._count = data, count

    def __len__(self) -> int:
        return self._count

    def keys(self) -> Iterator[str]:
        return (f"{i:08d}.jpg" for i in range(self._count))

    def _row(self, index: int) -> Row:
        key = f"{index:08d}.jpg"
        return Row(key=key, images=(ImageBytes(self._data[index % len(self._data)]),), where=key)


def _encoding(s: _Setting) -> dict[str, Any]:
    """JPEG files to a finished store, against the model alone on as many threads."""
    images = mixed_images(s.work.images, s.work.sides)
    source = _Jpegs([jpeg(image) for image in images], len(images))
    threads, runs = torch.get_num_threads(), iter(range(10**6))
    result: dict[str, Any] = {"images": len(images), "workers": {}}
    for workers in sorted({1, threads}):

        def alone(workers: int = workers) -> None:
            torch.set_num_threads(max(1, threads // workers))
            try:
                with ThreadPoolExecutor(workers) as pool:
                    list(pool.map(s.tokenizer.encode, images))
            finally:
                torch.set_num_threads(threads)

        def whole(workers: int = workers) -> None:
            encode(s.tokenizer, source, s.folder / f"run{next(runs)}", workers=workers)

        times = compare({"model alone": alone, "to a store": whole}, s.repeats)
        result["workers"][workers] = {
            "times": times,
            "images_per_s": {k: len(images) / spent["median_s"] for k, spent in times.items()},
            "share_of_model_alone": 1 / times["to a store"]["ratio_to_first"],
        }
    return result


def _memory(s: _Setting) -> dict[str, Any]:
    """Peak of fresh processes that encode so many small pictures into a store, MiB."""
    return {
        "peak_mib": {
            str(count): peak_memory(_encode_many, s.model, count, str(s.folder / f"store{count}"))
            for count in s.work.counts
        }
    }


def _encode_many(model: str, count: int, out: str) -> None:
    """What the processes of `_memory` do."""
    jpegs = [jpeg(image) for image in mixed_images(16, (32, 64))]
    encode(load(model), _Jpegs(jpegs, count), Path(out))


SECTIONS: dict[str, Callable[[_Setting], dict[str, Any]]] = {
    "packing": _packing,
    "reading": _reading,
    "batches": _batches,
    "remote": _remote,
    "encoding": _encoding,
    "memory": _memory,
}
