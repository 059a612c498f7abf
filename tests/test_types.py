"""What type checkers make of a user's script: mypy --strict and pyright --strict find no fault in a
right one, and every mistake in a wrong one."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import viq

SOURCE = Path(viq.__file__).parent.parent

RIGHT = """
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import viq
from PIL import Image

tok: viq.VisualTokenizer = viq.load("viq-tiny", device="cpu")
codes: list[viq.Codes] = tok.encode(["a.jpg", Path("b.png"), np.zeros((8, 8, 3), np.uint8)])
first = codes[0]
rows, cols, _ = first.ids.shape
height, width = first.size
data: bytes = first.to_bytes()
again = viq.Codes.from_bytes(data)
name: str = tok.config.name + tok.fingerprint
for features in tok.embed(codes):
    print(features.shape)
print(tok.pool(codes).shape, rows * cols * height * width)
pictures: list[Image.Image] = tok.decode(again)
dataset = viq.CodeDataset("codes/", shuffle=0, columns=("caption",))
for batch in dataset.batches(tokens=8192, workers=4):
    keys: list[str] = [sample.key for sample in batch]


def count(samples: list[viq.CodeSample]) -> int:
    return sum(sample.patches for sample in samples)


numbers: Iterator[int] = dataset.batches(samples=4, collate=count)
dataset.load_state_dict(dataset.state_dict())
try:
    tok.save_pretrained("mine")
except (viq.CodesError, viq.ViqError) as error:
    print(error)
"""

# One mistake a line, from the third on.
WRONG = """
import viq
viq.load(3)
viq.load("viq-tiny").encode(["a.jpg"], size=3)
viq.load("viq-tiny").encode(["a.jpg"])[0].grids
viq.Codes.from_bytes("text")
viq.load("viq-tiny").decode("a.jpg")
viq.CodeDataset("codes", shufle=0)
next(viq.CodeDataset("codes").batches(tokens=8))[0].caption
viq.nothing_like_it
"""
LINES = set(range(3, 3 + WRONG.count("\n") - 2))

# What other libraries say of themselves takes mypy most of a minute to read.
MYPY = """
[mypy]
strict = True
[mypy-torch.*,numpy.*,transformers.*,pyarrow.*,PIL.*,huggingface_hub.*,safetensors.*]
follow_imports = skip
"""


def _mypy(folder: Path) -> tuple[list[str], set[int]]:
    (folder / "mypy.ini").write_text(MYPY)
    return ["--config-file", "mypy.ini", "--cache-dir", os.devnull], LINES


def _pyright(folder: Path) -> tuple[list[str], set[int]]:
    strict = {"include": ["."], "typeCheckingMode": "strict", "reportUnusedExpression": False}
    (folder / "pyrightconfig.json").write_text(json.dumps(strict))
    return ["--project", ".", "--pythonpath", sys.executable], LINES


@pytest.mark.parametrize("checker", [_mypy, _pyright])
def test_what_is_right_passes_and_each_mistake_is_found(
    checker: Callable[[Path], tuple[list[str], set[int]]], tmp_path: Path
) -> None:
    name = checker.__name__.removeprefix("_")
    pytest.importorskip(name)
    options, mistakes = checker(tmp_path)
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    files = ["right.py", "wrong.py"] if name == "mypy" else []  # the other finds them
    done = subprocess.run(
        [sys.executable, "-m", name, *options, *files], capture_output=True, text=True,
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(SOURCE), "MYPYPATH": str(SOURCE)},
    )  # fmt: skip
    found = re.findall(r"(\w+)\.py:(\d+):", done.stdout)
    assert {int(line) for file, line in found if file == "wrong"} == mistakes, done.stdout
    assert {file for file, _ in found} == {"wrong"}, done.stdout + done.stderr
