"""ViQ: images of any size as discrete codes that mean something, and back.

```python
import viq

tok = viq.load()
codes = tok.encode(["photo.jpg"])
images = tok.decode(codes)
```

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from viq.core.moved import forward_old_names

if TYPE_CHECKING:
    from viq.core.codes import Codes
    from viq.core.errors import CodesError, ViqError
    from viq.mllm import ViQConfig, ViQForConditionalGeneration, ViQProcessor
    from viq.models.tokenizer import TokenizerConfig, VisualTokenizer
    from viq.models.tokenizer.loading import load
    from viq.store.dataset import CodeDataset, CodeSample

__all__ = [
    "CodeDataset",
    "CodeSample",
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
    "CodeDataset": "viq.store.dataset",
    "CodeSample": "viq.store.dataset",
    "Codes": "viq.core.codes",
    "CodesError": "viq.core.errors",
    "ViqError": "viq.core.errors",
    "load": "viq.models.tokenizer.loading",
    "TokenizerConfig": "viq.models.tokenizer",
    "VisualTokenizer": "viq.models.tokenizer",
    "ViQConfig": "viq.mllm",
    "ViQForConditionalGeneration": "viq.mllm",
    "ViQProcessor": "viq.mllm",
}

forward_old_names()


if not TYPE_CHECKING:  # for type checkers there are the names above and no others

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module 'viq' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
