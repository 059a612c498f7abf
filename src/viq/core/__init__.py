"""Words that everybody shares: codes, grids, errors, files that are whole or absent.

numpy at most, and that only where codes are: `viq.core.errors` and its neighbours load nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viq.core.codes import Codes
    from viq.core.errors import CodesError, Stopped, ViqError
    from viq.core.types import (
        CODES_PER_PATCH,
        DTYPES,
        FLOAT32,
        IGNORE,
        IMAGE_TOKEN,
        MAX_PATCHES,
        MAX_PIXELS,
        PATCH_SIZE,
        Grid,
        Size,
        bounded_grid,
        grid_of,
        language_tokens,
    )

__all__ = [
    "CODES_PER_PATCH",
    "DTYPES",
    "FLOAT32",
    "IGNORE",
    "IMAGE_TOKEN",
    "MAX_PATCHES",
    "MAX_PIXELS",
    "PATCH_SIZE",
    "Codes",
    "CodesError",
    "Grid",
    "Size",
    "Stopped",
    "ViqError",
    "bounded_grid",
    "grid_of",
    "language_tokens",
]
_ERRORS = ("CodesError", "Stopped", "ViqError")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'viq.core' has no attribute {name!r}")
    home = "errors" if name in _ERRORS else "codes" if name == "Codes" else "types"
    return getattr(import_module(f"viq.core.{home}"), name)
