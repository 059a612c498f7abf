"""Find a tokenizer by name: bundled, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import os

import torch

from viq.core.files import DEFAULT_MODEL
from viq.models.tokenizer.tokenizer import VisualTokenizer


def load(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> VisualTokenizer:
    """A tokenizer, ready to use.

    Args:
        name: "viq-tiny" and "viq-transform" come with the package; else a folder, or a Hugging Face
            hub id.
        dtype: float32 by default, whatever the file holds: codes in half precision differ.

    Raises:
        CheckpointError: nothing usable under that name.
    """
    return VisualTokenizer.from_pretrained(name, device=device, dtype=dtype)
