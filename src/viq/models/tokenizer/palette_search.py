"""Which patches of an image have few colours, and what their palettes bring.

Each patch whose pixels are often exactly like their neighbours is divided into one to eight colours
(Lloyd's algorithm). Those of photos, smooth as they may be, are not: a palette can be nearer to
them by squared error, but shows its steps. More colours take more words and leave less error: of
each number of words the best palette that fits is kept.

T = patches of an image, N = some of them, P = pixels of a patch, K = colours of a patch at most,
W = words of a patch at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from viq.core.types import PATCH_SIZE
from viq.models.tokenizer.palette_stream import (
    COLOURS,
    NUMBERED,
    Palettes,
    tellable,
    words_of,
)

_SHARE = (
    0.4  # of pixels like their neighbours: print has more, three of a thousand patches of photos
)
_ROUNDS = 3  # of Lloyd's algorithm for each number of colours
_CHUNK = 512  # patches divided at a time
_SAMPLE = 2048  # patches in which the colours of a picture are looked for
_BIN = 8  # grey levels: colours of a picture in one cell of so many share a number
_USES = 5  # patches that have a colour, from which on a number is worth it
_FINE = 30.0  # squared grey levels: a patch whose colours are nearer needs no more of them
_NEAR = 5  # grey levels in each channel of a colour from the number that it is told by, at most
_PLACES = np.array([1 << 16, 1 << 8, 1])  # of red, green and blue in one number
_UNIT = 1 / 127.5**2  # of squared grey levels where pixels are in [-1, 1]
_EMPTY = Palettes(
    np.zeros(0, np.int64),
    np.zeros((0, COLOURS, 3), np.uint8),
    np.zeros((0, PATCH_SIZE**2), np.uint8),
)


class PaletteSearch(NamedTuple):
    """What palettes can do for the patches of an image.

    Attributes:
        errors_TW: squared error, of pixels in [-1, 1], with up to so many words from 1 on, float32;
            infinite where no palette takes as few.
        picks_TW: which palette that is.
        palettes: all of these; their indices are uint8.
        words: that each of them takes.
        numbered: colours (n, 3), uint8, of the picture that have numbers.
    """

    errors_TW: np.ndarray
    picks_TW: np.ndarray
    palettes: Palettes
    words: np.ndarray
    numbered: np.ndarray

    def none(self) -> PaletteSearch:
        """The same without any palettes."""
        errors_TW = np.full_like(self.errors_TW, np.inf)
        return PaletteSearch(errors_TW, self.picks_TW, _EMPTY, self.words[:0], self.numbered[:0])

    def picks(self, patches: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Which palettes some patches have with up to so many words each."""
        return self.picks_TW[patches, np.minimum(words, self.picks_TW.shape[1]) - 1]

    def taken(self, picks: np.ndarray) -> Palettes:
        """Some of the palettes."""
        amounts, colours, indices = (part[picks] for part in self.palettes)
        return Palettes(amounts, colours, indices.astype(np.int64))


