"""A tokenizer on images of any size: tiles in, bands of rows out.

T = patches of all images, S = 4 slots, D = values per patch, Z = latent channels.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.codec.entropy_model import EntropyModel
from viq.core.codes import Codes
from viq.core.counts import ids_counted
from viq.core.types import CODES_PER_PATCH, CodesError, Grid, Size, ViqError, grid_of, tile_grid
from viq.image.patches import (
    PatchBatch,
    denormalize,
    lengths_of,
    normalize,
    patchify,
    unpatchify,
)
from viq.models.tokenizer import counted
from viq.models.tokenizer.counted_encoder import CountedEncoder
from viq.models.tokenizer.seen_image import SeenImage
from viq.models.tokenizer.transform_code import pad_mode_of
from viq.models.tokenizer.variable_rate import Rate

if TYPE_CHECKING:
    from viq.models.tokenizer.tokenizer import VisualTokenizer

Tile = tuple[slice, slice]  # rows and columns of a grid

_WINDOW = 4096  # patches decoded or pooled at a time, which bounds memory


def tile_ids(
    model: VisualTokenizer,
    grids: Sequence[Grid],
    cut: Callable[[int, Tile], Tensor],
    *,
    tile: int,
    packed: bool = False,
) -> list[Tensor]:
    """Codebook indices (rows, cols, S), int64, of images that are run tile by tile.

    Args:
        grids: of the images.
        cut: patches (rows*cols, D) of a tile of an image, by its number, on the model's device.
        tile: px; images with a longer side are cut into tiles; 0: none is.
        packed: run the tiles of all images in one sequence.
    """
    side = tile // model.config.encoder.patch_size
    ids = [
        torch.empty(*grid, CODES_PER_PATCH, dtype=torch.long, device=model.device) for grid in grids
    ]
    tiles = [
        (image, where)
        for image, grid in enumerate(grids)
        for where in tile_grid(grid, side if max(grid) > side else 0)
    ]
    for group in [tiles] if packed and tiles else [[one] for one in tiles]:
        shapes = [_shape(where) for _, where in group]
        patches_TD = torch.cat([cut(image, where) for image, where in group])
        found_TS = model.ids(PatchBatch(patches_TD=patches_TD, grids_hw=tuple(shapes)))
        parts = found_TS.split(lengths_of(shapes))
        for (image, where), shape, part in zip(group, shapes, parts, strict=True):
            ids[image][where] = part.unflatten(0, shape)
    return ids


def _shape(where: Tile) -> Grid:
    rows, cols = where
    return rows.stop - rows.start, cols.stop - cols.start


def encode_images(
    model: VisualTokenizer, images: Sequence[np.ndarray], *, tile: int, packed: bool
) -> list[Codes]:
    """Codes of uint8 images (H, W, 3), as `VisualTokenizer.encode` gives them."""
    sizes: list[Size] = [(image.shape[0], image.shape[1]) for image in images]
    grids = [grid_of(size, model.config.encoder.patch_size) for size in sizes]

    def cut(number: int, where: Tile) -> Tensor:
        return _cut(model, images[number], where)

    found = tile_ids(model, grids, cut, tile=tile, packed=packed)
    return [
        Codes(
            ids.cpu().numpy().astype(np.uint16),
            size,
            tile if max(size) > tile else 0,
            model.fingerprint,
            model.dtype_name,
        )
        for ids, size in zip(found, sizes, strict=True)
    ]


def encode_counted(
    model: VisualTokenizer,
    images: Sequence[np.ndarray],
    *,
    tile: int,
    rate: Rate,
    coder: EntropyModel | None = None,
) -> list[Codes]:
    """Codes of uint8 images (H, W, 3) for a rate, as `VisualTokenizer.encode` gives them."""
    codes = []
    for image in images:
        size: Size = (image.shape[0], image.shape[1])
        grid = grid_of(size, model.config.encoder.patch_size)
        used, cut = tile if max(size) > tile else 0, partial(_cut, model, image)
        seen = SeenImage(model, cut, grid, size, used)
        codes.append(CountedEncoder(seen, coder).encode(rate))
    return codes


def _cut(model: VisualTokenizer, image: np.ndarray, where: Tile) -> Tensor:
    """Patches (rows*cols, D) of a tile of an image."""
    patch = model.config.encoder.patch_size
    rows, cols = (slice(part.start * patch, part.stop * patch) for part in where)
    return whole_patches(model, normalize(image[rows, cols]).to(model.device))


def whole_patches(model: VisualTokenizer, pixels: Tensor) -> Tensor:
    """Patches (T, D) of pixels (3, H, W) in [-1, 1], padded as the model wants it."""
    config = model.config
    return patchify(pixels, config.encoder.patch_size, pad_mode_of(config.quantizer.transform))


def packed_ids(model: VisualTokenizer, batch: PatchBatch) -> Tensor:
    """Codebook indices (T, S) of packed images, each run alone and in the model's own tiles."""
    lengths = lengths_of(batch.grids_hw)
    images = [
        part.unflatten(0, grid)
        for part, grid in zip(batch.patches_TD.split(lengths), batch.grids_hw, strict=True)
    ]

    def cut(number: int, where: Tile) -> Tensor:
        return images[number][where].flatten(0, 1)

    found = tile_ids(model, batch.grids_hw, cut, tile=model.config.tile)
    return torch.cat([ids.flatten(0, 1) for ids in found])


