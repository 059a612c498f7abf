"""Arrays of numpy and tensors of PyTorch as 8-bit pictures.

PyTorch keeps channels first and values in [0, 1], numpy and Pillow keep them last and in 0..255;
transformers takes both and asks `do_rescale` which values these are. Where shape or values leave
open which it is, the picture is refused: a guess would give codes of another picture.

H, W = height and width in px.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from viq.core.types import ViqError

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_SAME_LEVEL = 0.5 / 255  # how far a value in [0, 1] may lie outside and still be rounded into it


def is_tensor(source: object) -> bool:
    """Whether this is a tensor of PyTorch, without importing it for those who have none."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def to_bytes(source: Any, *, do_rescale: bool | None = None) -> np.ndarray:
    """A picture as uint8 (H, W) or (H, W, channels), with 1, 3 or 4 channels.

    Args:
        source: numpy array or tensor on any device: uint8 in 0..255, or float, rounded to the
            nearest of 256 levels. (H, W); channels last; or channels first, where the last side is
            no number of channels. A tensor of which both sides could be channels is refused; of
            such an array channels are last, as in Pillow.
        do_rescale: as in transformers, whether values are in 0..255 and a network wants them
            divided; False: floats in [0, 1]. None: bytes are in 0..255, floats in [0, 1].

    Raises:
        ViqError: another dtype or shape, values out of range, or such as leave open which range it
            is. It does not name the source.
    """
    tensor = is_tensor(source)
    if tensor:
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    return _as_bytes(_channels_last(source, both_refused=tensor), do_rescale)


def _channels_last(array: np.ndarray, *, both_refused: bool) -> np.ndarray:
    shape = array.shape
    if array.size == 0:
        raise ViqError(f"has no pixels (shape {shape}); pass at least 1x1")
    first, last = (array.ndim == 3 and side in _CHANNELS for side in (shape[0], shape[-1]))
    if first and last and both_refused:
        raise ViqError(f"shape {shape} could have its channels first or last; pass a PIL image")
    if array.ndim != 2 and not first and not last:
        raise ViqError(
            f"shape is {shape}; pass (H, W), or 1, 3 or 4 channels: (3, H, W) or (H, W, 3)"
        )
    return np.moveaxis(array, 0, -1) if first and not last else array


def _as_bytes(array: np.ndarray, do_rescale: bool | None) -> np.ndarray:
    if array.dtype == np.uint8:
        if do_rescale is False:
            raise ViqError(
                "do_rescale=False is for floats in [0, 1], but these are bytes in 0..255"
            )
        return array
    if array.dtype.kind != "f":
        raise ViqError(f"dtype is {array.dtype}, neither uint8 in 0..255 nor float in [0, 1]")
    least, most = float(array.min()), float(array.max())
    top = 255 if do_rescale else 1
    slack = _SAME_LEVEL * top
    if not (-slack <= least and most <= top + slack):  # nor NaN
        within = "0..255" if do_rescale else "[0, 1]"
        raise ViqError(
            f"values from {least:.4g} to {most:.4g} are not in {within}; undo what normalised "
            "them, or pass uint8"
        )
    if do_rescale and 0 < most <= 1:
        raise ViqError("values in [0, 1] look rescaled already; pass do_rescale=False, or uint8")
    levels = array.astype(np.float64) * (255 / top)
    return levels.round().clip(0, 255).astype(np.uint8)
