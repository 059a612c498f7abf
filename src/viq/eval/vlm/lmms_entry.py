"""What lmms-eval reads to find the model `viq`: an entry point of the group `lmms_eval.models`.

lmms-eval loads it whenever it starts, for every model, and an error here would hide the models of
other packages, too. So nothing is imported but what lmms-eval has imported already: no torch, no
transformers.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The `ModelManifest` of the model `viq`, in chat form."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="viq", chat_class_path="viq.eval.vlm.lmms.ViQ")