def checked_ids(model: VisualTokenizer, codes: Codes) -> Tensor:
    """Codebook indices (T, S) of codes that are the model's own, on its device; with counts, those
    beyond them say what the others say."""
    model.require(codes.fingerprint)
    ids = torch.from_numpy(codes.ids.astype(np.int64))
    size = model.codebook_size
    if ids.numel() and int(ids.max()) >= size:
        raise CodesError(
            f"code {int(ids.max())} is outside the codebook of {size}: the codes are damaged "
            "or were made by a model with other levels"
        )
    ids = ids.flatten(0, 1).to(model.device)
    if codes.counts is None:
        return ids
    counted.require_refinement(model, codes)
    counts, slots = (torch.from_numpy(part).flatten() for part in _numbers(codes))
    return counted.completed(model, ids, counts.to(ids.device), slots.to(ids.device))


def _numbers(codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """Counts and slots of patches, int64 (rows, cols)."""
    slots = codes.slots
    counts = slots if codes.counts is None else ids_counted(codes.counts)
    return counts, slots


def decode_windows(model: VisualTokenizer, codes: Codes) -> Image.Image:
    """The image, decoded window by window."""
    ids = checked_ids(model, codes).unflatten(0, codes.grid)
    (height, width), patch = codes.size, model.config.encoder.patch_size
    image = np.empty((height, width, 3), np.uint8)
    numbers = words = None
    if codes.counts is not None:
        numbers = tuple(torch.from_numpy(part).to(model.device) for part in _numbers(codes))
        words = counted.Words(model, codes)
    for rows, cols, patches in painted_windows(model, ids, numbers):
        y, x = rows.start * patch, cols.start * patch
        whole = patches.shape[0] * patch, patches.shape[1] * patch
        size = min(whole[0], height - y), min(whole[1], width - x)
        pixels = unpatchify(patches.flatten(0, 1), whole, patch)
        if words is not None:
            pixels = words.finished(pixels, rows, cols)
        pixels = pixels[:, : size[0], : size[1]]
        image[y : y + size[0], x : x + size[1]] = denormalize(pixels).cpu().numpy()
    return Image.fromarray(image)


def painted_windows(
    model: VisualTokenizer, ids_hwS: Tensor, numbers: tuple[Tensor, ...] | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Patches (h, w, D) that the decoder paints, window by window, and where they are: each with
    as much context as the decoder can see, so memory is bounded at any shape.

    Args:
        numbers: counts and slots (rows, cols) of patches that have them.
    """
    rows, cols = ids_hwS.shape[:2]
    halo = model.decoder.receptive_field if model.decoder else 0
    down, across = _window_sides((rows, cols))
    for top, left in itertools.product(range(0, rows, down), range(0, cols, across)):
        above, before = min(top, halo), min(left, halo)
        cut = slice(top - above, top + down + halo), slice(left - before, left + across + halo)
        window = ids_hwS[cut]
        grid = (window.shape[0], window.shape[1])
        if numbers is None:
            features_TC = model.features(window.flatten(0, 1), [grid])
            patches = model.reconstruct(features_TC, [grid])
        else:
            patches = counted.paint(model, window, *(part[cut] for part in numbers))
        wanted = patches.unflatten(0, grid)[above : above + down, before : before + across]
        yield slice(top, top + wanted.shape[0]), slice(left, left + wanted.shape[1]), wanted


def _window_sides(grid: Grid) -> Grid:
    """Rows and columns of at most `_WINDOW` patches that cut a grid into nearly equal windows.

    Windows are about square where the grid allows, as the context around a flat one would be most
    of the work: of full rows of 64 megapixels it was two thirds.
    """
    rows, cols = grid
    side = math.isqrt(_WINDOW)
    across = _part(cols, max(side, _WINDOW // rows))
    return _part(rows, _WINDOW // across), across


def _part(whole: int, most: int) -> int:
    """The size of the largest of the fewest nearly equal parts, none above `most`."""
    return -(-whole // -(-whole // most))


def pool(model: VisualTokenizer, codes: Iterable[Codes]) -> Tensor:
    """Semantic tokens (n, C), of as many images together as have few patches."""
    pooled = []
    for group in _few_at_a_time(codes):
        ids_TS = torch.cat([checked_ids(model, item) for item in group])
        grids = [item.grid for item in group]
        pooled.append(model.pooled(model.features(ids_TS, grids), grids))
    return torch.cat(pooled) if pooled else model.pool_head.latent.new_empty(0, model.width)


def _few_at_a_time(codes: Iterable[Codes]) -> Iterator[list[Codes]]:
    """One image after another in lists, each of up to `_WINDOW` patches, or of one larger image."""
    group, patches = list[Codes](), 0
    for item in codes:
        size = item.grid[0] * item.grid[1]
        if group and patches + size > _WINDOW:
            yield group
            group, patches = [], 0
        group.append(item)
        patches += size
    if group:
        yield group


def decode_with_vae(model: VisualTokenizer, vae: Any, codes: Codes) -> Image.Image:
    """The image in one piece: latent head and Qwen-Image VAE attend across all of it."""
    from viq.models.tokenizer.qwen_vae import decode_latents  # of converted models alone

    assert model.latent_head is not None
    features_TC = model.features(checked_ids(model, codes), [codes.grid])
    latents_Zhw = model.latent_head(features_TC, [codes.grid])
    pixels = decode_latents(vae, latents_Zhw)[0]
    height, width = codes.size
    return Image.fromarray(denormalize(pixels[:, :height, :width]).cpu().numpy())


def check_tile(tile: int, patch: int) -> None:
    """Refuse tiles that cut through patches. Raises `ViqError`."""
    if tile < 0 or tile % patch:
        raise ViqError(f"tile must be 0 or a multiple of {patch} px, got {tile}")


def listed(items: Any) -> list[Any]:
    """One image or one image's codes as a list of it; several, also in one array, as they come."""
    if isinstance(items, np.ndarray | Tensor):
        return list(items) if items.ndim == 4 else [items]
    single = isinstance(items, str | bytes | os.PathLike | Image.Image | Codes)
    return [items] if single else list(items)
