"""Tiny weights under official names, as a file has them; what tests of conversion share."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from viq.weights.checkpoint import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
PREFIX = "base_model.model.model.vision_tower.vision_tower."


def fixture(name: str, part: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / f"{part}.safetensors")


def refused(*words: str) -> Any:
    """Expects one line of error that has all these words in this order."""
    pattern = ".*".join(re.escape(word) for word in words)
    return pytest.raises(CheckpointError, match=f"^[^\n]*{pattern}[^\n]*$")


def written(folder: Path, tensors: Any, name: str = "model_viq_fsq_64k.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path
