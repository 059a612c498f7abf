"""Codes in the format of another library, read as it reads them, in an environment of its own.

    python peer.py NAME CODES.npz FOLDER

It imports nothing of ours. It writes the samples of CODES.npz into FOLDER, prints a line of JSON
(versions, or why it cannot), and then for each line of input reads all samples and prints how that
went, as JSON: for `sequential` and `random`, how many there were; for `batches SAMPLES WORKERS
SKIPPED`, packed batches of its own loader in shuffled order, [seconds to the first batch, seconds from
the last that is skipped to the last of all, patches of those].
"""

import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

Sample = dict[str, Any]
Loader = Callable[[int, int], Iterable[Any]]  # of samples a batch, and workers
_SHARD = 1000  # samples, as in a store


def samples_of(path: str) -> list[Sample]:
    """Samples as they would be given to the library."""
    data = np.load(path, allow_pickle=False)
    ends, sizes, ids = data["ends"].tolist(), data["sizes"].tolist(), data["ids"]
    samples = [
        {
            "key": f"images/{i:08d}.jpg",
            "height": height,
            "width": width,
            "ids": ids[start:stop].reshape(-(-height // 16), -(-width // 16), 4),
        }
        for i, (start, stop, (height, width)) in enumerate(
            zip([0, *ends], ends, sizes, strict=False)
        )
    ]
    if "text" in data:
        text, cuts = data["text"], data["text_ends"].tolist()
        for sample, start, stop in zip(samples, [0, *cuts], cuts, strict=False):
            sample["text_ids"] = text[start:stop]
    return samples


def without_torchvision() -> None:
    """`streaming` imports it for its data sets of pictures, which are not used here, and not every
    build of it loads beside every build of torch.
    """
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms.functional"):
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    sys.modules["torchvision.datasets"].VisionDataset = object  # pyright: ignore[reportAttributeAccessIssue]


def mosaicml_streaming(samples: list[Sample], folder: Path) -> dict[str, Any]:
    without_torchvision()
    from streaming import (  # pyright: ignore[reportMissingImports]
        MDSWriter,
        StreamingDataset,
    )

    columns = {"key": "str", "height": "int", "width": "int", "ids": "ndarray:uint16"}
    columns |= {"text_ids": "ndarray:int32"} if "text_ids" in samples[0] else {}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for sample in samples:
            writer.write(sample)
    data = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)

    def batches(size: int, workers: int) -> Iterable[Any]:
        from streaming import StreamingDataLoader  # pyright: ignore[reportMissingImports]

        shuffled = StreamingDataset(local=str(folder), shuffle=True, batch_size=size)
        return StreamingDataLoader(
            shuffled, batch_size=size, num_workers=workers, collate_fn=packed
        )

    return {"sequential": data, "random": data, "batches": batches}


def litdata(samples: list[Sample], folder: Path) -> dict[str, Any]:
    from litdata import StreamingDataset  # pyright: ignore[reportMissingImports]
    from litdata.streaming.writer import (  # pyright: ignore[reportMissingImports]
        BinaryWriter,
    )

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for i, sample in enumerate(samples):
        writer.add_item(i, sample)
    writer.done()
    writer.merge(num_workers=1)

    def batches(size: int, workers: int) -> Iterable[Any]:
        from litdata import StreamingDataLoader  # pyright: ignore[reportMissingImports]

        shuffled = StreamingDataset(str(folder), shuffle=True)
        return StreamingDataLoader(
            shuffled, batch_size=size, num_workers=workers, collate_fn=packed
        )

    return {
        "sequential": StreamingDataset(str(folder), shuffle=False),
        # By default it decodes hundreds of neighbours with each sample that is read at random,
        # which takes it a hundred times as long.
        "random": StreamingDataset(str(folder), shuffle=False, batch_decode=False),
        "batches": batches,
    }


def hf_datasets(samples: list[Sample], folder: Path) -> dict[str, Any]:
    """Arrow files that are memory-mapped, behind PyTorch's own loader."""
    import datasets
    from torch.utils.data import DataLoader

    datasets.disable_progress_bars()
    lists = {"ids": "uint16", "text_ids": "int32"}
    features = {name: datasets.Value("int32") for name in ("height", "width")}
    features |= {name: datasets.Sequence(datasets.Value(kind)) for name, kind in lists.items()}

    def rows() -> Iterable[Sample]:
        for sample in samples:
            row = {name: sample[name] for name in features}
            yield {**row, "ids": sample["ids"].ravel()}

    made = datasets.Dataset.from_generator(
        rows, features=datasets.Features(features), cache_dir=str(folder)
    )
    data: Any = made.with_format("numpy")

    def shaped(batch: list[Sample]) -> dict[str, Any]:
        for sample in batch:  # it keeps lists flat, and gives whole numbers as int64
            grid = -(-int(sample["height"]) // 16), -(-int(sample["width"]) // 16)
            sample["ids"] = sample["ids"].astype(np.uint16, copy=False).reshape(*grid, 4)
        return packed(batch)

    def batches(size: int, workers: int) -> Iterable[Any]:
        return DataLoader(
            data, batch_size=size, shuffle=True, num_workers=workers, collate_fn=shaped
        )

    return {"batches": batches}


def webdataset(samples: list[Sample], folder: Path) -> dict[str, Any]:
    import webdataset as wds

    names = []
    for first in range(0, len(samples), _SHARD):
        names.append(str(folder / f"{first // _SHARD:06d}.tar"))
        with tarfile.open(names[-1], "w") as tar:
            for i, sample in enumerate(samples[first : first + _SHARD], first):
                size = json.dumps({name: sample[name] for name in ("height", "width")}).encode()
                files = {"json": size, "ids.npy": _npy(sample["ids"])}
                files["text.npy"] = _npy(sample["text_ids"])
                for kind, content in files.items():
                    entry = tarfile.TarInfo(f"{i:08d}.{kind}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))

    def row(sample: Sample) -> Sample:
        return {**sample["json"], "ids": sample["ids.npy"], "text_ids": sample["text.npy"]}

    def batches(size: int, workers: int) -> Iterable[Any]:
        data = wds.WebDataset(names, shardshuffle=len(names)).shuffle(1000).decode().map(row)
        return wds.WebLoader(
            data.batched(size, collation_fn=packed), batch_size=None, num_workers=workers
        )

    return {"batches": batches}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# Each writes the samples and gives, for each order, the data set that is best at it, and a loader
# of batches, as its documentation advises.
PEERS = {"mosaicml-streaming": mosaicml_streaming, "litdata": litdata}
BATCHED = {**PEERS, "datasets": hf_datasets, "webdataset": webdataset}


def packed(samples: list[Sample]) -> dict[str, Any]:
    """What a step of training needs of samples: one array of codes, and where each image begins."""
    import torch

    ids = np.concatenate([sample["ids"].reshape(-1, 4) for sample in samples])
    text = np.concatenate([sample["text_ids"] for sample in samples])
    sizes = np.array([(sample["height"], sample["width"]) for sample in samples], np.int32)
    grids = -(-sizes // 16)
    ends = np.cumsum([0, *(len(sample["text_ids"]) for sample in samples)])
    arrays = {
        "ids": ids.view(np.int16),
        "grids_hw": grids,
        "sizes_hw": sizes,
        "offsets": np.cumsum([0, *grids.prod(axis=1)]),
        "text_ids": text,
        "text_offsets": ends,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def use(sample: Sample) -> None:
    """What a consumer does first: ids as a language model takes them."""
    np.asarray(sample["ids"]).astype(np.int64)


def time_batches(
    loader: Iterable[Any], skipped: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float, int]:
    """Seconds to the first batch, seconds of those after the skipped ones, and patches of these.

    What is skipped, 1 or more, is what loaders have made before they are asked for it.
    """
    begun = clock()
    first = start = begun
    patches = 0
    for number, batch in enumerate(loader, 1):
        if number > skipped:
            patches += len(batch["ids"])
        elif number in (1, skipped):
            start = clock()
            first = start if number == 1 else first
    return first - begun, clock() - start, patches


def clock_for(workers: int) -> Callable[[], float]:
    """Of the processor, where one process does all: other programs of the machine are not in it."""
    return time.perf_counter if workers else time.process_time


def main() -> None:
    name, codes, folder = sys.argv[1:]
    talk = sys.stdout
    sys.stdout = sys.stderr  # what the library prints is not for whoever asks
    samples = samples_of(codes)
    data = BATCHED[name](samples, Path(folder))
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    for kind, one in data.items():  # each holds what it was given
        for place in (0, len(samples) // 2, len(samples) - 1) if kind != "batches" else ():
            assert np.array_equal(one[place]["ids"], samples[place]["ids"])
    del samples
    print(json.dumps({"version": version(name), "torch": version("torch")}), file=talk, flush=True)
    for line in sys.stdin:
        count, (kind, *numbers) = 0, line.split()
        if kind == "batches":
            size, workers, skipped = map(int, numbers)
            answer = time_batches(data[kind](size, workers), skipped, clock_for(workers))
            print(json.dumps(answer), file=talk, flush=True)
            continue
        one = data[kind]
        for sample in one if kind == "sequential" else map(one.__getitem__, order):
            use(sample)
            count += 1
        print(json.dumps(count), file=talk, flush=True)


if __name__ == "__main__":
    main()
