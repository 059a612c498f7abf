"""QLIP: a vision transformer whose tokens become bits, by binary spherical quantisation.

Loads the published folders (config.json, preprocessor_config.json, safetensors or .bin). Modules
have the names of the published weights.

n = images, S = side of a picture in px, P = places of a picture, T = P and the class token,
H = width, K = bits of a code, C = channels of features.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from viq.core.untrusted import shape, whole_number
from viq.eval.peers.network import (
    SquarePeer,
    find_weights,
    load_frozen,
    named,
    section,
    wanted_weights,
)
from viq.eval.peers.pictures import Pictures
from viq.eval.peers.qlip_tower import Blocks, Embeddings, TowerConfig
from viq.weights.checkpoint import (
    CONFIG_FILE,
    CheckpointError,
    building,
    from_dict,
    read_object,
)
from viq.weights.tensors import read_tensors

LICENCE = "CC-BY-NC-4.0 (non-commercial use only)"

_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_PREPROCESSOR = "preprocessor_config.json"
_SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
# The side of text, what CLIP compares with it, and tables that are worked out here.
_UNUSED = re.compile(
    r"text_model\.|text_projection\.|logit_scale$|visual_projection\.|vision_model\.post_layernorm\."
    r"|.*\.rope\.freqs_(cos|sin)$|.*\.position_ids$"
)
_MOST_BITS = 62  # of a code, which is an int64


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(TowerConfig):
    """The encoder's, with the quantizer's."""

    quantizer: Literal["bsq"]
    quantizer_cfg: dict[str, Any]
    quantizer_l2_norm: bool = False
    quantizer_embed_type: Literal["mlp", "identity"] = "identity"
    hidden_size_post_q: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        bits = self.quantizer_cfg.get("embed_dim")
        if type(bits) is not int or not 1 <= bits <= _MOST_BITS:
            raise ValueError(f"embed_dim of quantizer_cfg is no number of bits up to {_MOST_BITS}")
        if not isinstance(self.quantizer_cfg.get("l2_norm", True), bool):
            raise ValueError("l2_norm of quantizer_cfg is neither true nor false")
        if self.hidden_size_post_q is not None:
            shape(self, hidden_size_post_q=2**15)
        if self.quantizer_embed_type == "identity" and bits != self.hidden_size:
            raise ValueError(f"{bits} bits of {self.hidden_size} channels need an embedding (mlp)")

    @property
    def bits(self) -> int:
        """K."""
        return self.quantizer_cfg["embed_dim"]

    @property
    def feature_width(self) -> int:
        """C."""
        if self.quantizer_embed_type == "identity":
            return self.bits
        return self.hidden_size if self.hidden_size_post_q is None else self.hidden_size_post_q


class _TokenMlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width_in, hidden)
        self.c_proj = nn.Linear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class _Encoder(nn.Module):
    """Values to bits, and bits to features."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Blocks(config)
        width, bits, out = config.hidden_size, config.bits, config.feature_width
        with_mlp = config.quantizer_embed_type == "mlp"
        self.quant_embed = _TokenMlp(width, width, bits) if with_mlp else nn.Identity()
        self.quant_embed_post = _TokenMlp(bits, out, out) if with_mlp else nn.Identity()

    def z(self, values_n3SS: Tensor) -> Tensor:
        """(n, P, K), whose signs are the bits."""
        tokens_nTH = self.encoder(self.embeddings(values_n3SS))
        z_nPK = self.quant_embed(tokens_nTH[:, 1:])
        return F.normalize(z_nPK, dim=-1, eps=1e-12) if self.config.quantizer_l2_norm else z_nPK

    def bits(self, values_n3SS: Tensor) -> Tensor:
        """(n, P, K) bool; zero counts as not set."""
        return self.z(values_n3SS) > 0

    def features(self, bits_nPK: Tensor) -> Tensor:
        """(n, P, C)."""
        signs_nPK = bits_nPK.float() * 2 - 1
        if self.config.quantizer_cfg.get("l2_norm", True):
            signs_nPK = signs_nPK / self.config.bits**0.5
        return self.quant_embed_post(signs_nPK)


