"""Find coloured shapes on a plain ground, from pixels alone: the judge of drawn pictures.

    find_shapes(Image.open("drawn.png"))  # [Shape(color="red", shape="circle", x=..., ...), ...]

No model is involved. What differs from the colour of the border is a thing; things that touch are
parted by colour. Colours are the nearest named ones. A shape is the outline, of those the project
draws and at any turn, that covers the thing best: both are laid over each other with the same
centre and area, in 33 x 33 cells of soft coverage, so that size and blur hardly matter. A thing
that no outline covers well is none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from viq.core.errors import require
from viq.data.synthetic.captions import Shape
from viq.data.synthetic.shapes import COLOURS, SHAPES, shape_mask

with require("scipy", "train", "finding shapes in pictures"):  # before any is drawn to be judged
    from scipy import ndimage

_THING = 0.5  # of the way from the ground to the colour of a thing: where it begins
_DIFFERENT = 60.0  # least colour distance from the ground, of 442
_LEAST = 0.004  # of the picture: smaller things are specks
_PART = 0.25  # of a thing: least share of a second colour that makes it two things
_FIT = 0.62  # least overlap of thing and outline, of 1
_CELLS, _RADIUS = 33, 12.0  # the common frame; radius there of a disc of the same area
_NEIGHBOURS = np.ones((3, 3), bool)  # of a pixel: eight, corners too
_NAMES = tuple(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], np.float32)
# After which part of a whole turn an outline looks the same.
_PERIODS = {"circle": 0, "ring": 0, "ellipse": 2, "triangle": 3, "square": 4, "cross": 4,
            "star": 5, "hexagon": 6}  # fmt: skip

Mask = NDArray[np.bool_]
Plane = NDArray[np.floating]


def find_shapes(image: Image.Image) -> list[Shape]:
    """All shapes, largest first."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    away = np.linalg.norm(pixels - ground, axis=-1)
    found = []
    for thing in _components(away > _DIFFERENT / 2):
        for part, color in _parts(thing, pixels, away):
            shape = _judged(part, color, pixels, ground)
            if shape is not None:
                found.append(shape)
    return sorted(found, key=lambda shape: -shape.size)


def _judged(part: Mask, color: str, pixels: Plane, ground: Plane) -> Shape | None:
    """Name, centre and size of one thing; None if it is a speck or no shape."""
    core = np.median(pixels[part], axis=0)
    span = core - ground
    if np.linalg.norm(span) < _DIFFERENT:
        return None
    # How much of each pixel the thing covers: its place between the ground and its own colour.
    near = _grown(part)
    cover = np.where(near, (pixels - ground) @ span / (span @ span), 0).clip(0, 1)
    area = float(cover.sum())
    if area < _LEAST * part.size:
        return None
    rows, cols = np.indices(part.shape, np.float32)
    y, x = float((cover * rows).sum() / area), float((cover * cols).sum() / area)
    shape, fit = _best_outline(_framed(cover, x, y, area))
    if fit < _FIT:
        return None
    reach = np.hypot(rows - y, cols - x)[cover > _THING]
    return Shape(color=color, shape=shape, x=x, y=y, size=2 * float(reach.max(initial=0)))


def _parts(thing: Mask, pixels: Plane, away: Plane) -> Iterator[tuple[Mask, str]]:
    """A thing, or the things of different colours that it is made of, with their colour."""
    clear = thing & (away > _THING * np.median(away[thing])) & ~_grown(~thing)
    clear = clear if clear.any() else thing
    distances = np.linalg.norm(pixels[:, :, None] - _PALETTE, axis=-1)
    counts = np.bincount(distances[clear].argmin(-1), minlength=len(_NAMES))
    large = np.flatnonzero(counts >= _PART * clear.sum())
    if len(large) < 2:
        core = np.median(pixels[clear], axis=0)
        yield thing, _NAMES[int(np.linalg.norm(_PALETTE - core, axis=1).argmin())]
        return
    nearest = large[distances[:, :, large].argmin(-1)]
    for color in large:
        for part in _components(thing & (nearest == color)):
            yield part, _NAMES[color]


def _components(mask: Mask) -> Iterator[Mask]:
    """Connected parts, each a mask; corners connect."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, _NEIGHBOURS, output=labels)  # numbered from 1
    for label in range(1, labels.max(initial=0) + 1):
        yield labels == label


def _grown(mask: Mask) -> Mask:
    """A mask with all its neighbours."""
    return np.asarray(ndimage.binary_dilation(mask, _NEIGHBOURS), bool)


def _framed(cover: Plane, x: float, y: float, area: float) -> Plane:
    """Coverage in the common frame: the centre in its middle, the area always the same."""
    scale = (area / np.pi) ** 0.5 / _RADIUS  # px a cell
    offsets = (np.arange(_CELLS) - _CELLS // 2) * scale
    return _sampled(_sampled(cover, y + offsets, 0), x + offsets, 1)


def _sampled(plane: Plane, places: NDArray, axis: int) -> Plane:
    """Linear interpolation along one axis; outside is nothing."""
    size = plane.shape[axis]
    centres = np.arange(size)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - centres)).astype(np.float32)
    return weights @ plane if axis == 0 else plane @ weights.T


@functools.cache
def _outlines() -> tuple[tuple[str, ...], Plane]:
    """Every outline at 12 turns in the common frame: names, and coverage (outlines, cells)."""
    names, frames = [], []
    for shape in SHAPES:
        period = _PERIODS[shape]
        turns = np.arange(12) * 2 * np.pi / (12 * period) if period else [0.0]
        for turn in turns:
            cover = np.asarray(shape_mask(shape, 60, float(turn)), np.float32) / 255
            rows, cols = np.indices(cover.shape)
            area = float(cover.sum())
            y, x = float((cover * rows).sum() / area), float((cover * cols).sum() / area)
            names.append(shape)
            frames.append(_framed(cover, x, y, area).ravel())
    return tuple(names), np.stack(frames)


def _best_outline(frame: Plane) -> tuple[str, float]:
    """The outline with the greatest overlap, intersection over union of coverage."""
    names, frames = _outlines()
    thing = frame.ravel()
    overlap = np.minimum(frames, thing).sum(1) / np.maximum(frames, thing).sum(1)
    best = int(overlap.argmax())
    return names[best], float(overlap[best])
