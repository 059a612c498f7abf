"""The visual tokenizer: images to codes, codes to features, features to images.

One class for training and inference. `forward` and `reconstruct` are differentiable and work on
packed batches; `encode`, `embed`, `pool` and `decode` are what users call.

T = patches of all images, S = 4 slots, C = width, d = FSQ dims, n = images.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from viq.codec.entropy_model import ENTROPY_FILE, EntropyModel
from viq.core.codes import Codes
from viq.core.files import write_atomically, written_aside
from viq.core.types import CODES_PER_PATCH, CodesError, Grid, ViqError, grid_of
from viq.image.open import Source, limit_pixels, open_image
from viq.image.patches import (
    PatchBatch,
    denormalize,
    lengths_of,
    normalize,
    pack,
    tile_grid,
    unpatchify,
)
from viq.models.layers.ambient import by_default
from viq.models.layers.blocks import AttentionPool
from viq.models.tokenizer.config import TokenizerConfig, decisive, refuse_language_model
from viq.models.tokenizer.decoder import PixelDecoder
from viq.models.tokenizer.encoder import Encoder
from viq.models.tokenizer.latent_head import LatentHead
from viq.models.tokenizer.quantizer import FSQBottleneck, QuantizerHead
from viq.models.tokenizer.qwen_vae import VAE_WEIGHTS_FILE, decode_latents, load_vae
from viq.weights import checkpoint
from viq.weights.hub import locate
from viq.weights.verify import DIGEST, decides, rest_digest, stamps_of, verify

_Result = TypeVar("_Result")
_BAND = 4096  # patches decoded at a time: bounds memory, the result is the same


@dataclass(frozen=True, kw_only=True)
class TokenizerOutput:
    """What one pass over packed images gives; all differentiable."""

    z_TSd: Tensor  # bottleneck values before the limit
    codes_TSd: Tensor  # after it: FSQ codes, or points in the unit ball
    features_TC: Tensor  # what language model, pooling head and decoders read


def _as_it_is(method: Callable[..., _Result]) -> Callable[..., _Result]:
    """Put aside what the caller has set: in half precision a few codes in a hundred are others."""

    @functools.wraps(method)
    def run(self: VisualTokenizer, *args: Any, **kwargs: Any) -> _Result:
        with by_default(self.device):
            return method(self, *args, **kwargs)

    return run


class VisualTokenizer(nn.Module):
    """ViQ: any image in, four codes a 16x16 patch out, features and the image back.

    Build one from a config to train it, or with `from_pretrained` to use it.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        c, heads = config.encoder.width, config.encoder.heads
        self.encoder = Encoder(config.encoder)
        self.quantizer = QuantizerHead(c, config.quantizer)
        self.pool_norm = nn.LayerNorm(c, eps=1e-6)
        self.pool_head = AttentionPool(c, heads, config.encoder.mlp_width)
        self.decoder = (
            PixelDecoder(c, config.decoder, config.encoder.patch_size) if config.decoder else None
        )
        self.latent_head = LatentHead(c, config.latents) if config.latents else None
        self._fingerprint: str | None = None
        self.entropy_file: Path | None = None  # where it is, or is to be
        self._vae_folder: Path | None = None  # of a converted model: its Qwen-Image VAE
        self._vae: list[Any] = []  # loaded on first use; in a list to stay out of the state dict

    # Packed and differentiable

    def forward(self, batch: PatchBatch) -> TokenizerOutput:
        """Tokenize packed images."""
        z_TSd = self.quantizer(self.encoder(batch), batch.grids_hw)
        codes_TSd = self.quantizer.bottleneck.limit(z_TSd)
        return TokenizerOutput(
            z_TSd=z_TSd, codes_TSd=codes_TSd, features_TC=self.quantizer.restore(codes_TSd)
        )

    def ids(self, batch: PatchBatch) -> Tensor:
        """Codebook indices (T, S), int64, of packed images."""
        return self._fsq.fsq.indices(self.quantizer(self.encoder(batch), batch.grids_hw))

    @_as_it_is
    def ids_alone(self, batch: PatchBatch) -> Tensor:
        """Codebook indices (T, S), int64, as `encode` gives them: image by image, tile by tile, in
        the dtype of the model whatever autocast is around."""
        tile, parts = self.config.tile // self.config.encoder.patch_size, []
        for part, grid in zip(
            batch.patches_TD.split(lengths_of(batch.grids_hw)), batch.grids_hw, strict=True
        ):
            patches = part.unflatten(0, grid)
            ids = torch.empty(*grid, CODES_PER_PATCH, dtype=torch.long, device=part.device)
            for where in tile_grid(grid, tile if max(grid) > tile else 0):
                piece = patches[where]
                shape = (piece.shape[0], piece.shape[1])
                alone = PatchBatch(patches_TD=piece.flatten(0, 1), grids_hw=(shape,))
                ids[where] = self.ids(alone).unflatten(0, shape)
            parts.append(ids.flatten(0, 1))
        return torch.cat(parts)

    def features(self, ids_TS: Tensor) -> Tensor:
        """Features (T, C) of codebook indices (T, S)."""
        return self.quantizer.restore(self._fsq.fsq.decode(ids_TS))

    def pooled(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Semantic token (n, C) of each image."""
        return self.pool_head(self.pool_norm(features_TC), lengths_of(grids_hw))

    def reconstruct(self, features_TC: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Patches of pixels (T, 3 * patch_size**2), about [-1, 1]."""
        if self.decoder is None:
            raise ViqError(
                f"{self.config.name} has no pixel decoder: it gives codes and features; "
                "decode with a model that has one, or one converted together with its VAE"
            )
        return self.decoder(features_TC, grids_hw)

    # What users call

    @torch.inference_mode()
    @_as_it_is
    def encode(
        self,
        images: Source | Iterable[Source],
        *,
        tile: int | None = None,
        max_pixels: int | None = None,
        packed: bool = False,
    ) -> list[Codes]:
        """Codes of images of any sizes, each at its native resolution.

        Like `embed`, `pool` and `decode` it computes in the dtype of the model, float32 unless
        changed, even inside of `torch.autocast` or where TF32 is allowed. Codes say which it was.

        Args:
            images: paths, bytes, PIL images or uint8 arrays (H, W, 3), or one of these.
            tile: images with a side above this many px are encoded in near-equal tiles of at
                most this side; 0 never tiles; None takes the model's own setting.
            max_pixels: larger images are first shrunk to this area, aspect kept.
            packed: run all images in one sequence instead of one after another. Faster for many
                small images on an accelerator, but matrix libraries choose their order of
                summation by shape, so a value on a rounding boundary may then flip.

        Raises:
            ImageError: an image cannot be read; names it.
        """
        tile = self.config.tile if tile is None else tile
        patch = self.config.encoder.patch_size
        if tile < 0 or tile % patch:
            raise ViqError(f"tile must be 0 or a multiple of {patch} px, got {tile}")
        sources, codes = _listed(images), []
        for group in [sources] if packed else [[source] for source in sources]:
            opened = [self._open(source, max_pixels) for source in group]
            tiles = [list(self._tiles(image, tile)) for image in opened]
            pixels = [piece for parts in tiles for _, piece in parts]
            ids = iter(self._ids(pixels) if packed else (self._ids([p])[0] for p in pixels))
            for image, parts in zip(opened, tiles, strict=True):
                codes.append(self._join(image, tile, [(where, next(ids)) for where, _ in parts]))
        return codes

    @torch.inference_mode()
    @_as_it_is
    def embed(self, codes: Codes | Iterable[Codes]) -> list[Tensor]:
        """Features (rows*cols, C) of each image, in the dtype and on the device of the model."""
        return [self.features(self._checked(item)) for item in _listed(codes)]

    @torch.inference_mode()
    @_as_it_is
    def pool(self, codes: Codes | Iterable[Codes]) -> Tensor:
        """Semantic tokens (n, C)."""
        listed = _listed(codes)
        pooled = [self.pooled(self.embed(item)[0], [item.grid]) for item in listed]
        return torch.cat(pooled) if pooled else self.pool_head.latent.new_empty(0, self.width)

    @torch.inference_mode()
    @_as_it_is
    def decode(self, codes: Codes | Iterable[Codes]) -> list[Image.Image]:
        """RGB images at their original sizes."""
        return [self._decode(item) for item in _listed(codes)]

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
        values, where = checkpoint.read_config(folder), str(folder / checkpoint.CONFIG_FILE)
        path = folder / checkpoint.WEIGHTS_FILE
        stamps = stamps_of(values, where)
        for name in ("format", "fingerprint", DIGEST):
            values.pop(name, None)
        refuse_language_model(values, folder)
        config = checkpoint.from_dict(TokenizerConfig, values, where)
        with checkpoint.building(where):
            model = cls(config)
        checkpoint.load_model(model, path, device=device, dtype=dtype or torch.float32)
        exact = model.device.type == "cpu" and dtype in (None, torch.float32)
        verify(path, decisive(config), stamps, model.state_dict() if exact else None)
        model._fingerprint = stamps[0] or None
        model.entropy_file = folder / ENTROPY_FILE
        if model.latent_head is not None and (folder / "vae" / checkpoint.CONFIG_FILE).is_file():
            model._vae_folder = folder / "vae"
        return model.requires_grad_(False).eval()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors`, each aside and renamed, weights first.

        Args:
            dtype: of the stored weights; as they are by default. Weights rounded to half
                precision are another tokenizer, with another fingerprint than this object's.
        """
        folder = Path(folder)
        vae, copy = self._vae_folder, folder / "vae"
        if vae is not None and vae.resolve() != copy.resolve():
            for name in (VAE_WEIGHTS_FILE, checkpoint.CONFIG_FILE):
                with written_aside(copy / name) as aside:
                    shutil.copyfile(vae / name, aside)
        weights = {k: v.to(dtype or v.dtype) for k, v in self.state_dict().items()}
        stamp = self._stamp(weights)
        if dtype is None:
            self._fingerprint = stamp  # it may have been trained since it was loaded
        checkpoint.write_weights(folder / checkpoint.WEIGHTS_FILE, weights)
        if self.entropy_file and self.entropy_file.is_file():
            entropy = EntropyModel.load(self.entropy_file)
            if entropy.fingerprint == stamp:  # it would be wrong for other weights
                entropy.save(folder)
        values = {"format": 1, **checkpoint.to_dict(self.config), "fingerprint": stamp,
                  DIGEST: rest_digest(weights)}  # fmt: skip
        write_atomically(folder / checkpoint.CONFIG_FILE, _pretty(values))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **kwargs: Any) -> str:
        """Upload to the Hugging Face hub; gives the address of the commit."""
        from viq.weights.hub import upload

        return upload(self, repo_id, private=private, **kwargs)

    @property
    def entropy(self) -> EntropyModel:
        """What compresses codes of this tokenizer; a file in its folder.

        It has a stamp of its own and no part in the fingerprint: ids mean the same whatever
        packed them. It names the fingerprint that it was fitted to and refuses other codes.

        Raises:
            ViqError: there is none, or it was fitted to another tokenizer.
        """
        if self.entropy_file is None:
            raise ViqError(f"{self.config.name}: was not loaded from a folder, so has no entropy "
                           "model; save it and run viq train entropy")  # fmt: skip
        model = EntropyModel.load(self.entropy_file)
        if model.fingerprint != self.fingerprint:
            raise ViqError(
                f"{self.entropy_file}: fitted to the tokenizer {model.fingerprint}, but this is "
                f"{self.fingerprint}: run viq train entropy again"
            )
        return model

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two tokenizers share only if they make and read the same codes."""
        if self._fingerprint is None:
            self._fingerprint = self.compute_fingerprint()
        return self._fingerprint

    def compute_fingerprint(self) -> str:
        """The fingerprint of the weights as they are now, in the dtype they now have."""
        return self._stamp(self.state_dict())

    def _stamp(self, weights: Mapping[str, Tensor]) -> str:
        covered = {name: weight for name, weight in weights.items() if decides(name)}
        return checkpoint.fingerprint(decisive(self.config), covered)

    @property
    def width(self) -> int:
        """C, channels of a feature."""
        return self.config.encoder.width

    @property
    def levels(self) -> tuple[int, ...]:
        """FSQ levels; their product is the size of the codebook."""
        return self._fsq.fsq.levels

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.encoder.position.device

    @property
    def dtype_name(self) -> str:
        """Name of the dtype of the encoder, in which codes are made: "float32" unless changed."""
        return str(self.encoder.position.dtype).removeprefix("torch.")

    # Steps of the above

    @property
    def _fsq(self) -> FSQBottleneck:
        bottleneck = self.quantizer.bottleneck
        if not isinstance(bottleneck, FSQBottleneck):
            raise ViqError(
                f"{self.config.name} has a proximal bottleneck, which is continuous and gives no "
                "codes: train its FSQ stage first"
            )
        return bottleneck

    def _open(self, source: Source, max_pixels: int | None) -> np.ndarray:
        return np.asarray(limit_pixels(open_image(source), max_pixels))

    def _tiles(self, image: np.ndarray, tile: int) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        patch = self.config.encoder.patch_size
        size = image.shape[:2]
        tile = tile if max(size) > tile else 0
        for rows, cols in tile_grid(grid_of(size, patch), tile // patch):
            piece = image[
                rows.start * patch : rows.stop * patch, cols.start * patch : cols.stop * patch
            ]
            yield (rows, cols), normalize(piece)

    def _ids(self, pixels: Sequence[Tensor]) -> list[np.ndarray]:
        """Indices (rows, cols, S), uint16, of images run in one sequence."""
        if not pixels:
            return []
        batch = pack([p.to(self.device) for p in pixels], self.config.encoder.patch_size)
        parts = self.ids(batch).cpu().split(lengths_of(batch.grids_hw))
        return [
            part.numpy().astype(np.uint16).reshape(*grid, -1)
            for part, grid in zip(parts, batch.grids_hw, strict=True)
        ]

    def _join(
        self,
        image: np.ndarray,
        tile: int,
        parts: Sequence[tuple[tuple[slice, slice], np.ndarray]],
    ) -> Codes:
        size = (image.shape[0], image.shape[1])
        grid = grid_of(size, self.config.encoder.patch_size)
        ids = np.empty((*grid, parts[0][1].shape[-1]), np.uint16)
        for where, part in parts:
            ids[where] = part
        return Codes(ids, size, tile if len(parts) > 1 else 0, self.fingerprint, self.dtype_name)

    def _checked(self, codes: Codes) -> Tensor:
        """Indices (T, S) on the device of the model."""
        self.require(codes.fingerprint)
        ids = torch.from_numpy(codes.ids.astype(np.int64))
        size = self._fsq.fsq.codebook_size
        if ids.numel() and int(ids.max()) >= size:
            raise CodesError(
                f"code {int(ids.max())} is outside the codebook of {size}: the codes are damaged "
                "or were made by a model with other levels"
            )
        return ids.flatten(0, 1).to(self.device)

    def require(self, fingerprint: str) -> None:
        """Refuse codes of another tokenizer; codes of unknown origin ("") pass."""
        if fingerprint and fingerprint != self.fingerprint:
            raise CodesError(
                f"these codes were made by the tokenizer {fingerprint}, but {self.config.name} is "
                f"{self.fingerprint}: load the tokenizer that made them"
            )

    def _decode(self, codes: Codes) -> Image.Image:
        """Decode in bands of rows, each with as much context as the decoder can see."""
        if self.decoder is None and self._vae_folder is not None:
            return self._decode_with_vae(codes)
        ids = self._checked(codes).unflatten(0, codes.grid)
        rows, cols = codes.grid
        patch = self.config.encoder.patch_size
        halo = self.decoder.reach if self.decoder else 0
        step = max(1, _BAND // cols)
        bands = []
        for top in range(0, rows, step):
            first, last = max(0, top - halo), min(rows, top + step + halo)
            window = ids[first:last]
            patches = self.reconstruct(self.features(window.flatten(0, 1)), [(last - first, cols)])
            wanted = patches.unflatten(0, (last - first, cols))[top - first :][:step]
            height = min(step * patch, codes.size[0] - top * patch)
            pixels = unpatchify(wanted.flatten(0, 1), (height, codes.size[1]), patch)
            bands.append(denormalize(pixels).cpu().numpy())
        return Image.fromarray(np.concatenate(bands))

    def _decode_with_vae(self, codes: Codes) -> Image.Image:
        """Decode in one piece: latent head and VAE attend across the whole image."""
        assert self.latent_head is not None and self._vae_folder is not None
        if not self._vae:
            self._vae.append(load_vae(self._vae_folder, self.device, self.encoder.position.dtype))
        latents = self.latent_head(self.features(self._checked(codes)), [codes.grid])
        pixels = decode_latents(self._vae[0].to(self.device), latents)[0]
        height, width = codes.size
        return Image.fromarray(denormalize(pixels[:, :height, :width]).cpu().numpy())


def _listed(items: Any) -> list[Any]:
    single = isinstance(items, str | bytes | os.PathLike | Image.Image | np.ndarray | Codes)
    return [items] if single else list(items)


def _pretty(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
