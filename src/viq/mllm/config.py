"""The configuration of a multimodal language model on codes, as transformers keeps it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from viq.core.types import IMAGE_TOKEN
from viq.models.tokenizer.embedder import EmbedderConfig
from viq.weights import checkpoint


class ViQConfig(PreTrainedConfig):
    """All that shapes a `ViQForConditionalGeneration`.

    Args:
        text_config: of the language model; a dictionary needs its `model_type`.
        embedder_config: fields of `EmbedderConfig`.
        merge_size: side in patches of the window that becomes one token: 1, 2 or 4.
        image_positions: tokens of an image are told their row and column, which a language model
            that begins from nothing is slow to count; a pretrained one does without.
        image_token_id: stands in `input_ids` once for every token of an image.
    """

    model_type = "viq"
    # A class property in transformers, set so by its own configs.
    sub_configs = {  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
        "text_config": AutoConfig
    }

    # No code lies beside our models. TRL reads the name of every config.
    auto_map = {}

    text_config: Any = None
    embedder_config: Any = None
    merge_size: int = 2
    image_positions: bool = False
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
