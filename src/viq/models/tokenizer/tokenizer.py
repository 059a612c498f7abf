"""The visual tokenizer: images to codes, codes to features, features to images.

One class for training and inference. `forward` and `reconstruct` are differentiable and work on
packed batches; `encode`, `embed`, `pool` and `decode` are what users call.

T = patches of all images, S = 4 slots, C = width, d = FSQ dims, n = images.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from viq.codec.entropy_model import EntropyModel
from viq.core.codes import Codes
from viq.core.levels import codebook_size
from viq.core.notebook import html_table
from viq.core.types import CODES_PER_PATCH, CodesError, Grid, ViqError
from viq.image.open import ImageInput, limit_pixels, open_image
from viq.image.patches import PatchBatch, lengths_of
from viq.models.layers.ambient import as_if_unset, inferring
from viq.models.layers.blocks import AttentionPool
from viq.models.layers.unregistered import Unregistered
from viq.models.tokenizer import inference, saving
from viq.models.tokenizer.config import TokenizerConfig
from viq.models.tokenizer.decoder import PixelDecoder
from viq.models.tokenizer.encoder import Encoder
from viq.models.tokenizer.latent_head import LatentHead
from viq.models.tokenizer.quantizer import FSQBottleneck, QuantizerHead
from viq.models.tokenizer.refinement import Refinement
from viq.models.tokenizer.transform_decoder import TransformDecoder
from viq.models.tokenizer.transform_quantizer import PixelEncoder, TransformQuantizer
from viq.models.tokenizer.variable_rate import Rate
from viq.weights.bundled import bundled_maker
from viq.weights.hub import locate


@dataclass(frozen=True, kw_only=True)
class TokenizerOutput:
    """What one pass over packed images gives; all differentiable."""

    z_TSd: Tensor  # bottleneck values before the limit
    codes_TSd: Tensor  # after it: FSQ codes, or points in the unit ball
    features_TC: Tensor  # what language model, pooling head and decoders read


class VisualTokenizer(nn.Module):
    """ViQ: any image in, four codes a 16x16 patch out, features and the image back.

    Build one from a config to train it, or with `from_pretrained` to use it.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        c, heads = config.encoder.width, config.encoder.heads
        self.encoder: Any  # of either kind, by the config
        self.quantizer: Any
        if config.quantizer.transform is None:
            self.encoder = Encoder(config.encoder)
            self.quantizer = QuantizerHead(c, config.quantizer)
        else:
            semantic = config.encoder.semantic
            self.encoder = PixelEncoder(semantic)
            self.quantizer = TransformQuantizer(c, config.quantizer.transform, semantic)
        self.pool_norm = nn.LayerNorm(c, eps=1e-6)
        self.pool_head = AttentionPool(c, heads, config.encoder.mlp_width)
        self.decoder = self._make_decoder()
        self.latent_head = LatentHead(c, config.latents) if config.latents else None
        self.text_head = nn.Linear(c, config.text.width) if config.text else None
        self.refinement = None
        if config.refinement is not None and config.quantizer.transform is not None:
            self.refinement = Refinement(config.refinement, config.quantizer.transform)
        self._fingerprint: str | None = None
        self.entropy_file: Path | None = None  # where it is, or is to be
        self._vae_folder: Path | None = None  # of a converted model: its Qwen-Image VAE
        self._vae = Unregistered[Any]()  # loaded on first use

    def __repr__(self) -> str:
        """One line; `print(tokenizer.encoder)` and so on show layers."""
        facts = ", ".join(f"{name}={value!r}" for name, value in self._facts().items())
        return f"VisualTokenizer({facts})"

    def _repr_html_(self) -> str:
        return html_table("VisualTokenizer", self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.config.name,
            "codebook": codebook_size(self.config.quantizer.levels),
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
            "dtype": str(self.pool_norm.weight.dtype).removeprefix("torch."),
            "device": str(self.device),
        }

    # Packed and differentiable

    def forward(self, batch: PatchBatch) -> TokenizerOutput:
        """Tokenize packed images. A transform code has no values before a limit: both are empty."""
        if isinstance(self.quantizer, TransformQuantizer):
            features_TC = self.features(self.ids(batch), batch.grids_hw)
            none_TSd = features_TC.new_empty(len(features_TC), CODES_PER_PATCH, 0)
            return TokenizerOutput(z_TSd=none_TSd, codes_TSd=none_TSd, features_TC=features_TC)
        head = self._learned
        z_TSd = head(self.encoder(batch), batch.grids_hw)
        codes_TSd = head.bottleneck.bound(z_TSd)
        return TokenizerOutput(
            z_TSd=z_TSd, codes_TSd=codes_TSd, features_TC=head.dequantize(codes_TSd)
        )

    def ids(self, batch: PatchBatch) -> Tensor:
        """Codebook indices (T, S), int64, of packed images."""
        if isinstance(self.quantizer, TransformQuantizer):
            assert isinstance(self.encoder, PixelEncoder)
            meaning = self.encoder.meaning(batch)
            return self.quantizer.ids(self.encoder(batch), batch.grids_hw, meaning)
        return self._fsq.fsq.indices(self._learned(self.encoder(batch), batch.grids_hw))

    @as_if_unset
    def ids_alone(self, batch: PatchBatch) -> Tensor:
        """Codebook indices (T, S), int64, as `encode` gives them: image by image, tile by tile, in
        the dtype of the model whatever autocast is around."""
        return inference.packed_ids(self, batch)

    def features(self, ids_TS: Tensor, grids_hw: Sequence[Grid] = ()) -> Tensor:
        """Features (T, C) of codebook indices (T, S) of packed images.

        Args:
            grids_hw: of the images. Only features that a transform code has of meaning need them,
                as they depend on neighbours.
        """
        if isinstance(self.quantizer, TransformQuantizer):
            return self.quantizer.features(ids_TS, grids_hw)
        return self._learned.dequantize(self._fsq.fsq.decode(ids_TS))

    def continuous_features(self, batch: PatchBatch) -> Tensor:
        """Features (T, C) of packed images before anything is rounded: tokens of the encoder; of a
        transform code, its features with the values that codes round."""
        if isinstance(self.quantizer, TransformQuantizer):
            assert isinstance(self.encoder, PixelEncoder)
            meaning = self.encoder.unrounded_meaning(batch)
            return self.quantizer.unrounded_features(self.encoder(batch), batch.grids_hw, meaning)
        return self.encoder(batch)

    def pooled(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Semantic token (n, C) of each image."""
        return self.pool_head(self.pool_norm(features_TC), lengths_of(grids_hw))

    def embedded(self, pooled_nC: Tensor) -> Tensor:
        """Unit vectors (n, E) of semantic tokens, as `image_embeds` gives them.

        Raises:
            ViqError: the tokenizer has no text head.
        """
        if self.text_head is None:
            raise ViqError(
                f"{self.config.name} maps no pictures to sentence embeddings: take viq-transform"
            )
        return F.normalize(self.text_head(pooled_nC), dim=-1)

    def reconstruct(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Patches of pixels (T, 3 * patch_size**2), about [-1, 1]."""
        if self.decoder is None:
            raise ViqError(
                f"{self.config.name} has no pixel decoder: it gives codes and features; "
                "decode with a model that has one, or one converted together with its VAE"
            )
        return self.decoder(features_TC, grids_hw)

    # What users call

    @inferring
    def encode(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        tile: int | None = None,
        max_pixels: int | None = None,
        packed: bool = False,
        bpp: float | None = None,
        psnr: float | None = None,
        nbytes: int | None = None,
        compress: bool = False,
    ) -> list[Codes]:
        """Codes of images of any sizes, each at its native resolution.

        Like `embed`, `pool` and `decode` it computes in the dtype of the model, float32 unless
        changed, even inside of `torch.autocast` or where TF32 is allowed. Codes say which it was.

        Args:
            images: paths, bytes, PIL images, arrays or tensors (uint8, or floats in [0, 1];
                channels first or last), or one of these; a batch (n, 3, H, W) is n images.
            tile: images with a side above this many px are encoded in near-equal tiles of at
                most this side; 0 never tiles; None takes the model's own setting.
            max_pixels: larger images are first shrunk to this area, aspect kept.
            packed: run all images in one sequence instead of one after another. Faster for many
                small images on an accelerator, but matrix libraries choose their order of
                summation by shape, so a value on a rounding boundary may then flip.
            bpp: give each patch as many codes as it needs, not four, so that the whole .viq file
                takes at most this many bits a pixel. One of these three.
            psnr: the same, as few as keep this many dB of an image.
            nbytes: the same, for a file of at most so many bytes.
            compress: bpp and nbytes are of what `EntropyModel.stored_bytes` counts instead.

        Raises:
            ImageError: an image cannot be read; names it.
            ViqError: a rate that cannot be met, or a model without what it needs.
        """
        tile = self.config.tile if tile is None else tile
        inference.check_tile(tile, self.config.encoder.patch_size)
        rate = Rate.of(bpp=bpp, psnr=psnr, nbytes=nbytes)
        coder = self.entropy if compress and rate else None
        sources, codes = inference.listed(images), []
        for group in [sources] if packed else [[source] for source in sources]:
            opened = [np.asarray(limit_pixels(open_image(one), max_pixels)) for one in group]
            if rate is None:
                codes += inference.encode_images(self, opened, tile=tile, packed=packed)
            else:
                codes += inference.encode_counted(self, opened, tile=tile, rate=rate, coder=coder)
        return codes

    @inferring
    def embed(self, codes: Codes | Iterable[Codes]) -> list[Tensor]:
        """Features (rows*cols, C) of each image, in the dtype and on the device of the model."""
        return [
            self.features(inference.checked_ids(self, item), [item.grid])
            for item in inference.listed(codes)
        ]

    @inferring
    def pool(self, codes: Codes | Iterable[Codes]) -> Tensor:
        """Semantic tokens (n, C). Which others are given can change the last digits of one."""
        return inference.pool(self, inference.listed(codes))

    @inferring
    def image_embeds(self, codes: Codes | Iterable[Codes]) -> Tensor:
        """Unit vectors (n, E), E as in `config.text`, near those that the text model of the config
        gives sentences about the same pictures: compare by cosine similarity.

        Raises:
            ViqError: the tokenizer has no text head.
        """
        return self.embedded(self.pool(codes))

    @inferring
    def decode(self, codes: Codes | Iterable[Codes]) -> list[Image.Image]:
        """RGB images at their original sizes."""
        return [self._decode(item) for item in inference.listed(codes)]

    # Loading and saving, in the Hugging Face manner

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> VisualTokenizer:
        """A tokenizer from a folder, a bundled name, or a Hugging Face hub id; in eval mode.

        Args:
            dtype: of the parameters; float32 by default, whatever the file holds, because codes
                in half precision differ.

        Raises:
            CheckpointError: the folder is incomplete, damaged, does not fit its config, or has
                other weights than those whose fingerprint its config names.
        """
        folder = locate(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return saving.load(cls, folder, device, dtype)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None
    ) -> None:
        """Write `model.safetensors` and `config.json`, each aside and renamed, weights first, and
        `preprocessor_config.json` for transformers.

        Args:
            dtype: of the stored weights; as they are by default. Weights rounded to half
                precision are another tokenizer, with another fingerprint than this object's.
        """
        saving.save(self, Path(folder), dtype)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **kwargs: Any) -> str:
        """Upload to the Hugging Face hub; gives the address of the commit."""
        from viq.weights.hub import upload

        with tempfile.TemporaryDirectory(prefix="viq-upload-") as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo_id, private=private, **kwargs)

    @property
    def entropy(self) -> EntropyModel:
        """What compresses codes of this tokenizer; a file in its folder.

        It has a digest of its own and no part in the fingerprint: ids mean the same whatever
        packed them. It names the fingerprint that it was fitted to and refuses other codes.

        Raises:
            ViqError: there is none, or it was fitted to another tokenizer.
        """
        return saving.entropy_model(self)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two tokenizers share only if they make and read the same codes."""
        if self._fingerprint is None:
            self._fingerprint = self.compute_fingerprint()
        return self._fingerprint

    def compute_fingerprint(self) -> str:
        """The fingerprint of the weights as they are now, in the dtype they now have."""
        return saving.fingerprint_of(self.config, self.state_dict())

    @property
    def width(self) -> int:
        """C, channels of a feature."""
        return self.config.encoder.width

    @property
    def levels(self) -> tuple[int, ...]:
        """FSQ levels; their product is the size of the codebook."""
        if isinstance(self.quantizer, TransformQuantizer):
            return self.quantizer.levels
        return self._fsq.fsq.levels

    @property
    def codebook_size(self) -> int:
        """Codes that the codebook has."""
        return codebook_size(self.levels)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pool_head.latent.device

    @property
    def dtype_name(self) -> str:
        """Name of the dtype of the encoder, in which codes are made: "float32" unless changed."""
        return str(self.pool_head.latent.dtype).removeprefix("torch.")

    def require(self, fingerprint: str) -> None:
        """Refuse codes of another tokenizer; codes of unknown origin ("") pass."""
        if fingerprint and fingerprint != self.fingerprint:
            maker = bundled_maker(fingerprint)
            raise CodesError(
                f"these codes were made by the tokenizer {fingerprint}, but {self.config.name} is "
                f"{self.fingerprint}: load {maker or 'the tokenizer that made them'}"
            )

    @property
    def _fsq(self) -> FSQBottleneck:
        bottleneck = self._learned.bottleneck
        if not isinstance(bottleneck, FSQBottleneck):
            raise ViqError(
                f"{self.config.name} has a proximal bottleneck, which is continuous and gives no "
                "codes: train its FSQ stage first"
            )
        return bottleneck

    @property
    def _learned(self) -> QuantizerHead:
        if not isinstance(self.quantizer, QuantizerHead):
            raise ViqError(
                f"{self.config.name} has a transform code, which is fitted, not trained: train "
                "its decoder"
            )
        return self.quantizer

    def _make_decoder(self) -> PixelDecoder | TransformDecoder | None:
        config, width = self.config.decoder, self.config.encoder.width
        if config is None:
            return None
        if isinstance(self.quantizer, TransformQuantizer):
            return TransformDecoder(config, self.quantizer)
        return PixelDecoder(width, config, self.config.encoder.patch_size)

    def _decode(self, codes: Codes) -> Image.Image:
        if self.decoder is not None or self._vae_folder is None:
            return inference.decode_windows(self, codes)
        if self._vae.module is None:
            from viq.models.tokenizer.qwen_vae import load_vae  # of converted models alone

            dtype = self.pool_head.latent.dtype
            self._vae.module = load_vae(self._vae_folder, self.device, dtype)
        return inference.decode_with_vae(self, self._vae.module.to(self.device), codes)
