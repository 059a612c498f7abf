"""SigLIP2: continuous features of a vision tower of transformers, the bound that codes aim at.

Towers for squares of one size (model_type siglip) and those for any aspect (siglip2, "NaFlex").

P = patches of a picture, C = channels, p = side of a patch in px.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.errors import ViqError, first_line, require
from viq.core.quiet import quiet
from viq.core.types import MAX_PIXELS
from viq.eval.peers.protocol import Peer
from viq.image.open import ImageInput, open_image
from viq.models.layers.ambient import by_default
from viq.weights.checkpoint import CheckpointError
from viq.weights.pretrained import checked_config, load_local_model

LICENCE = "Apache-2.0"

_FIXED = ("siglip", "siglip_vision_model")
_ANY_ASPECT = ("siglip2", "siglip2_vision_model")
_OTHER_STEPS = ("center_crop", "pad")  # which no published processor takes
_STORED_BITS = 16  # of a value, in bfloat16
_CPU = torch.device("cpu")


class Siglip2Peer(Peer):
    """A vision tower, whose features take `bits_per_pixel` when they are stored in bfloat16."""

    def __init__(self, tower: Any, processor: Any, *, name: str, licence: str = LICENCE) -> None:
        """`tower` and `processor`: a vision model of transformers and its image processor."""
        self.tower, self.processor = tower.requires_grad_(False).eval(), processor
        self.name, self.licence = name, licence
        config = tower.config
        self._any_aspect = config.model_type in _ANY_ASPECT
        self._patch = int(config.patch_size)
        self.bits_per_pixel = int(config.hidden_size) * _STORED_BITS / self._patch**2

    def prepare(self, image: ImageInput) -> Image.Image:
        """The RGB picture that the tower sees. Raises `ImageError`."""
        inputs = self._inputs(image)
        values = inputs["pixel_values"][0].float()
        if self._any_aspect:
            rows, cols = inputs["spatial_shapes"][0].tolist()
            patches = values[: rows * cols].unflatten(-1, (self._patch, self._patch, 3))
            # row, column, y, x, colour
            values = patches.unflatten(0, (rows, cols)).permute(4, 0, 2, 1, 3)
            values = values.flatten(3, 4).flatten(1, 2)
        mean, std = (
            torch.tensor(channels).view(3, 1, 1)
            for channels in (self.processor.image_mean, self.processor.image_std)
        )
        pixels = ((values * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    def encode(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        """Raises `ViqError`: it has no codes."""
        raise ViqError(f"{self.name}: has no codes, only features; compare it by those")

    def decode(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        """Raises `ViqError`: it has no codes."""
        raise ViqError(f"{self.name}: has no codes to decode; compare it by its features")

    @torch.inference_mode()
    def features(self, images: Sequence[ImageInput]) -> list[np.ndarray]:
        """(P, C) float32 of each image, after the last norm. Raises `ImageError`."""
        with by_default(_CPU):
            return [self._features(self._inputs(image)).numpy() for image in images]

    def _features(self, inputs: dict[str, Tensor]) -> Tensor:
        states_PC = self.tower(**inputs).last_hidden_state[0].float()
        if self._any_aspect:
            states_PC = states_PC[inputs["pixel_attention_mask"][0].bool()]
        return states_PC

    def _inputs(self, image: ImageInput) -> dict[str, Tensor]:
        with quiet():
            return dict(self.processor(images=open_image(image), return_tensors="pt"))


def load(path: str | os.PathLike[str]) -> Siglip2Peer:
    """SigLIP2, or SigLIP, of a folder in transformers' format: the whole model or its vision tower.

    Raises:
        CheckpointError: transformers is missing, or the folder incomplete, damaged, or of another
            model.
    """
    name = f"siglip2:{os.fspath(path)}"
    with require("transformers", "train", name, CheckpointError):
        # transformers 5.17 itself has a stand-in without torchvision, which is not needed here.
        from transformers.models.auto.image_processing_auto import AutoImageProcessor
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; SigLIP2 needs one in transformers' format"
        )
    kind = checked_config(folder).get("model_type")
    if kind not in _FIXED + _ANY_ASPECT:
        raise CheckpointError(f"{folder}: its model_type is {kind!r:.80}, not siglip or siglip2")
    model = load_local_model(folder)
    tower = getattr(model, "vision_model", model)
    try:
        with quiet():
            # A folder of this machine: nothing is fetched.
            processor = AutoImageProcessor.from_pretrained(  # nosec B615
                str(folder), local_files_only=True, trust_remote_code=False, backend="pil"
            )
    except Exception as error:  # what damage makes transformers raise is anyone's guess
        raise CheckpointError(f"{folder}: its preprocessor: {first_line(error)}") from None
    _check(processor, tower.config, str(folder))
    return Siglip2Peer(tower, processor, name=name)


def _check(processor: Any, config: Any, where: str) -> None:
    """See that a processor gives what its tower takes, and no more. Raises `CheckpointError`."""
    asked = {name: getattr(processor, name, None) for name in ("max_num_patches", "patch_size")}
    if config.model_type in _ANY_ASPECT:
        most = asked["max_num_patches"]
        fits = isinstance(most, int) and 0 < most * config.patch_size**2 <= MAX_PIXELS
        fits = fits and asked["patch_size"] == config.patch_size
    else:
        size = getattr(processor, "size", None) or {}
        fits = (size.get("height"), size.get("width")) == (config.image_size,) * 2
        # Either may make any number of pixels of it.
        fits = fits and not any(getattr(processor, f"do_{step}", None) for step in _OTHER_STEPS)
    for name in ("image_mean", "image_std"):
        channels = getattr(processor, name, None)
        fits = fits and isinstance(channels, list | tuple) and len(channels) == 3
    if not fits or not type(processor).__name__.startswith("Siglip"):
        raise CheckpointError(
            f"{where}: its preprocessor_config.json is not that of the model; copy the whole "
            "published folder"
        )