def search(pixels_TP3: np.ndarray, inside_TP: np.ndarray, most: int) -> PaletteSearch:
    """Palettes of the patches of an image.

    Args:
        pixels_TP3: uint8.
        inside_TP: which pixels are part of the image; errors of others do not count.
        most: W.
    """
    rows = np.flatnonzero(_evenness(pixels_TP3) >= _SHARE)
    numbered = _frequent(pixels_TP3[rows[:: max(1, len(rows) // _SAMPLE)]])
    errors_TW = np.full((len(pixels_TP3), most), np.inf, np.float32)
    picks_TW = np.zeros((len(pixels_TP3), most), np.int64)
    kept, words, total = [_EMPTY], [np.zeros(0, np.int64)], 0
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        for palettes in _divided(pixels_TP3[chunk]):
            named = _named(palettes, numbered)
            taken_N = words_of(named, numbered)
            apart = named.pixels().astype(np.float32) - pixels_TP3[chunk]
            error_N = _UNIT * (np.square(apart).sum(2) * inside_TP[chunk]).sum(1)
            fits = np.arange(1, most + 1) >= taken_N[:, None]
            better = fits & (error_N[:, None] < errors_TW[chunk])
            some = np.flatnonzero(better.any(1))
            where = np.where(better[some])
            errors_TW[chunk[some][where[0]], where[1]] = error_N[some][where[0]]
            picks_TW[chunk[some][where[0]], where[1]] = total + where[0]
            amounts, colours, indices = (part[some] for part in named)
            kept.append(Palettes(amounts, colours, indices.astype(np.uint8)))
            words.append(taken_N[some])
            total += len(some)
    found = Palettes(*(np.concatenate(part) for part in zip(*kept, strict=True)))
    return PaletteSearch(errors_TW, picks_TW, found, np.concatenate(words), numbered)


def _evenness(pixels_TP3: np.ndarray) -> np.ndarray:
    """The share of pixels that are exactly like the one beside or above them, (T,)."""
    packed = pixels_TP3.astype(np.int32) @ _PLACES.astype(np.int32)
    lines = packed.reshape(-1, PATCH_SIZE, PATCH_SIZE)
    across, down = lines[:, :, 1:] == lines[:, :, :-1], lines[:, 1:] == lines[:, :-1]
    return (across.mean((1, 2)) + down.mean((1, 2))) / 2


def _divided(pixels_NP3: np.ndarray) -> Iterator[Palettes]:
    """Patches in one colour, two, and so on; colours are float32, the most frequent first."""
    if not len(pixels_NP3):
        return
    pixels = pixels_NP3.astype(np.float32)
    each = np.arange(len(pixels))
    centres = np.zeros((len(pixels), 0, 3), np.float32)
    worst = np.median(pixels, 1)
    for amount in range(1, COLOURS + 1):
        centres = np.concatenate([centres, worst[:, None]], 1)
        nearest, uses = _nearest(pixels, centres), np.zeros(0)
        for _ in range(_ROUNDS):
            own = (nearest == np.arange(amount)).astype(np.float32)
            uses = own.sum(1)
            means = own.swapaxes(1, 2) @ pixels / np.maximum(uses, 1)[..., None]
            centres = np.where(uses[..., None] > 0, means, centres)
            nearest = _nearest(pixels, centres)
        # The pixel that is told worst begins another colour.
        apart_NP = np.square(pixels - np.take_along_axis(centres, nearest, 1)).sum(2)
        worst = pixels[each, apart_NP.argmax(1)]
        rank = np.argsort(-uses, axis=1, kind="stable")
        colours = np.zeros((len(pixels), COLOURS, 3), np.float32)
        colours[:, :amount] = np.take_along_axis(centres, rank[..., None], 1)
        indices = np.take_along_axis(np.argsort(rank, 1, kind="stable"), nearest[..., 0], 1)
        yield Palettes(np.full(len(pixels), amount), colours, indices)


def _nearest(pixels_NP3: np.ndarray, centres_NK3: np.ndarray) -> np.ndarray:
    """The nearest centre of each pixel (N, P, 1)."""
    distances_NPK = np.square(centres_NK3).sum(2)[:, None] / 2
    distances_NPK = distances_NPK - pixels_NP3 @ centres_NK3.swapaxes(1, 2)
    return distances_NPK.argmin(2)[..., None]


def _frequent(pixels_NP3: np.ndarray) -> np.ndarray:
    """Colours (n, 3), uint8, that many of these patches have, the most frequent first."""
    found = list[np.ndarray]()
    done = np.zeros(len(pixels_NP3), bool)
    for palettes in _divided(pixels_NP3):
        apart = palettes.pixels() - pixels_NP3
        fine = ~done & ((np.square(apart).sum(2).mean(1) < _FINE) | (palettes.amounts == COLOURS))
        listed = np.arange(COLOURS) < palettes.amounts[fine, None]
        found.append(palettes.colours[fine][listed])
        done |= fine
    colours = np.rint(np.concatenate([np.zeros((0, 3)), *found])).astype(np.int64)
    whole, numbers = np.unique(colours, axis=0, return_counts=True)
    cells, cell = np.unique(whole // _BIN @ _PLACES, return_inverse=True)
    uses = np.bincount(cell, numbers, len(cells))
    usual = np.lexsort((-numbers, cell))  # by cell, the usual colour of each first
    usual = usual[np.searchsorted(cell[usual], np.arange(len(cells)))]
    ranked = np.argsort(-uses, kind="stable")[:NUMBERED]
    return whole[usual[ranked[uses[ranked] >= _USES]]].astype(np.uint8)


def _named(palettes: Palettes, numbered: np.ndarray) -> Palettes:
    """Palettes of colours that can be told, in place of those of Lloyd's algorithm."""
    colours = tellable(palettes.colours)
    if len(numbered):
        apart = np.abs(palettes.colours[:, :, None] - numbered.astype(np.float32)).max(3)
        near = apart.argmin(2)
        colours = np.where((apart.min(2) <= _NEAR)[..., None], numbered[near], colours)
    listed = np.arange(COLOURS) < palettes.amounts[:, None]
    return palettes._replace(colours=np.where(listed[..., None], colours, 0).astype(np.uint8))
