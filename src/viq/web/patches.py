"""One patch of a picture: its codes, what they say, what they decode to alone; and maps of all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from viq.core.codes import Codes
from viq.core.types import PATCH_SIZE
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.tokenizer.transform_code import TransformCode
from viq.models.tokenizer.transform_quantizer import TransformQuantizer
from viq.report.gallery_common import encoded
from viq.web.pictures import Seen

# Colours of few to many bits, dark to light, which differ in lightness too.
_SCALE = np.array([(59, 28, 97), (60, 82, 139), (44, 134, 136), (104, 185, 98), (246, 225, 85)])


def describe(tokenizer: VisualTokenizer, seen: Seen, row: int, col: int) -> dict[str, Any]:
    """Ids of a patch, what each says, and its bits; JSON-able."""
    ids = seen.codes.ids[row, col]
    if isinstance(tokenizer.quantizer, TransformQuantizer):
        says = _digits(tokenizer.quantizer.code, ids)
    else:
        says = [_levels(int(each), tokenizer.levels) for each in ids]
    kept = seen.codes.kept[row, col]
    return {
        "row": row,
        "col": col,
        "codes": [
            {"id": int(each), "says": text if there else "left out"}
            for each, text, there in zip(ids, says, kept, strict=True)
        ],
        "bits": None if seen.bits is None else round(float(seen.bits[row, col]), 1),
    }


def alone(tokenizer: VisualTokenizer, seen: Seen, row: int, col: int) -> bytes:
    """A PNG file of 16x16 px: what the codes of a patch decode to without any other patch."""
    ids = seen.codes.ids[row : row + 1, col : col + 1].copy()
    one = Codes(ids, (PATCH_SIZE, PATCH_SIZE), 0, seen.codes.fingerprint, seen.codes.dtype)
    return encoded(tokenizer.decode(one)[0], "PNG")


def bits_map(seen: Seen) -> bytes:
    """A PNG file as large as the picture, each patch in the colour of its bits.

    Raises:
        KeyError: no bits are known.
    """
    if seen.bits is None:
        raise KeyError("bits")
    low, high = float(seen.bits.min()), float(seen.bits.max())
    at = (seen.bits - low) / max(high - low, 1e-9) * (len(_SCALE) - 1)
    channels = [np.interp(at, np.arange(len(_SCALE)), colour) for colour in _SCALE.T]
    colours = np.stack(channels, -1).round().astype(np.uint8)
    rows, cols = seen.codes.grid
    whole = Image.fromarray(colours).resize(
        (cols * PATCH_SIZE, rows * PATCH_SIZE), Image.Resampling.NEAREST
    )
    height, width = seen.size
    return encoded(whole.crop((0, 0, width, height)), "PNG")


def _levels(each: int, levels: tuple[int, ...]) -> str:
    digits = []
    for count in levels:  # the first dimension is the least significant
        each, digit = divmod(each, count)
        digits.append(str(digit))
    return f"levels {' '.join(digits)}"


def _digits(code: TransformCode, ids: np.ndarray) -> list[str]:
    """What the four codes of a patch say in a transform code."""
    ids_TS = torch.from_numpy(ids.astype(np.int64))[None].to(code.radices.device)
    indices = code.unpack(ids_TS)
    kind = int(indices.classes_T[0])
    levels = indices.levels_TQ[0].tolist()
    radices_SQ = code.radices[kind].long().tolist()
    # The digit that each code adds, from the finest back.
    digits: list[list[int]] = []
    meaning = int(code.meaning(ids_TS)[0])
    slots = len(radices_SQ) - (meaning >= 0)
    for radices in reversed(radices_SQ[:slots]):
        digits.append([level % radix for level, radix in zip(levels, radices, strict=True)
                       if radix > 1])  # fmt: skip
        levels = [level // radix for level, radix in zip(levels, radices, strict=True)]
    texts = [f"digits {' '.join(map(str, each)) or 'none'}" for each in reversed(digits)]
    mean = f"{int(indices.coarse_T[0])}.{int(indices.fine_T[0])}"
    texts[0] = f"class {kind}, mean {mean}, {texts[0]}"
    if meaning >= 0:
        texts.append(f"meaning {meaning}: what these 2 × 2 patches show")
    return texts
