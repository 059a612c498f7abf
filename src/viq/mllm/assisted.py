"""Generation in which another source proposes words and the model only confirms them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from viq.core.types import ViqError


def asks_for_candidates(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether options of `generate` ask for assisted generation or a look-up in the prompt."""
    config = options.get("generation_config") or model.generation_config
    return options.get("assistant_model") is not None or any(
        options.get(name, getattr(config, name, None)) is not None
        for name in ("prompt_lookup_num_tokens", "assistant_early_exit")
    )


def check_candidates(model: Any, assistant: Any, images: bool) -> None:
    """See that the assistant can read what the model reads.

    Raises:
        ViqError: it reads no images, or other words.
    """
    if assistant is None:
        return
    if not isinstance(assistant, type(model)):
        if images or hasattr(assistant, "get_image_features"):
            raise ViqError(
                f"assistant_model: {type(assistant).__name__} cannot read the codes of this "
                "prompt; give a ViQForConditionalGeneration with the same words, or leave it out"
            )
    elif assistant.config.image_token_id != model.config.image_token_id:
        raise ViqError(
            "assistant_model: has another image_token_id, so its words are not those of the model; "
            "give one that was trained with the same text tokenizer, or leave it out"
        )