class _Decoder(nn.Module):
    """Features to values of pixels."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width, hidden, patch = config.hidden_size, config.intermediate_size, config.patch_size
        self.grid, self.patch = config.grid, patch
        self.position_embeddings = nn.Parameter(torch.empty(1, config.grid**2, width))
        self.encoder = Blocks(config)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.conv_out = nn.Linear(hidden, 3 * patch**2)

    def forward(self, features_nPC: Tensor) -> Tensor:
        x_nPH = self.norm(self.encoder(features_nPC + self.position_embeddings))
        patches = self.conv_out(self.ffn(x_nPH))
        patches = patches.unflatten(1, (self.grid, -1)).unflatten(-1, (3, self.patch, self.patch))
        # n, row, column, colour, y, x
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class Qlip(nn.Module):
    """Codes are int64 (n, P): the first bit is the most significant."""

    code_dtype = np.int64

    def __init__(self, encoder: EncoderConfig, decoder: TowerConfig) -> None:
        super().__init__()
        given = encoder.feature_width, encoder.image_size, encoder.grid
        taken = decoder.hidden_size, decoder.image_size, decoder.grid
        if given != taken:
            raise ValueError(
                "channels, image_size and grid of the encoder's features are "
                f"{given}, of the decoder {taken}"
            )
        self.bits = encoder.bits
        self.code_shape, self.code_count = (encoder.grid**2,), 2**encoder.bits
        self.vision_model = _Encoder(encoder)
        self.vision_decoder = _Decoder(decoder)

    def codes(self, values_n3SS: Tensor) -> Tensor:
        # In whole numbers: float32 loses the low bits of more than 24.
        return (self.vision_model.bits(values_n3SS) << self._places()).sum(-1)

    def bits_of(self, codes_nP: Tensor) -> Tensor:
        """(n, P, K) bool."""
        return (codes_nP[..., None] >> self._places()) & 1 > 0

    def features(self, codes: Tensor) -> Tensor:
        return self.vision_model.features(self.bits_of(codes))

    def pixels(self, codes: Tensor) -> Tensor:
        return self.vision_decoder(self.features(codes))

    def _places(self) -> Tensor:
        return torch.arange(self.bits - 1, -1, -1)


def load(path: str | os.PathLike[str]) -> SquarePeer:
    """QLIP of a folder, or of a weight file beside its config.

    Raises:
        CheckpointError: files are missing, damaged, or of another model.
    """
    file = find_weights(Path(path), _FILES, "QLIP")
    where = file.with_name(CONFIG_FILE)
    config = _object(where)
    encoder = _config(EncoderConfig, section(config, "vision_config", str(where)), where)
    decoder = _config(TowerConfig, section(config, "decoder_config", str(where)), where)
    pictures = _pictures(file.with_name(_PREPROCESSOR), encoder.image_size)
    with building(str(where)):
        network = Qlip(encoder, decoder)
    weights = wanted_weights(read_tensors(file), lambda name: bool(_UNUSED.match(name)), str(file))
    load_frozen(network, weights, str(file))
    bits = encoder.bits * encoder.grid**2
    return SquarePeer(network, pictures, name=named("qlip", path), licence=LICENCE, bits=bits)


def _config(cls: type[Any], values: Mapping[str, Any], where: Path) -> Any:
    """A config of what a folder says of the fields that matter here."""
    names = {field.name for field in fields(cls)}
    return from_dict(cls, {k: v for k, v in values.items() if k in names}, str(where))


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; copy the whole published folder of QLIP") from None


def _pictures(path: Path, side: int) -> Pictures:
    """The preprocessing that a folder asks for, which gives pictures of `side` px."""
    values = _object(path)
    if off := [name for name in _SWITCHES if values.get(name) is False]:
        raise CheckpointError(f"{path}: {off[0]} is off; only CLIP's whole preprocessing is known")
    size, crop = values.get("size"), values.get("crop_size")
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size
    crop = [crop.get("height"), crop.get("width")] if isinstance(crop, dict) else [crop, crop]
    if crop != [side, side]:
        raise CheckpointError(f"{path}: crop_size is {crop!s:.80}, but image_size {side} px")
    try:
        return Pictures(
            shorter=whole_number(shorter, "shortest_edge of size", 1),
            side=side,
            resample=Image.Resampling(values.get("resample", 3)),
            offset="floor",
            mean=_colour(values.get("image_mean")),
            std=_colour(values.get("image_std")),
        )
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error!s:.200}") from None


def _colour(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError("image_mean and image_std are lists of three numbers")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
