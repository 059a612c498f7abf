"""The visual tokenizer as a model of transformers: pixel values to codes, features and pixels.

    import viq.mllm  # registers it
    model = AutoModel.from_pretrained(folder)
    inputs = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    tokens = model.get_image_tokens(**inputs)  # as Chameleon and Emu3 name it
    pixels = model.decode_image_tokens(tokens, **inputs)

Its folder is that of `VisualTokenizer`, and it gives the same codes. Weights in the folder have the
names that `VisualTokenizer` gives them, so both read what either writes.

T = patches of all images, S = 4 slots, C = width of a feature, D = values per patch, n = images,
H, W = height and width in px.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from viq.core.codes import Codes
from viq.core.types import CODES_PER_PATCH, CodesError, Grid, Size, ViqError, grid_of
from viq.image.patches import PatchBatch, exact_pixels, lengths_of, normalize, unpatchify
from viq.mllm.keywords import check_keywords
from viq.models.tokenizer import inference
from viq.models.tokenizer.config import MODEL_TYPE, TokenizerConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights import checkpoint

# What AutoModel and trainers pass along, where it changes nothing.
_OF_LOADING: Mapping[str, tuple[Any, ...]] = {
    "trust_remote_code": (None, False, True), "use_safetensors": (True,),
    "force_download": (False,), "proxies": (None,), "subfolder": ("",), "code_revision": (None,),
    "low_cpu_mem_usage": (None, True, False), "_from_auto": (True, False), "weights_only": (True,),
    "quantization_config": (None,), "attn_implementation": (None, "sdpa"),
}  # fmt: skip
_OF_SAVING: Mapping[str, tuple[Any, ...]] = {
    "safe_serialization": (True,), "push_to_hub": (False,), "token": (None,), "variant": (None,),
    "state_dict": (None,), "save_peft_format": (True,), "max_shard_size": ("50GB", "5GB"),
}  # fmt: skip


class ViQTokenizerConfig(PreTrainedConfig):
    """`config.json` of a tokenizer's folder, see `TokenizerConfig`.

    Args:
        encoder, quantizer, decoder, latents, refinement, text: fields of the parts; all but the
            first two may be missing.
        tile: px; images with a longer side are encoded in tiles; 0: never.
        name: of the tokenizer.
        fingerprint: of codes and the weights that make them.
    """

    model_type = MODEL_TYPE

    encoder: Any = None
    quantizer: Any = None
    decoder: Any = None
    latents: Any = None
    refinement: Any = None
    text: Any = None
    tile: int = 0
    name: str = "viq"
    fingerprint: str = ""

    @property
    def tokenizer(self) -> TokenizerConfig:
        """The same, checked. Raises `CheckpointError`."""
        values = {field.name: getattr(self, field.name) for field in fields(TokenizerConfig)}
        return checkpoint.from_dict(TokenizerConfig, values, checkpoint.CONFIG_FILE)

    @property
    def hidden_size(self) -> int:
        """C, channels of a feature."""
        return self.encoder["width"]

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """This config: the parts of that name have nothing to do with text."""
        return self


@dataclass
class ViQTokenizerOutput(BaseModelOutputWithPooling):
    """What one pass gives.

    Attributes:
        last_hidden_state: features (T, C) of the patches, image after image.
        pooler_output: semantic tokens (n, C), one an image.
        image_tokens: codes (T, S), int64.
        image_grid_hw: rows and columns of patches (n, 2), int64.
    """

    image_tokens: Any = None
    image_grid_hw: Any = None


class ViQTokenizerModel(PreTrainedModel):
    """A `VisualTokenizer` with the face of transformers; it is `model.tokenizer`.

    Images come as `ViQImageProcessor` gives them, or as one tensor (n, 3, H, W) in [-1, 1], of any
    sides; `image_sizes` then say how much of each is image, and how much is padding.
    """

    config: ViQTokenizerConfig
    config_class = ViQTokenizerConfig
    base_model_prefix = "tokenizer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # pyright: ignore[reportAssignmentType]

    def __init__(self, config: ViQTokenizerConfig) -> None:
        super().__init__(config)
        self.tokenizer = VisualTokenizer(config.tokenizer)
        self.post_init()

    @classmethod
    def from_tokenizer(cls, tokenizer: VisualTokenizer) -> ViQTokenizerModel:
        """The model around a tokenizer, which it takes over."""
        config = ViQTokenizerConfig(
            **checkpoint.to_dict(tokenizer.config), fingerprint=tokenizer.fingerprint
        )
        with torch.device("meta"), checkpoint.WithoutInit():
            model = cls(config)
        model.tokenizer = tokenizer
        return model.eval()

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        name: str | os.PathLike[str],
        *,
        config: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        output_loading_info: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The tokenizer of a folder, a bundled name, or a hub id, verified as `viq.load` does it.

        Args:
            dtype: float32 unless one is given, also with "auto": codes in half precision differ.
            device_map: one device, as text, number or `{"": device}`; "auto": a GPU if there is
                one.
            config: read from the folder; what AutoModel gives is the same.

        Raises:
            CheckpointError: the folder is incomplete, damaged, or of another kind.
            ViqError: an argument that is not followed here.
        """
        kwargs.pop("adapter_kwargs", None)  # of a search for adapters that AutoModel has done
        check_keywords(kwargs, cls.from_pretrained, _OF_LOADING)
        tokenizer = VisualTokenizer.from_pretrained(
            name,
            device=_one_device(device_map),
            dtype=_dtype(dtype if dtype is not None else torch_dtype),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        model = cls.from_tokenizer(tokenizer)
        model.config.name_or_path = str(name)
        nothing = {
            "missing_keys": [],
            "unexpected_keys": [],
            "mismatched_keys": [],
            "error_msgs": [],
        }
        return (model, nothing) if output_loading_info else model

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Write the folder as `VisualTokenizer.save_pretrained` does, for this class, that one and
        `AutoImageProcessor`. Raises `ViqError` for an argument that is not followed here."""
        check_keywords(kwargs, ViQTokenizerModel.save_pretrained, _OF_SAVING)
        if is_main_process:
            self.tokenizer.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # pyright: ignore
        """Upload the folder, see `VisualTokenizer.push_to_hub`."""
        return self.tokenizer.push_to_hub(repo_id, **kwargs)

    def forward(
        self,
        pixel_values: Tensor,
        image_grid_hw: Tensor | None = None,
        image_sizes: Tensor | None = None,
        return_dict: bool | None = True,
        **kwargs: Any,
    ) -> Any:
        """Codes and features of images; without a gradient to the encoder, which `viq train`
        trains.

        Args:
            pixel_values: patches (T, D) with `image_grid_hw`, or images (n, 3, H, W); in [-1, 1].
            image_grid_hw: (n, 2) rows and columns of patches of each image.
            image_sizes: (n, 2) height and width in px of each image without its padding.

        Raises:
            ViqError: shapes do not agree.
        """
        batch = self._batch(pixel_values, image_grid_hw, image_sizes)
        tokens_TS = self.tokenizer.ids_alone(batch)
        features_TC = self.tokenizer.features(tokens_TS, batch.grids_hw)
        output = ViQTokenizerOutput(
            last_hidden_state=features_TC,  # pyright: ignore[reportArgumentType]
            pooler_output=self.tokenizer.pooled(features_TC, batch.grids_hw),  # pyright: ignore
            image_tokens=tokens_TS,
            image_grid_hw=torch.tensor(batch.grids_hw),
        )
        return output if return_dict is not False else output.to_tuple()

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` gives, but `pooler_output` are features (patches, C), one tensor an image,
        as models of transformers with images of several sizes give them."""
        output = self(*args, **kwargs)
        lengths = lengths_of(_pairs(output.image_grid_hw))
        output.pooler_output = output.last_hidden_state.split(lengths)
        return output

    @torch.no_grad()
    def get_image_tokens(
        self,
        pixel_values: Tensor,
        image_grid_hw: Tensor | None = None,
        image_sizes: Tensor | None = None,
    ) -> Tensor:
        """Codes (T, S), int64, of images, those that `VisualTokenizer.encode` gives.

        Arguments are those of `forward`.
        """
        return self.tokenizer.ids_alone(self._batch(pixel_values, image_grid_hw, image_sizes))

    @torch.no_grad()
    def decode_image_tokens(
        self,
        image_tokens: Tensor,
        height: int | None = None,
        width: int | None = None,
        image_grid_hw: Tensor | None = None,
        image_sizes: Tensor | None = None,
        pixel_values: Any = None,
    ) -> Any:
        """Pixels of codes, in [-1, 1] at 256 levels: those that `VisualTokenizer.decode` gives.

        Args:
            image_tokens: integers of any shape, patch after patch, the four of a patch adjacent.
            height, width: rows and columns of patches of every image; or
            image_grid_hw: (n, 2) those of each.
            image_sizes: (n, 2) px that are left of each image, at its upper left.
            pixel_values: not looked at: `**inputs` of an image processor may be passed on.

        Returns:
            (n, 3, 16 * height, 16 * width), or for `image_grid_hw` a list of (3, H, W).

        Raises:
            CodesError: codes outside of the codebook.
            ViqError: grids do not fit the number of codes.
        """
        tokens_TS = self._checked(image_tokens)
        if image_grid_hw is None and height and width:
            count = len(tokens_TS) // (height * width)
            grids: list[Grid] = [(height, width)] * count
        elif image_grid_hw is not None:
            grids = _pairs(image_grid_hw)
        else:
            raise ViqError("decode_image_tokens: give height and width, or image_grid_hw")
        _require_patches(grids, len(tokens_TS))
        sizes = _sizes(image_sizes, grids, self._patch)
        parts = tokens_TS.cpu().numpy().astype(np.uint16)
        starts = itertools.accumulate(lengths_of(grids), initial=0)
        codes = [
            Codes(parts[start : start + grid[0] * grid[1]].reshape(*grid, CODES_PER_PATCH), size)
            for start, grid, size in zip(starts, grids, sizes, strict=False)
        ]
        shown = self.tokenizer.decode(codes)
        images = [normalize(np.asarray(image)).to(self.tokenizer.device) for image in shown]
        return torch.stack(images) if image_grid_hw is None and image_sizes is None else images

    def _init_weights(self, module: nn.Module) -> None:
        """Modules draw their own initial weights."""

    @property
    def _patch(self) -> int:
        return self.tokenizer.config.encoder.patch_size

    def _checked(self, tokens: Tensor) -> Tensor:
        """Codes (T, S), all of the codebook."""
        if tokens.is_floating_point() or tokens.numel() % CODES_PER_PATCH:
            raise ViqError(
                f"image_tokens {tuple(tokens.shape)} of {tokens.dtype}: pass whole numbers, "
                f"{CODES_PER_PATCH} a patch"
            )
        size = self.tokenizer.codebook_size
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise CodesError(
                f"image_tokens from {int(tokens.min())} to {int(tokens.max())}: the codebook has "
                f"0 to {size - 1}"
            )
        return tokens.long().reshape(-1, CODES_PER_PATCH)

    def _batch(
        self, pixel_values: Tensor, image_grid_hw: Tensor | None, image_sizes: Tensor | None
    ) -> PatchBatch:
        """Patches as the tokenizer makes them of images."""
        given = exact_pixels(pixel_values.to(self.tokenizer.device))
        patch = self._patch
        if given.ndim == 4:
            images = list(given)
            sizes = _sizes(image_sizes, [(i.shape[1], i.shape[2]) for i in images], 1)
        elif given.ndim == 2 and image_grid_hw is not None:
            grids = _pairs(image_grid_hw)
            _require_patches(grids, len(given))
            if image_sizes is None:
                return PatchBatch(patches_TD=given, grids_hw=tuple(grids))
            sizes = _sizes(image_sizes, grids, patch)
            parts = given.split(lengths_of(grids))
            images = [
                unpatchify(part, (rows * patch, cols * patch), patch)
                for part, (rows, cols) in zip(parts, grids, strict=True)
            ]
        else:
            raise ViqError(
                f"pixel_values {tuple(given.shape)}: pass (n, 3, H, W), or patches (T, "
                f"{3 * patch**2}) with image_grid_hw, as the image processor gives them"
            )
        cut = [
            image[:, :height, :width] for image, (height, width) in zip(images, sizes, strict=True)
        ]
        return PatchBatch(
            patches_TD=torch.cat([inference.whole_patches(self.tokenizer, each) for each in cut]),
            grids_hw=tuple(grid_of((i.shape[1], i.shape[2]), patch) for i in cut),
        )


def _pairs(values: Tensor) -> list[tuple[int, int]]:
    return [(int(first), int(second)) for first, second in torch.as_tensor(values).tolist()]


def _sizes(image_sizes: Tensor | None, grids: list[Grid], patch: int) -> list[Size]:
    """Height and width of each image: as given, or whole patches. Raises `ViqError`."""
    whole = [(rows * patch, cols * patch) for rows, cols in grids]
    if image_sizes is None:
        return whole
    sizes = _pairs(image_sizes)
    fits = len(sizes) == len(whole) and all(
        0 < side <= most for size, most_of in zip(sizes, whole, strict=True)
        for side, most in zip(size, most_of, strict=True)
    )  # fmt: skip
    if not fits:
        raise ViqError(f"image_sizes {sizes} do not fit images of {whole} px")
    return sizes


def _require_patches(grids: list[Grid], count: int) -> None:
    if sum(lengths_of(grids)) != count:
        raise ViqError(
            f"grids {grids} describe {sum(lengths_of(grids))} patches, but there are {count}"
        )


def _dtype(dtype: Any) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ViqError(f"dtype {dtype!r:.60}: give float32, bfloat16 or float16")
    return found


def _one_device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map in ("auto", "balanced", "sequential"):
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        given: Any = "cpu" if device_map is None else device_map
        return torch.device(given)
    except (RuntimeError, TypeError):
        raise ViqError(
            f"device_map {device_map!r:.80}: a tokenizer lies on one device; give its name"
        ) from None
