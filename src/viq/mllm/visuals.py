"""What stands for an image: a picture, its codes, or a row of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viq.core.codes import Codes
from viq.core.errors import first_line
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, CodesError, Grid, grid_of
from viq.core.untrusted import fingerprint as checked_fingerprint
from viq.core.untrusted import parse_json
from viq.data.sources.access import ImageText, is_encoded
from viq.image.open import limit_pixels, open_image
from viq.image.patches import normalize, patchify

_CODES, _ROWS, _COLS = "codes", "rows", "cols"


def is_codes(item: Any) -> bool:
    """Whether this is codes, or a row of a store, rather than a picture."""
    return isinstance(item, Codes) or (
        hasattr(item, "keys") and {_CODES, _ROWS, _COLS} <= set(item.keys())
    )


def as_codes(item: Any, name: str) -> Codes:
    """Codes, also of a row of a store: a dictionary of `codes` (a flat list), `rows` and `cols`.

    Rows come so from `datasets`, DuckDB (`.fetch_arrow_table().to_pylist()`), Polars
    (`.iter_rows(named=True)`) and pandas. `height` and `width` in px, `tile`, and the column `viq`
    that says who made the codes are read where they are there.

    Args:
        name: of the sample, in errors.

    Raises:
        CodesError: numbers that are no codes, or other than rows and cols say.
    """
    if isinstance(item, Codes):
        return item
    try:
        ids = np.asarray(item[_CODES])
        grid = int(item[_ROWS]), int(item[_COLS])
        size = tuple(int(_field(item, side, 0) or 0) for side in ("height", "width"))
        tile = int(_field(item, "tile", 0) or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise CodesError(
            f"{name}: a row needs codes, rows and cols as numbers ({first_line(error)})"
        ) from None
    if ids.dtype.kind not in "iu":
        raise CodesError(
            f"{name}: codes are {ids.dtype}, not whole numbers; of a store with compressed codes "
            "take the samples of viq.CodeDataset"
        )
    if min(grid) < 1 or ids.size != grid[0] * grid[1] * CODES_PER_PATCH:
        raise CodesError(
            f"{name}: {grid[0]} rows and {grid[1]} cols take "
            f"{max(0, grid[0] * grid[1]) * CODES_PER_PATCH} codes, but there are {ids.size}"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= 2**16:
        raise CodesError(f"{name}: codes lie between 0 and 65535; these are damaged")
    if grid_of((max(1, size[0]), max(1, size[1]))) != grid:
        size = grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE
    ids = ids.reshape(*grid, CODES_PER_PATCH).astype(np.uint16)
    return Codes(ids, (size[0], size[1]), tile, _maker(item, name))


def look(item: Any, name: str, *, max_pixels: int, pad_mode: str) -> tuple[Tensor, Grid]:
    """Patches (T, 768) of a picture, and its grid.

    Args:
        item: a path, bytes, PIL image, uint8 array, or an image in base64.
        max_pixels: a larger area is shrunk to it.
        pad_mode: of `patchify`.
    """
    if isinstance(item, str) and is_encoded(item):
        item = ImageText(item).read()
    image = limit_pixels(open_image(item, name=name), max_pixels)
    patches_TD = patchify(normalize(np.asarray(image)), pad_mode=pad_mode)
    return patches_TD, grid_of((image.height, image.width))


def checked_ids(codes: Codes, name: str, *, fingerprint: str, codebook_size: int) -> Tensor:
    """Codebook indices (T, 4) of codes that a model can read.

    Args:
        fingerprint: of the tokenizer that made the codes which the model reads; "": of any.

    Raises:
        CodesError: of another tokenizer, or outside of its codebook.
    """
    if codes.fingerprint and fingerprint and codes.fingerprint != fingerprint:
        raise CodesError(
            f"{name}: codes of the tokenizer {codes.fingerprint}, but the model reads those of "
            f"{fingerprint}: encode the image with that one"
        )
    ids = torch.from_numpy(codes.ids.astype(np.int64)).flatten(0, 1)
    if ids.numel() and int(ids.max()) >= codebook_size:
        raise CodesError(
            f"{name}: code {int(ids.max())} is outside the codebook of {codebook_size}: "
            "the codes are damaged or made by another tokenizer"
        )
    return ids


def _field(item: Any, name: str, otherwise: Any) -> Any:
    return item[name] if name in item.keys() else otherwise


def _maker(item: Any, name: str) -> str:
    """The fingerprint that a row brings along, "" if none."""
    made = _field(item, "viq", None)
    values = parse_json(made[:4096], f"{name}, column viq") if isinstance(made, str) else made
    given = values.get("fingerprint", "") if isinstance(values, Mapping) else ""
    return checked_fingerprint(given, f"{name}, fingerprint")
