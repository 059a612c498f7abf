"""Stores of random codes, and data sets of them."""

from pathlib import Path

import numpy as np

from viq.core.codes import Codes
from viq.core.types import grid_of
from viq.store.cache_folder import CACHE, MARK
from viq.store.columns import Extras
from viq.store.dataset import CodeDataset
from viq.store.folder import INDEX, Index, Shard, shard_name
from viq.store.rows import CodesWriter, StoreInfo

INFO = StoreInfo(model="viq-test", fingerprint="00000000000000ab", levels=(8, 8, 8, 5, 5, 5))


def codes_of(number: int) -> Codes:
    draw = np.random.default_rng(number)
    size = (int(draw.integers(1, 80)), int(draw.integers(1, 80)))
    ids = draw.integers(0, 64000, (*grid_of(size), 4)).astype(np.uint16)
    return Codes(ids, size, 0, INFO.fingerprint)


def write_store(folder: Path, shards: list[int], images: int = 1) -> Path:
    """A store of shards of so many samples, each of so many images, with a caption."""
    extras = Extras.inferred([{"caption": "words"}])
    listed, number = [], 0
    for place, samples in enumerate(shards):
        path = folder / shard_name(place)
        with CodesWriter(path, INFO, extras) as writer:
            for at in range(number, number + samples):
                for image in range(images):
                    words = extras.pack({"caption": f"caption {at}"})
                    writer.add(f"key{at}", codes_of(at * images + image), image, words)
        inputs = (number, number + samples)
        rows = samples * images
        listed.append(
            Shard(name=path.name, rows=rows, inputs=inputs, bytes=path.stat().st_size, sha256="")
        )
        number += samples
    totals = {"rows": number * images, "failures": 0}
    index = Index(info=INFO, inputs=number, shards=tuple(listed), totals=totals)
    (folder / INDEX).write_bytes(index.to_json())
    return folder


def opened(path: Path, **options: object) -> CodeDataset:
    return CodeDataset(path, cache=path.parent / "cache", **options)  # type: ignore[arg-type]


def unpacked(folder: Path) -> list[Path]:
    """The unpacked shards in a cache, in which nothing else is but the mark."""
    files = sorted((folder / CACHE).iterdir())
    assert {file.suffix for file in files if file.name != MARK} <= {".arrow"}
    return [file for file in files if file.name != MARK]


def taken(data: CodeDataset, steps: int | None = None, **options: object) -> list[list[str]]:
    """Keys of the next batches; as many as there are if `steps` is None."""
    batches = data.batches(**options)  # type: ignore[arg-type]
    result = []
    while steps is None or len(result) < steps:
        batch = next(batches, None)
        if batch is None:
            break
        result.append([sample.key for sample in batch])
    batches.close()  # type: ignore[attr-defined]
    return result
