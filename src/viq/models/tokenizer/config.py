"""The config of a tokenizer, checked: what `config.json` of a model folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viq.core import untrusted
from viq.core.types import PATCH_SIZE
from viq.core.untrusted import printable, whole_number
from viq.models.tokenizer.decoder import DecoderConfig
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.latent_head import LatentConfig
from viq.models.tokenizer.quantizer import QuantizerConfig
from viq.models.tokenizer.refinement import RefinementConfig
from viq.weights import checkpoint
from viq.weights.verify import PARTS

# Of a tokenizer's folder in the manner of transformers, so that AutoModel and AutoImageProcessor
# find their classes (`mllm/tokenizer_model.py`); folders of release 0.1 lack both.
MODEL_TYPE = "viq_tokenizer"
FOR_TRANSFORMERS = {"model_type": MODEL_TYPE, "architectures": ["ViQTokenizerModel"]}
PROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR = {"do_rescale": True, "image_processor_type": "ViQImageProcessor"}
# What transformers writes into config.json, and the shape of a tokenizer does not need.
OF_TRANSFORMERS = (*FOR_TRANSFORMERS, "transformers_version", "dtype")

VAE_FOLDER = "vae"  # inside a model folder
VAE_WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

# Options that release 0.1 did not have.
_LATER = (("encoder", "semantic"), ("quantizer", "transform"))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Where pooled tokens are mapped to: the sentence embeddings of a text model."""

    width: int = 384  # of an embedding
    model: str = "all-MiniLM-L6-v2"

    def __post_init__(self) -> None:
        untrusted.shape(self, width=2**16)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """All that shapes a tokenizer; `config.json` of a model folder."""

    encoder: EncoderConfig
    quantizer: QuantizerConfig
    decoder: DecoderConfig | None = None  # features to pixels
    latents: LatentConfig | None = None  # features to latents of the Qwen-Image VAE
    text: TextConfig | None = None  # pooled tokens to sentence embeddings
    refinement: RefinementConfig | None = None  # of a transform code: other counts than four
    tile: int = 0  # px; images with a longer side are encoded in tiles; 0: never
    name: str = "viq"

    def __post_init__(self) -> None:
        if self.encoder.patch_size != PATCH_SIZE:
            raise ValueError(
                f"patches of {self.encoder.patch_size} px: codes are of {PATCH_SIZE} px patches"
            )
        whole_number(self.tile, "tile", 0, 2**20)
        if self.tile % PATCH_SIZE:
            raise ValueError(f"tile {self.tile} must be a multiple of {PATCH_SIZE} px")
        width = self.encoder.width
        heads = {"quantizer": self.quantizer.heads if self.quantizer.pre_depth else 1}
        heads |= {"latents": self.latents.heads} if self.latents else {}
        for part, count in heads.items():
            if width % count:
                raise ValueError(f"{part}: width {width} cannot be split into {count} heads")
        self._check_transform()

    def _check_transform(self) -> None:
        code, semantic = self.quantizer.transform, self.encoder.semantic
        if self.refinement is not None and (code is None or self.decoder is None):
            raise ValueError("a refinement needs a transform code and a decoder")
        if (semantic is not None) != (code is not None and code.shares):
            raise ValueError(
                "a semantic encoder, and a transform code that leaves fourth codes to meaning, go "
                "together"
            )
        if code is None:
            return
        if self.encoder.depth:
            raise ValueError("a transform code has no transformer: its encoder's depth is 0")
        taken = code.basis + (semantic.reader if semantic else 0)
        if self.encoder.width <= taken:
            raise ValueError(
                f"width {self.encoder.width} has no room for {taken} values of a transform code "
                "and its class"
            )


def decisive(config: TokenizerConfig) -> dict[str, Any]:
    """What of the config the fingerprint covers. Options that came later, and are off, are left
    out, as the fingerprints of older models do not have them."""
    return decisive_parts(config.encoder, config.quantizer)


def decisive_parts(encoder: EncoderConfig, quantizer: QuantizerConfig) -> dict[str, Any]:
    """The same of the two parts."""
    configs = {"encoder": encoder, "quantizer": quantizer}
    parts = {part: checkpoint.to_dict(configs[part]) for part in PARTS}
    for part, option in _LATER:
        if parts[part][option] is None:
            del parts[part][option]
    return parts


def refuse_other_models(values: Mapping[str, Any], folder: Path) -> None:
    """Say so where a folder holds a language model, or another one. Raises `CheckpointError`."""
    about = values.get("embedder_config")
    if "embedder_config" in values:
        name = about.get("tokenizer") if isinstance(about, dict) else None
        raise checkpoint.CheckpointError(
            f"{folder}: is a language model on codes, no tokenizer; ask it with viq chat, or "
            f"give its tokenizer, {printable(str(name), 100)}"
        )
    kind = values.get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise checkpoint.CheckpointError(
            f"{folder}: holds a model of transformers ({printable(str(kind), 60)}), no tokenizer"
        )
