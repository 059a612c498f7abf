"""Time encoding by both bundled tokenizers in turn, and by another checkout of this repository.

    PYTHONPATH=src python bench/encoding.py kodak/ --before ../older --repeats 5

Each is a process of its own with one thread. Pictures, every sixth of a folder, are decoded before
the clock starts; whole, and beside one another as a square of 1,024 px. Told are medians of
seconds a megapixel, of the processor and of the clock, and megapixels/s against viq-tiny. Seconds
of the processor are to be trusted where other work runs beside.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

_REPO = Path(__file__).resolve().parents[1]
_STEP, _SIDE = 6, 1024
_WORKER = """
import hashlib, sys, time
from pathlib import Path
import numpy as np
import torch
from PIL import Image
import viq
model, folder, step, side = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
torch.set_num_threads(1)
tokenizer = viq.load(model)
paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))[::step]
whole = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
wide = [image for image in whole if image.shape == whole[0].shape]
wall = np.tile(np.concatenate(wide, 1), (side // whole[0].shape[0] + 1, 2, 1))
square = [np.ascontiguousarray(wall[:side, :side])]
for line in sys.stdin:
    images = square if line.strip() == "square" else whole
    start = time.thread_time(), time.perf_counter()
    codes = tokenizer.encode(images)
    spent = time.thread_time() - start[0], time.perf_counter() - start[1]
    area = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    digest = hashlib.sha256(b"".join(each.ids.tobytes() for each in codes)).hexdigest()
    print(spent[0] / area, spent[1] / area, digest, flush=True)
"""


def _worker(repo: Path, model: str, folder: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(repo / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _WORKER, model, folder, str(_STEP), str(_SIDE)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="of pictures")
    parser.add_argument("--before", type=Path, help="another checkout, to compare viq-transform of")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    workers = {"viq-tiny": _worker(_REPO, "viq-tiny", asked.folder)}
    if asked.before is not None:
        workers["before"] = _worker(asked.before, "viq-transform", asked.folder)
    workers["viq-transform"] = _worker(_REPO, "viq-transform", asked.folder)
    for what in ("whole", "square"):
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
        digests: dict[str, str] = {}
        for number in range(asked.repeats + 1):  # the first warms up
            for name, worker in workers.items():
                assert worker.stdin is not None and worker.stdout is not None
                print(what, file=worker.stdin, flush=True)
                processor, clock, digests[name] = worker.stdout.readline().split()
                if number:
                    spent[name].append((float(processor), float(clock)))
        medians = {
            name: [statistics.median(column) for column in zip(*rows, strict=True)]
            for name, rows in spent.items()
        }
        tiny = medians["viq-tiny"]
        for name, (processor, clock) in medians.items():
            print(
                f"{what} {name}: {processor:.3f} s of the processor a megapixel, {clock:.3f} s of "
                f"the clock; {tiny[0] / processor:.2f} and {tiny[1] / clock:.2f} times viq-tiny",
                flush=True,
            )
        if "before" in digests:
            equal = digests["before"] == digests["viq-transform"]
            print(f"{what}: codes {'equal' if equal else 'DIFFER'}", flush=True)
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()


if __name__ == "__main__":
    main()
