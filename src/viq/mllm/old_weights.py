"""Weights under the names of release 0.1, when the language model lay in the model as a whole.

language.model.layers.0 ..   now model.language_model.layers.0 ..
language.lm_head.weight      now lm_head.weight
embedder, projector ..       now model.embedder, model.projector ..
"""

from __future__ import annotations

import re
from typing import Any

# Patterns as transformers' `key_mapping` takes them, the first that fits goes. What the language
# model called its inner model ("model", "transformer", ..) is left out.
OLD_NAMES = {
    r"^language\.(?:base_model\.model\.)?(?:lm_head|embed_out|output_projection)\.": "lm_head.",
    r"^language\.base_model\.model\.\w+\.": "model.language_model.base_model.model.",  # adapters
    r"^language\.\w+\.": "model.language_model.",
    r"^embedder\.": "model.embedder.",
    r"^projector\.": "model.projector.",
}


def current_name(name: str) -> str:
    """The name of today of a weight of `ViQForConditionalGeneration`."""
    for pattern, new in OLD_NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, new, name, count=1)
    return name


def forget_old_names(model: Any) -> None:
    """Let a model be saved under today's names: transformers would go back to those it loaded."""
    conversions = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [
        one for one in conversions if not set(getattr(one, "source_patterns", ())) & set(OLD_NAMES)
    ]
