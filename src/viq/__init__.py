"""ViQ: images of any size as discrete codes that mean something, and back.

```python
import viq

tok = viq.load("viq-tiny")
codes = tok.encode(["photo.jpg"])
images = tok.decode(codes)
```

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viq.data.codes import CodeDataset
    from viq.loading import load
    from viq.mllm import ViQConfig, ViQForConditionalGeneration, ViQProcessor
    from viq.models.tokenizer import TokenizerConfig, VisualTokenizer
    from viq.types import Codes, CodesError, ViqError

__all__ = [
    "CodeDataset",
    "Codes",
    "CodesError",
    "TokenizerConfig",
    "ViQConfig",
    "ViQForConditionalGeneration",
    "ViQProcessor",
    "ViqError",
    "VisualTokenizer",
    "load",
]
__version__ = "0.1.0"

_LAZY = {
    "CodeDataset": "viq.data.codes",
    "Codes": "viq.types",
    "CodesError": "viq.types",
    "ViqError": "viq.types",
    "load": "viq.loading",
    "TokenizerConfig": "viq.models.tokenizer",
    "VisualTokenizer": "viq.models.tokenizer",
    "ViQConfig": "viq.mllm",
    "ViQForConditionalGeneration": "viq.mllm",
    "ViQProcessor": "viq.mllm",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'viq' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
