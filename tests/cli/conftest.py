"""A tiny model and pictures for commands."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from cli_runs import FAMILY
from PIL import Image


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures" / "deep"
    folder.mkdir(parents=True)
    for i, (h, w) in enumerate(FAMILY):
        pixels = np.random.default_rng(i).integers(0, 256, (h, w, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"
