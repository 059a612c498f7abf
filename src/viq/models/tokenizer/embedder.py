"""Codes to features, and nothing else of a tokenizer: what a language model on codes carries.

Steps 6 to 9 of docs/model.md, "Quantizer head": 80M parameters of the paper's 1.4B. The encoder and
the first half of the quantizer are neither built nor read from the file.

T = patches of all images, S = 4 slots, C = width of a feature.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.levels import check_levels
from viq.core.types import Grid, ViqError
from viq.models.tokenizer.config import decisive_parts
from viq.models.tokenizer.encoder import EncoderConfig
from viq.models.tokenizer.fsq import FSQ
from viq.models.tokenizer.quantizer import DequantizeHead, QuantizerConfig
from viq.models.tokenizer.semantic import SemanticConfig
from viq.models.tokenizer.transform_code import TransformConfig
from viq.models.tokenizer.transform_quantizer import TransformQuantizer
from viq.weights import checkpoint
from viq.weights.hub import locate
from viq.weights.verify import digests_of, verify

# In the weights of a tokenizer; what follows "quantizer." are the names here.
_HEAD = "quantizer."
_PREFIXES = tuple(_HEAD + part for part in ("bottleneck.project_out.", "merge_mlp.", "post_"))


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """Shape of an embedder, and the tokenizer whose codes it reads."""

    width: int  # C
    levels: tuple[int, ...]  # of FSQ
    post_depth: int = 3  # residual MLPs
    tokenizer: str = ""  # folder, bundled name or hub id, for images that are not codes yet
    fingerprint: str = ""  # of that tokenizer; "" accepts all codes
    transform: TransformConfig | None = None  # of a tokenizer with a transform code
    semantic: SemanticConfig | None = None  # of its meaning, where it has that

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_levels(self.levels))
        untrusted.shape(self, width=2**16)
        untrusted.whole_number(self.post_depth, "post_depth", 0, 512)
        untrusted.fingerprint(self.fingerprint, "fingerprint")


class CodeEmbedder(DequantizeHead):
    """Codebook indices (T, S) to features (T, C), as `VisualTokenizer.features` gives them."""

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__()
        self.config = config
        if config.transform is not None:
            self.transform = TransformQuantizer(config.width, config.transform, config.semantic)
            return
        self.fsq = FSQ(config.levels)
        step_6 = nn.Linear(len(config.levels), config.width)
        self.bottleneck = nn.ModuleDict({"project_out": step_6})
        self.add_dequantize(config.width, config.post_depth)

    def forward(self, codes_TS: Tensor, grids_hw: Sequence[Grid] = ()) -> Tensor:
        """As `VisualTokenizer.features`."""
        if self.config.transform is not None:
            return self.transform.features(codes_TS, grids_hw)
        return self.dequantize(self.fsq.decode(codes_TS))

    @classmethod
    def from_tokenizer(cls, name: str | os.PathLike[str]) -> CodeEmbedder:
        """The embedder of a tokenizer: a folder, a bundled name, or a hub id. In fp32.

        Raises:
            CheckpointError: nothing usable under that name.
            ViqError: its bottleneck is continuous, or it has no fingerprint.
        """
        folder = locate(name)
        values, where = checkpoint.read_config(folder), str(folder / checkpoint.CONFIG_FILE)
        if not isinstance(values.get("encoder"), dict):
            raise ViqError(f"{name}: is no tokenizer with codes; give one whose FSQ stage is done")
        encoder = checkpoint.from_dict(EncoderConfig, values["encoder"], where)
        quantizer = checkpoint.from_dict(QuantizerConfig, values.get("quantizer", {}), where)
        if quantizer.bottleneck == "proximal":
            raise ViqError(f"{name}: is no tokenizer with codes; give one whose FSQ stage is done")
        digest = digests_of(values, where)[0]
        if not digest:
            raise ViqError(f"{where}: has no fingerprint; load the tokenizer and save it again")
        config = EmbedderConfig(
            width=encoder.width,
            levels=quantizer.levels,
            post_depth=quantizer.post_depth,
            tokenizer=str(folder.resolve()) if os.path.isdir(name) else str(name),
            fingerprint=digest,
            transform=quantizer.transform,
            semantic=encoder.semantic,
        )
        with checkpoint.building(where):
            embedder = cls(config)
        path = folder / checkpoint.WEIGHTS_FILE
        # All that the fingerprint covers is looked at, though only a part of it is loaded.
        verify(path, decisive_parts(encoder, quantizer), (digest, ""))
        whole = quantizer.transform is not None
        weights = checkpoint.read_weights(
            path, (_HEAD,) if whole else _PREFIXES, dtype=torch.float32
        )
        own = "transform." if whole else ""
        renamed = {own + k.removeprefix(_HEAD): v for k, v in weights.items()}
        checkpoint.load_strictly(embedder, renamed, str(path))
        return embedder
