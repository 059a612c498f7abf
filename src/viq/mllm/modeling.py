"""A multimodal language model on codes, in the manner of Hugging Face.

A causal language model (Qwen2.5 of any size), the embedder of a tokenizer's codes and a projector
between them. No vision encoder: images come as codes. Where they come as pixels, the tokenizer is
loaded beside the model and turns them into codes first, so both give the same result.

    model = ViQForConditionalGeneration.from_pretrained("runs/mllm/2-answers/model")
    processor = ViQProcessor.from_pretrained("runs/mllm/2-answers/model")
    inputs = processor("How many cups are there?", codes=tokenizer.encode("photo.jpg"))
    print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0]))

Names as elsewhere in transformers: B = sequences, L = their tokens, E = width of the language
model; T = patches of all images of the batch, one image after another, S = 4 slots, D = values
per patch, n = images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from viq.core.types import IMAGE_TOKEN, CodesError, Grid, ViqError
from viq.image.patches import PatchBatch, exact_pixels, lengths_of
from viq.models.language.projector import MergeProjector, ProjectorConfig, Whitener
from viq.models.language.vision_language import VisionLanguageMixin
from viq.models.layers.unregistered import Unregistered
from viq.models.tokenizer.embedder import CodeEmbedder, EmbedderConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.weights import checkpoint
from viq.weights.pretrained import causal_of, load_pretrained
from viq.weights.verify import write_digest


class ViQConfig(PreTrainedConfig):
    """All that shapes a `ViQForConditionalGeneration`.

    Args:
        text_config: of the language model; a dictionary needs its `model_type`.
        embedder_config: fields of `EmbedderConfig`.
        merge_size: side in patches of the window that becomes one token: 1, 2 or 4.
        image_token_id: stands in `input_ids` once for every token of an image.
    """

    model_type = "viq"
    # A class property in transformers, set so by its own configs.
    sub_configs = {  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
        "text_config": AutoConfig
    }

    text_config: Any = None
    embedder_config: Any = None
    merge_size: int = 2
    image_token_id: int = IMAGE_TOKEN
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            values = {"model_type": "qwen2"} | (self.text_config or {})
            self.text_config = AutoConfig.for_model(**values)  # its code is transformers' own
        if self.embedder_config is None:  # transformers builds a config without arguments
            self.embedder_config = {"width": 192, "levels": [8, 8, 8, 5, 5, 5]}
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    @property
    def embedder(self) -> EmbedderConfig:
        """`embedder_config`, checked."""
        return checkpoint.from_dict(EmbedderConfig, self.embedder_config, "embedder_config")


class ViQForConditionalGeneration(VisionLanguageMixin, PreTrainedModel, GenerationMixin):
    """Text and images in, text out.

    Build it of its parts with `from_parts`, or load one with `from_pretrained`.
    """

    config: ViQConfig
    config_class = ViQConfig
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: ViQConfig) -> None:
        super().__init__(config)
        embedder = config.embedder
        self.embedder = CodeEmbedder(embedder)
        self.projector = MergeProjector(
            ProjectorConfig(
                features=embedder.width,
                width=config.text_config.hidden_size,
                merge_size=config.merge_size,
                whiten=True,
            )
        )
        self.language = causal_of(config.text_config)
        self._tokenizer = Unregistered[VisualTokenizer]()
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, of safetensors alone, and strict: no weight may be missing.

        Raises:
            CheckpointError: the folder is incomplete, damaged, or of another kind.
        """
        informed = kwargs.pop("output_loading_info", False)
        kept: dict[str, Any] = {}

        def load(place: str, **options: Any) -> tuple[Any, dict[str, Any]]:
            own: Any = super(ViQForConditionalGeneration, cls)
            model, report = own.from_pretrained(place, *args, **options)
            kept.update(report)
            return model, report

        model = load_pretrained(load, cls, name, cls.config_class, **kwargs)
        return (model, kept) if informed else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, and the digest of the weights beside them."""
        done = super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_digest(Path(save_directory))
        return done

    @classmethod
    def from_parts(
        cls, language: Any, embedder: CodeEmbedder, *, image_token_id: int, merge_size: int = 2
    ) -> ViQForConditionalGeneration:
        """A model of a language model and an embedder, which it takes over, and a new projector.

        Its `projector.whitener` wants features of some images (`fit`), to be trained on.
        """
        config = ViQConfig(
            text_config=language.config,
            embedder_config=checkpoint.to_dict(embedder.config),
            merge_size=merge_size,
            image_token_id=image_token_id,
        )
        with torch.device("meta"), checkpoint.WithoutInit():
            model = cls(config)
        model.projector = MergeProjector(model.projector.config)
        model.language, model.embedder = language, embedder
        model.generation_config = language.generation_config
        return model.train(language.training)

    # What transformers calls

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits (B, L, vocabulary), and the mean loss of the labelled tokens if there are labels.

        Sequences are padded, with an `attention_mask`; or samples are packed into one, with
        `position_ids` that restart at each, without mask and without cache.

        Args:
            input_ids: (B, L), `image_token_id` once for every token of an image.
            codes: (T, S) codebook indices; or instead
            pixel_values: (T, 768) patches in [-1, 1], which the tokenizer turns into codes.
            image_grid_hw: (n, 2) rows and columns of patches of each image.
            labels: (B, L), -100 where nothing is scored.

        Raises:
            ViqError: images, grids and places in `input_ids` do not agree.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ViqError("forward needs input_ids or inputs_embeds")
            inputs_embeds = self.embed(input_ids, codes, pixel_values, image_grid_hw)
        packed = position_ids is not None and attention_mask is None and past_key_values is None
        if use_cache is None and (packed or labels is not None):
            use_cache = False  # with one, packed samples would see each other
        return self.language(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            **kwargs,
        )

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]  # all but ids are named
        self,
        inputs: Tensor | None = None,
        *,
        codes: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answers, as in transformers; a batch is padded on the left.

        Images become input vectors once, before the first step, so beams and several answers a
        question need nothing special.
        """
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if ids is not None and kwargs.get("inputs_embeds") is None:
            kwargs["inputs_embeds"] = self.embed(ids, codes, pixel_values, image_grid_hw)
        return super().generate(ids, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def get_input_embeddings(self) -> nn.Module:
        return self.language.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return self.language.get_decoder()

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

    # Images

    def embed(
        self,
        input_ids_BL: Tensor,
        codes_TS: Tensor | None = None,
        pixel_values_TD: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
    ) -> Tensor:
        """Input vectors (B, L, E): embeddings of words, and images in the places they have."""
        features_TC, grids = None, []
        if image_grid_hw is not None:
            grids = [(rows, cols) for rows, cols in image_grid_hw.tolist()]
        if codes_TS is None and pixel_values_TD is not None:
            codes_TS = self.codes_of(pixel_values_TD, grids)
        if codes_TS is not None:
            if sum(lengths_of(grids)) != len(codes_TS):
                raise ViqError(
                    f"image_grid_hw describes {sum(lengths_of(grids))} patches, but there are "
                    f"{len(codes_TS)}: give both as the processor made them"
                )
            features_TC = self.embedder(codes_TS, grids)
        places_BL = input_ids_BL == self.config.image_token_id
        ids_BL = input_ids_BL.masked_fill(places_BL, IMAGE_TOKEN)
        return self.inputs(ids_BL.flatten(), features_TC, grids).unflatten(0, ids_BL.shape)

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
