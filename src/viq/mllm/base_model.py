"""The multimodal language model without its head: text and codes to hidden states.

Letters as in `viq.mllm.modeling`; C = width of the features of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from viq.core.files import bundled
from viq.core.types import IMAGE_TOKEN, CodesError, Grid, ViqError, language_tokens
from viq.image.patches import PatchBatch, exact_pixels, lengths_of
from viq.mllm.cache_name import CACHE
from viq.mllm.config import ViQConfig
from viq.mllm.old_weights import OLD_NAMES, forget_old_names
from viq.models.language.projector import MergeProjector, ProjectorConfig, Whitener
from viq.models.language.vision_language import visual_inputs
from viq.models.layers.unregistered import Unregistered
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights.pretrained import causal_of, load_pretrained
from viq.weights.verify import write_digest


class ViQPreTrainedModel(PreTrainedModel):
    """What both models share: how they are loaded, saved and begun."""

    config: ViQConfig
    config_class = ViQConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _checkpoint_conversion_mapping = OLD_NAMES  # peft reads it, for adapters of release 0.1

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, of safetensors alone, and strict: no weight may be missing.

        Args:
            name: a folder, the name of a bundled model, or a hub id.

        Raises:
            CheckpointError: the folder is incomplete, damaged, or of another kind.
        """
        informed = kwargs.pop("output_loading_info", False)
        kept: dict[str, Any] = {}

        def load(place: str, **options: Any) -> tuple[Any, dict[str, Any]]:
            own: Any = super(ViQPreTrainedModel, cls)
            options["key_mapping"] = OLD_NAMES | (options.get("key_mapping") or {})
            model, report = own.from_pretrained(place, *args, **options)
            kept.update(report)
            return model, report

        model = load_pretrained(load, cls, bundled(name) or name, cls.config_class, **kwargs)
        forget_old_names(model)
        return (model, kept) if informed else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, and the digest of the weights beside them."""
        done = super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_digest(Path(save_directory))
        return done

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MergeProjector):
            for mark in (module.newline, module.begin, module.end):
                nn.init.normal_(mark, std=0.02)
        elif isinstance(module, Whitener):
            nn.init.zeros_(module.center_C)
            nn.init.eye_(module.map_CC)
        elif isinstance(module, CodeEmbedder):
            nn.init.ones_(module.post_scale)
            nn.init.zeros_(module.post_shift)


class ViQModel(ViQPreTrainedModel):
    """Text and images in, hidden states out: the language model without its head.

    Attributes:
        language_model: of transformers, of any kind that has a causal form.
        embedder: codes to features.
        projector: features to input vectors of the language model.
    """

    def __init__(self, config: ViQConfig, language_model: Any = None) -> None:
        """
        Args:
            language_model: the one to take over; None: a new one of the config.
        """
        super().__init__(config)
        embedder = config.embedder
        self.embedder = CodeEmbedder(embedder)
        self.projector = MergeProjector(
            ProjectorConfig(
                features=embedder.width,
                width=config.text_config.hidden_size,
                merge_size=config.merge_size,
                whiten=True,
                positions=config.image_positions,
            )
        )
        if language_model is None:
            language_model = causal_of(config.text_config).base_model
        self.language_model = language_model
        self._tokenizer = Unregistered[VisualTokenizer]()
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        codes: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`last_hidden_state` (B, L, E) and what else the language model gives.

        Sequences are padded, with an `attention_mask`; or samples are packed into one, with
        `position_ids` that restart at each, without mask and without cache.

        Args:
            input_ids: (B, L), `image_token_id` once for every token of an image.
            codes: (T, S) codebook indices; or instead
            pixel_values: (T, 768) patches in [-1, 1], which the tokenizer turns into codes.
            image_grid_hw: (n, 2) rows and columns of patches of each image.
            past_key_values, cache: the same, by the name before and since transformers 5.24.

        Raises:
            ViqError: images, grids and places in `input_ids` do not agree.
        """
        cache = past_key_values if cache is None else cache
        if inputs_embeds is None:
            if input_ids is None:
                raise ViqError("forward needs input_ids or inputs_embeds")
            inputs_embeds = self.embed(input_ids, codes, pixel_values, image_grid_hw)
        packed = position_ids is not None and attention_mask is None and cache is None
        if use_cache is None and packed:
            use_cache = False  # with one, packed samples would see each other
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    # Images

    def embed(
        self,
        input_ids: Tensor,
        codes: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        *,
        more_places: bool = False,
    ) -> Tensor:
        """Input vectors (B, L, E): embeddings of words, and images in the places they have.

        Args:
            more_places: places beyond those of the images are words: a model wrote or guessed them.
        """
        features_TC, grids = self._features(codes, pixel_values, image_grid_hw)
        places_L = (input_ids == self.config.image_token_id).flatten()
        if more_places:
            kept = sum(language_tokens(grid, self.config.merge_size) for grid in grids)
            places_L &= places_L.cumsum(0) <= kept
        ids_L = input_ids.flatten().masked_fill(places_L, IMAGE_TOKEN)
        vectors_LE = visual_inputs(self.language_model, self.projector, ids_L, features_TC, grids)
        return vectors_LE.unflatten(0, input_ids.shape)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        codes: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Features of images, as other models of transformers give them.

        Args:
            pixel_values: (T, 768), or instead
            codes: (T, S).
            image_grid_hw: (n, 2).

        Returns:
            `last_hidden_state` (T, C), what the embedder makes of the codes, and `pooler_output`,
            a tuple of what the language model reads of each image, (tokens, E).
        """
        features_TC, grids = self._features(codes, pixel_values, image_grid_hw)
        if features_TC is None or not grids:
            raise ViqError("get_image_features needs codes or pixel_values, and image_grid_hw")
        tokens = tuple(self.projector(features_TC, grids))
        return BaseModelOutputWithPooling(
            last_hidden_state=features_TC,  # pyright: ignore[reportArgumentType]
            pooler_output=tokens,  # pyright: ignore[reportArgumentType]
        )

    def _features(
        self, codes_TS: Tensor | None, pixel_values_TD: Tensor | None, image_grid_hw: Tensor | None
    ) -> tuple[Tensor | None, list[Grid]]:
        grids: list[Grid] = []
        if image_grid_hw is not None:
            grids = [(rows, cols) for rows, cols in image_grid_hw.tolist()]
        if codes_TS is None and pixel_values_TD is not None:
            codes_TS = self.codes_of(pixel_values_TD, grids)
        if codes_TS is None:
            return None, grids
        if sum(lengths_of(grids)) != len(codes_TS):
            raise ViqError(
                f"image_grid_hw describes {sum(lengths_of(grids))} patches, but there are "
                f"{len(codes_TS)}: give both as the processor made them"
            )
        return self.embedder(codes_TS, grids), grids

    @torch.no_grad()
    def codes_of(self, pixel_values_TD: Tensor, grids_hw: Sequence[Grid]) -> Tensor:
        """Codebook indices (T, S) of patches of pixels: those that `VisualTokenizer.encode` gives.

        The first call loads the tokenizer named in the config, in fp32. Pixels may have been cast
        to the dtype of the model, as `inputs.to(device, torch.bfloat16)` does.
        """
        tokenizer = self._tokenizer.module
        if tokenizer is None:
            tokenizer = VisualTokenizer.from_pretrained(self.config.embedder.tokenizer)
            self.set_visual_tokenizer(tokenizer)
        return tokenizer.to(pixel_values_TD.device).ids_alone(
            PatchBatch(patches_TD=exact_pixels(pixel_values_TD), grids_hw=tuple(grids_hw))
        )

    def set_visual_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Use this tokenizer for images that are not codes yet.

        Raises:
            CodesError: its codes are not those that this model reads.
        """
        self.require(tokenizer.fingerprint)
        self._tokenizer.module = tokenizer

    def require(self, fingerprint: str) -> None:
        """Refuse codes of another tokenizer; codes of unknown origin ("") pass."""
        wanted = self.config.embedder.fingerprint
        if fingerprint and wanted and fingerprint != wanted:
            raise CodesError(
                f"these codes were made by the tokenizer {fingerprint}, but the model reads codes "
                f"of {wanted} ({self.config.embedder.tokenizer}): encode the images with that one"
            )
