"""Codes in the format of another library, read as it reads them, in an environment of its own.

    python peer.py NAME CODES.npz FOLDER

It imports nothing of ours. It writes the samples of CODES.npz into FOLDER, prints a line of JSON
(versions, or why it cannot), and then for each line of input, `sequential` or `random`, reads all
samples in that order and prints how many there were.
"""

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np


def samples_of(path: str) -> list[dict[str, Any]]:
    """Samples as they would be given to the library."""
    data = np.load(path, allow_pickle=False)
    ends, sizes, ids = data["ends"].tolist(), data["sizes"].tolist(), data["ids"]
    return [
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


def without_torchvision() -> None:
    """`streaming` imports it for its data sets of pictures, which are not used here, and not every
    build of it loads beside every build of torch.
    """
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms.functional"):
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    sys.modules["torchvision.datasets"].VisionDataset = object  # pyright: ignore[reportAttributeAccessIssue]


def mosaicml_streaming(samples: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    without_torchvision()
    from streaming import (  # pyright: ignore[reportMissingImports]
        MDSWriter,
        StreamingDataset,
    )

    columns = {"key": "str", "height": "int", "width": "int", "ids": "ndarray:uint16"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for sample in samples:
            writer.write(sample)
    data = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return {"sequential": data, "random": data}


def litdata(samples: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    from litdata import StreamingDataset  # pyright: ignore[reportMissingImports]
    from litdata.streaming.writer import (  # pyright: ignore[reportMissingImports]
        BinaryWriter,
    )

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for i, sample in enumerate(samples):
        writer.add_item(i, sample)
    writer.done()
    writer.merge(num_workers=1)
    return {
        "sequential": StreamingDataset(str(folder), shuffle=False),
        # By default it decodes hundreds of neighbours with each sample that is read at random,
        # which takes it a hundred times as long.
        "random": StreamingDataset(str(folder), shuffle=False, batch_decode=False),
    }


# Each writes the samples and gives, for each order, the data set that is best at it.
PEERS = {"mosaicml-streaming": mosaicml_streaming, "litdata": litdata}


def use(sample: dict[str, Any]) -> None:
    """What a consumer does first: ids as a language model takes them."""
    np.asarray(sample["ids"]).astype(np.int64)


def main() -> None:
    name, codes, folder = sys.argv[1:]
    talk = sys.stdout
    sys.stdout = sys.stderr  # what the library prints is not for whoever asks
    samples = samples_of(codes)
    data = PEERS[name](samples, Path(folder))
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    for one in data.values():  # each holds what it was given
        for place in (0, len(samples) // 2, len(samples) - 1):
            assert np.array_equal(one[place]["ids"], samples[place]["ids"])
    del samples
    print(json.dumps({"version": version(name), "torch": version("torch")}), file=talk, flush=True)
    for line in sys.stdin:
        count, kind = 0, line.strip()
        one = data[kind]
        for sample in one if kind == "sequential" else map(one.__getitem__, order):
            use(sample)
            count += 1
        print(json.dumps(count), file=talk, flush=True)


if __name__ == "__main__":
    main()
