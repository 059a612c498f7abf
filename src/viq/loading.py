"""Find a tokenizer by name: bundled, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from viq.files import BUNDLED
from viq.models.tokenizer import VisualTokenizer


def load(
    name: str | os.PathLike[str] = "viq-tiny",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> VisualTokenizer:
    """A tokenizer, ready to use.

    Args:
        name: "viq-tiny" comes with the package; else a folder, or a Hugging Face hub id.
        dtype: float32 by default, whatever the file holds: codes in half precision differ.

    Raises:
        CheckpointError: nothing usable under that name.
    """
    folder = BUNDLED / str(name)
    bundled = str(name) == Path(name).name and folder.is_dir() and not Path(name).is_dir()
    return VisualTokenizer.from_pretrained(folder if bundled else name, device=device, dtype=dtype)
