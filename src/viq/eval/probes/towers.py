"""Vision towers behind one way to read features: tokenizers of ours and those of others.

A tower of ours has features of its codes, continuous ones before quantization, and where it carries
the network that taught it, those of that. One of another kind has what `viq.eval.peers` gives of
it: features of codes, of SigLIP2 continuous ones.

T = patches of a picture, C = width of features.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.types import Grid, Size, ViqError, grid_of, tile_grid
from viq.eval.probes.understanding import Features, kinds_of, read_features
from viq.models.tokenizer.tokenizer import VisualTokenizer

if TYPE_CHECKING:
    from viq.eval.peers.protocol import Peer

_OURS = "viq"
_WITHOUT_CODES = ("siglip2",)


class Tower(Protocol):
    """A frozen model that reads pictures.

    Attributes:
        kinds: of the features that it has.
        licence: of its weights, as published; None of a model of ours.
    """

    kinds: tuple[Features, ...]
    licence: str | None

    def features(self, image: Image.Image, kind: Features) -> tuple[Tensor, Grid]:
        """Features (T, C), float32, of an RGB picture, row by row, and the grid that they fill."""
        ...


def open_tower(name: str) -> Tower:
    """A tower on the CPU.

    Args:
        name: a bundled name, folder or hub id of a tokenizer of ours, or KIND:PATH with a kind of
            `viq.eval.peers`, as in qlip:DIR.

    Raises:
        CheckpointError: nothing usable under that name.
        ViqError: no such kind, or the tokenizer has no codes yet.
    """
    kind, colon, path = name.partition(":")
    if not colon or os.path.isdir(name):
        return _OurTower(name)
    if kind == _OURS:
        return _OurTower(path)
    return _PeerTower(_load_peer(kind, path), kind)


class _OurTower:
    """A tokenizer, which reads pictures at their own sizes."""

    licence: str | None = None

    def __init__(self, name: str) -> None:
        self._tokenizer = VisualTokenizer.from_pretrained(name)
        _ = self._tokenizer.codebook_size  # says what to do where there are no codes yet
        self.kinds: tuple[Features, ...] = kinds_of(self._tokenizer)

    def features(self, image: Image.Image, kind: Features) -> tuple[Tensor, Grid]:
        if kind != "codes":
            return _uncoded(self._tokenizer, np.asarray(image), kind)
        (codes,) = self._tokenizer.encode(image)
        return self._tokenizer.embed(codes)[0].float(), codes.grid


@torch.inference_mode()
def _uncoded(tokenizer: VisualTokenizer, pixels: np.ndarray, kind: Features) -> tuple[Tensor, Grid]:
    """Features of a picture (H, W, 3) without codes, in the tiles in which it is encoded."""
    patch = tokenizer.config.encoder.patch_size
    grid = grid_of((pixels.shape[0], pixels.shape[1]), patch)
    side = tokenizer.config.tile // patch
    found: Tensor | None = None
    for where in tile_grid(grid, side if max(grid) > side else 0):
        rows, cols = (slice(part.start * patch, part.stop * patch) for part in where)
        tile_TC = read_features(tokenizer, [pixels[rows, cols]], kind)
        if found is None:
            found = tile_TC.new_empty(*grid, tile_TC.shape[1])
        part_hwC = found[where]
        part_hwC.copy_(tile_TC.view_as(part_hwC))
    assert found is not None  # a picture has a tile at least
    return found.flatten(0, 1), grid


class _PeerTower:
    """A peer, which reads pictures as its `prepare` crops and resizes them."""

    def __init__(self, peer: Peer, kind: str) -> None:
        self._peer = peer
        self.licence: str | None = peer.licence
        self.kinds: tuple[Features, ...] = ("continuous",) if kind in _WITHOUT_CODES else ("codes",)

    def features(self, image: Image.Image, kind: Features) -> tuple[Tensor, Grid]:
        (features_TC,) = self._peer.features([image])
        width, height = self._peer.prepare(image).size
        grid = _grid_of_places(len(features_TC), (height, width), self._peer.name)
        return torch.from_numpy(np.asarray(features_TC, np.float32)), grid


def _grid_of_places(places: int, size: Size, name: str) -> Grid:
    """The grid of so many square places on a picture. Raises `ViqError`: there is none."""
    height, width = size
    rows = max(1, round((places * height / width) ** 0.5))
    if not places or places % rows:
        raise ViqError(
            f"{name}: {places} features of a picture of {width}x{height} px fill no grid: give a "
            "tower with one feature a patch"
        )
    return rows, places // rows


def _load_peer(kind: str, path: str) -> Peer:
    from viq.eval.peers import load_peer

    return load_peer(kind, path)
