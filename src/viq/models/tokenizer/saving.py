"""A tokenizer and its folder: `config.json`, `model.safetensors`, its VAE, its entropy model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel
from viq.core.files import write_atomically, written_aside
from viq.core.types import ViqError
from viq.models.tokenizer.config import (
    FOR_TRANSFORMERS,
    OF_TRANSFORMERS,
    PROCESSOR,
    PROCESSOR_FILE,
    VAE_FOLDER,
    VAE_WEIGHTS_FILE,
    TokenizerConfig,
    decisive,
    refuse_other_models,
)
from viq.weights import checkpoint
from viq.weights.verify import DIGEST, decides, digests_of, rest_digest, verify

if TYPE_CHECKING:
    from viq.models.tokenizer.tokenizer import VisualTokenizer

    Kind = TypeVar("Kind", bound=VisualTokenizer)


def load(
    kind: type[Kind], folder: Path, device: str | torch.device, dtype: torch.dtype | None
) -> Kind:
    """The tokenizer in a folder; as `VisualTokenizer.from_pretrained`."""
    values, where = checkpoint.read_config(folder), str(folder / checkpoint.CONFIG_FILE)
    path = folder / checkpoint.WEIGHTS_FILE
    digests = digests_of(values, where)
    refuse_other_models(values, folder)
    for name in ("format", "fingerprint", DIGEST, *OF_TRANSFORMERS):
        values.pop(name, None)
    config = checkpoint.from_dict(TokenizerConfig, values, where)
    with checkpoint.building(where):
        model = kind(config)
    checkpoint.load_model(model, path, device=device, dtype=dtype or torch.float32)
    exact = model.device.type == "cpu" and dtype in (None, torch.float32)
    verify(path, decisive(config), digests, model.state_dict() if exact else None)
    model._fingerprint = digests[0] or None
    model.entropy_file = folder / ENTROPY_FILE
    vae = folder / VAE_FOLDER
    if model.latent_head is not None and (vae / checkpoint.CONFIG_FILE).is_file():
        model._vae_folder = vae
    return model.requires_grad_(False).eval()


def save(model: VisualTokenizer, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a tokenizer; as `VisualTokenizer.save_pretrained`."""
    vae, copy = model._vae_folder, folder / VAE_FOLDER
    if vae is not None and vae.resolve() != copy.resolve():
        for name in (VAE_WEIGHTS_FILE, checkpoint.CONFIG_FILE):
            with written_aside(copy / name) as aside:
                shutil.copyfile(vae / name, aside)
    weights = {k: v.to(dtype or v.dtype) for k, v in model.state_dict().items()}
    digest = fingerprint_of(model.config, weights)
    if dtype is None:
        model._fingerprint = digest  # it may have been trained since it was loaded
    checkpoint.write_weights(folder / checkpoint.WEIGHTS_FILE, weights)
    if model.entropy_file and model.entropy_file.is_file():
        entropy = EntropyModel.load(model.entropy_file)
        if entropy.fingerprint == digest:  # it would be wrong for other weights
            entropy.save(folder)
    values = {"format": 1, **FOR_TRANSFORMERS, **checkpoint.to_dict(model.config),
              "fingerprint": digest, DIGEST: rest_digest(weights)}  # fmt: skip
    for name, content in ((PROCESSOR_FILE, PROCESSOR), (checkpoint.CONFIG_FILE, values)):
        write_atomically(folder / name, (json.dumps(content, indent=2) + "\n").encode())


def fingerprint_of(config: TokenizerConfig, weights: Mapping[str, Tensor]) -> str:
    """The fingerprint of a tokenizer with this config and these weights."""
    covered = {name: weight for name, weight in weights.items() if decides(name)}
    return checkpoint.fingerprint(decisive(config), covered)


def entropy_model(model: VisualTokenizer) -> EntropyModel:
    """What compresses codes of a tokenizer; as `VisualTokenizer.entropy`."""
    if model.entropy_file is None:
        raise ViqError(f"{model.config.name}: was not loaded from a folder, so has no entropy "
                       "model; save it and run viq train entropy")  # fmt: skip
    entropy = EntropyModel.load(model.entropy_file)
    if entropy.fingerprint != model.fingerprint:
        raise ViqError(
            f"{model.entropy_file}: fitted to the tokenizer {entropy.fingerprint}, but this is "
            f"{model.fingerprint}: run viq train entropy again"
        )
    return entropy
