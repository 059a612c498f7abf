"""Sizes and grids of images, their bounds, and the numbers that stand for tokens."""

from __future__ import annotations

from viq.core.errors import CodesError, Stopped, ViqError

__all__ = [
    "CODES_PER_PATCH",
    "IGNORE",
    "IMAGE_TOKEN",
    "PATCH_SIZE",
    "CodesError",
    "Grid",
    "Size",
    "Stopped",
    "ViqError",
    "grid_of",
    "language_tokens",
]

PATCH_SIZE = 16  # px; the only patch size of published models
CODES_PER_PATCH = 4  # the four slots of one patch (docs/model.md, quantizer step 3)

IMAGE_TOKEN = -200  # stands in text ids where a visual vector goes, as in the official code
# Of one image: what the opener takes by default, and the patches that such an image can have (a
# few more than pixels / 256, as its borders are filled up). Files of codes are refused that claim
# more, before memory is taken for them.
MAX_PIXELS = 200_000_000
MAX_PATCHES = 1 << 20

IGNORE = -100  # label of a token that is not scored; PyTorch's default ignore_index

Grid = tuple[int, int]  # (rows, columns) of patches
Size = tuple[int, int]  # (height, width) in px

FLOAT32 = "float32"
DTYPES = (FLOAT32, "bfloat16", "float16", "float64")  # a dtype's place here is its byte


def grid_of(size: Size, patch_size: int = PATCH_SIZE) -> Grid:
    """Patches (rows, columns) that cover an image of `size` (height, width) px."""
    height, width = size
    return -(-height // patch_size), -(-width // patch_size)


def tile_grid(grid: Grid, tile: int) -> list[tuple[slice, slice]]:
    """Split a grid into near-equal tiles of at most `tile` patches a side, in raster order.

    Near-equal rather than full tiles and a rest: no tile is a sliver, which a model has seldom
    seen. `tile` 0 means one tile. Each item is (rows, columns) as slices of the grid.
    """

    def spans(length: int) -> list[slice]:
        count = -(-length // tile) if tile else 1
        edges = [length * i // count for i in range(count + 1)]
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    return [(rows, cols) for rows in spans(grid[0]) for cols in spans(grid[1])]


def bounded_grid(size: Size, max_pixels: int = MAX_PIXELS) -> Grid:
    """`grid_of` a size that a file claims.

    Raises:
        CodesError: no size of an image, or more pixels than there may be.
    """
    rows, cols = grid_of(size)
    most = MAX_PATCHES * max(max_pixels, MAX_PIXELS) // MAX_PIXELS
    if min(size) < 1 or size[0] * size[1] > max_pixels or rows * cols > most:
        raise CodesError(
            f"codes of {size[0]}x{size[1]} px: images have 1 to {max_pixels:,} pixels, unless they "
            "were opened with a larger decode_limit; encode it smaller, with max_pixels"
        )
    return rows, cols


def language_tokens(grid: Grid, merge_size: int = 2) -> int:
    """Tokens that an image takes in a language model: its windows of merge_size x merge_size
    patches (those at the border may be smaller), a mark after each row of them, one at the begin,
    one at the end.
    """
    rows, cols = -(-grid[0] // merge_size), -(-grid[1] // merge_size)
    return rows * cols + rows + 2
