"""Training crops of many sizes, each step a pure function of (seed, step).

A step mixes groups of images of different sizes, drawn from a table of sizes, so that a model sees
everything from a few patches to whole pictures, and no step hangs on a single picture. Because
nothing is carried from step to step, a run resumes at any step with the very same data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.types import PATCH_SIZE, Size, grid_of
from viq.data.synthetic import draw as synthetic
from viq.image.patches import PatchBatch, normalize, patchify


class Pictures(Protocol):
    """Any list of RGB images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """What the crops of one training stage look like."""

    sides: Mapping[int, float]  # side of a square of equal area, in patches -> weight
    patches_per_group: int = 512  # images of one size; at least one, however large
    patches_per_step: int = 2048  # groups are added until there are this many
    aspect: float = 2.0  # height over width lies between 1/aspect and aspect
    ragged_share: float = 0.3  # of the groups have sizes that are no multiple of the patch
    synthetic_ratio: float = 0.15  # of the images are drawn, not photos
    scale: tuple[float, float] = (0.5, 1.25)  # photos are resized by a factor in this range


@dataclass(frozen=True, kw_only=True)
class CropBatch:
    """The images of one step."""

    batch: PatchBatch
    mask_TD: Tensor  # 1 where a value belongs to an image, 0 in the padding
    sizes: tuple[Size, ...]  # (height, width) of each image, px


def make_batch(photos: Pictures, config: CropConfig, seed: int, step: int) -> CropBatch:
    """The batch of one step: always the same for the same arguments."""
    rng = np.random.default_rng([seed, step])
    patches, masks, sizes = [], [], []
    while sum(map(len, masks)) < config.patches_per_step:
        size = _size(config, rng)
        grid = grid_of(size)
        count = max(1, config.patches_per_group // math.prod(grid))
        images = [_image(photos, config, size, rng) for _ in range(count)]
        pixels = normalize(np.stack([np.asarray(image) for image in images]))
        patches.append(patchify(pixels).flatten(0, 1))
        masks.append(patchify(torch.ones_like(pixels)).flatten(0, 1))
        sizes += [size] * count
    return CropBatch(
        batch=PatchBatch(patches_TD=torch.cat(patches), grids_hw=tuple(map(grid_of, sizes))),
        mask_TD=torch.cat(masks),
        sizes=tuple(sizes),
    )


def _size(config: CropConfig, rng: np.random.Generator) -> Size:
    sides = list(config.sides)
    weights = np.array([config.sides[side] for side in sides], float)
    side = sides[rng.choice(len(sides), p=weights / weights.sum())]
    stretch = math.sqrt(config.aspect ** rng.uniform(-1, 1))
    height, width = (max(1, round(s)) * PATCH_SIZE for s in (side * stretch, side / stretch))
    if rng.random() < config.ragged_share:
        height, width = (
            height - int(rng.integers(PATCH_SIZE)),
            width - int(rng.integers(PATCH_SIZE)),
        )
    return height, width


def _image(
    photos: Pictures, config: CropConfig, size: Size, rng: np.random.Generator
) -> Image.Image:
    if not len(photos) or rng.random() < config.synthetic_ratio:
        kind = synthetic.KINDS[rng.integers(len(synthetic.KINDS))]
        height, width = (max(16, side) for side in size)
        drawing = synthetic.draw(kind, (height, width), int(rng.integers(2**31)))
        return drawing.image.crop((0, 0, size[1], size[0]))
    return _photo(photos, config, size, rng)


def _photo(
    photos: Pictures, config: CropConfig, size: Size, rng: np.random.Generator
) -> Image.Image:
    """A random crop of a photo; a canvas too large for that becomes an enlargement or a mosaic."""
    height, width = size
    photo = photos[int(rng.integers(len(photos)))]
    low, high = config.scale
    scale = low * (high / low) ** rng.random()
    cover = max(width / photo.width, height / photo.height)  # smallest factor that fills the crop
    enlarged = scale < cover and cover > high
    if enlarged and (cover > 3 or rng.random() < 0.6) and max(size) > 2 * PATCH_SIZE:
        return _mosaic(photos, config, size, rng)
    scale = max(scale, cover)
    box_width, box_height = width / scale, height / scale
    left = rng.uniform(0, max(0.0, photo.width - box_width))
    top = rng.uniform(0, max(0.0, photo.height - box_height))
    box = (left, top, min(photo.width, left + box_width), min(photo.height, top + box_height))
    crop = photo.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _mosaic(
    photos: Pictures, config: CropConfig, size: Size, rng: np.random.Generator
) -> Image.Image:
    """Split the canvas across its longer side and fill both parts: large, yet sharp everywhere."""
    height, width = size
    canvas = Image.new("RGB", (width, height))
    if width >= height:
        cut = int(width * rng.uniform(0.3, 0.7))
        parts = [((0, 0), (height, cut)), ((cut, 0), (height, width - cut))]
    else:
        cut = int(height * rng.uniform(0.3, 0.7))
        parts = [((0, 0), (cut, width)), ((0, cut), (height - cut, width))]
    for where, part in parts:
        canvas.paste(_photo(photos, config, part, rng), where)
    return canvas
