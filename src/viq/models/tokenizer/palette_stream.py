"""Patches of few colours as streams of 16-bit words: a palette, and an index for each pixel.

Print, charts and screenshots have few colours and sharp steps, which no sum of smooth directions
tells in few bits. A stream says how many colours its patch has, which, and then, in raster order,
the index of each pixel. The pixels to the left and above name the colours that are likely; which of
them it is, is told by how often that was right in the patch so far where these pixels were alike in
the same way. Nothing is fitted.

Colours that come often in a picture have numbers. They stand at the head of the stream of its first
patch, in raster order, that has a palette.

The words are those of `viq.codec.range_coder`, so any machine reads what any machine wrote, and any
words are read as something.

N = patches, P = 256 pixels of a patch in raster order, K = colours of a patch at most.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np

from viq.codec.range_coder import TOTAL, WORD_BITS, RangeDecoder, RangeEncoder
from viq.core.types import PATCH_SIZE

COLOURS = 8  # K
NUMBERED = 31  # colours of a picture that have numbers, at most
_PIXELS = PATCH_SIZE**2
_GREY, _FREE = NUMBERED, NUMBERED + 1  # how a colour without a number is told
_TINTS = 64  # amounts of red, green and blue of a colour without a number
# Weights of an index before any has come: to the left, above, right above, left above, any other,
# and more for the left one where all four are alike.
_LEFT, _ABOVE, _RIGHT, _CORNER, _OTHER, _ALIKE = 20, 20, 5, 1, 2, 60
_COME = 10  # what one that has come adds
_PATTERNS = 15  # ways in which four pixels can be alike
_MARGIN = 0.25  # bits that rounding of frequencies to 14 bits takes from a stream, at most


_Coder: TypeAlias = RangeEncoder | RangeDecoder  # is told symbols, or tells them


class Palettes(NamedTuple):
    """Patches of few colours.

    Attributes:
        amounts: how many colours each has (N,), int64, from 1 to K.
        colours: (N, K, 3), uint8; those beyond are 0.
        indices: of the colour of each pixel (N, P), int64.
    """

    amounts: np.ndarray
    colours: np.ndarray
    indices: np.ndarray

    def pixels(self) -> np.ndarray:
        """(N, P, 3), uint8."""
        return np.take_along_axis(self.colours, self.indices[..., None], 1)


class _Neighbours(NamedTuple):
    """Of each four indices (left, above, right above, left above) as one number to base K.

    Attributes:
        order: (K**4, K) indices by how likely they are.
        rank: (K**4, K) the place of each in it.
        pattern: (K**4,) in which way the four are alike.
        weights: (_PATTERNS, K) of places in the order, before any index has come.
    """

    order: np.ndarray
    rank: np.ndarray
    pattern: np.ndarray
    weights: np.ndarray


@cache
def _neighbours() -> _Neighbours:
    near = np.stack(np.unravel_index(np.arange(COLOURS**4), (COLOURS,) * 4), 1)
    # The place of an index is that of the first pixel that has it; the others come behind.
    same = near[:, :, None] == np.arange(COLOURS)
    first = np.where(same.any(1), same.argmax(1), 4 + np.arange(COLOURS))
    order = np.argsort(first, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    places = np.take_along_axis(rank, near, 1)  # of the four
    key = places @ np.array([0, 16, 4, 1])
    keys, pattern = np.unique(key, return_inverse=True)
    weights = np.full((_PATTERNS, COLOURS), _OTHER, np.int64)
    for number, key in enumerate(keys):
        above, right, corner = key // 16, key // 4 % 4, key % 4
        for place, weight in ((0, _LEFT), (above, _ABOVE), (right, _RIGHT), (corner, _CORNER)):
            weights[number, place] += weight
        weights[number, 0] += _ALIKE * (not keys[number])
    return _Neighbours(order, rank, pattern, weights)


def _near(indices_NP: np.ndarray, pixel: int) -> np.ndarray:
    """The four indices around a pixel as one number (N,). Beyond the patch they are those beside
    them; of the first pixel 0."""
    row, col = divmod(pixel, PATCH_SIZE)
    if not pixel:
        return np.zeros(len(indices_NP), np.int64)
    up = pixel - PATCH_SIZE
    above = indices_NP[:, up if row else pixel - 1]
    left = indices_NP[:, pixel - 1] if col else above
    right = indices_NP[:, up + 1] if row and col < PATCH_SIZE - 1 else above
    corner = indices_NP[:, up - 1] if row and col else left
    return ((left * COLOURS + above) * COLOURS + right) * COLOURS + corner


def encode(palettes: Palettes, numbered: np.ndarray, words_N: np.ndarray) -> np.ndarray:
    """Words of patches, one after another, uint16.

    Args:
        numbered: colours (n, 3), uint8, of the picture that have numbers.
        words_N: how many each patch has; `words_of` tells how many it needs.
    """
    if not len(words_N):
        return np.zeros(0, np.uint16)
    coder = RangeEncoder(len(words_N), int(words_N.max()) + 2)
    _walk(coder, palettes, numbered)
    words, counts = coder.finish()
    assert (counts <= words_N).all()
    return words[np.arange(words.shape[1]) < words_N[:, None]]


def decode(words: np.ndarray, words_N: np.ndarray) -> Palettes:
    """What `encode` was given; of any words, some palettes."""
    count = len(words_N)
    nothing = Palettes(
        np.ones(count, np.int64),
        np.zeros((count, COLOURS, 3), np.uint8),
        np.zeros((count, _PIXELS), np.int64),
    )
    if not count:
        return nothing
    table = np.zeros((count, int(words_N.max())), np.uint16)
    table[np.arange(table.shape[1]) < words_N[:, None]] = words
    return _walk(RangeDecoder(table), nothing, np.zeros((0, 3), np.uint8))


def words_of(palettes: Palettes, numbered: np.ndarray) -> np.ndarray:
    """Words (N,) that each patch needs, those of the colours of the picture not counted."""
    return -((-bits_of(palettes, numbered)) // WORD_BITS).astype(np.int64)


def head_words(numbered: np.ndarray) -> int:
    """Words that the colours of the picture take more of its first patch, at most."""
    return -(-(5 + 24 * len(numbered)) // WORD_BITS) if len(numbered) else 1


def bits_of(palettes: Palettes, numbered: np.ndarray) -> np.ndarray:
    """Bits (N,) that each patch takes at most, those of the colours of the picture not counted.

    With adaptive weights the length depends on how often each place in the order came, and not on
    when: weights that grow by 1 from a, c times, have the product (a + c - 1)! / (a - 1)!.
    """
    table, indices_NP = _neighbours(), palettes.indices
    near_NP = np.stack([_near(indices_NP, pixel) for pixel in range(_PIXELS)], 1)
    places_NP = table.rank[near_NP, indices_NP]
    cells = _PATTERNS * COLOURS
    keys = np.arange(len(indices_NP))[:, None] * cells + table.pattern[near_NP] * COLOURS
    counted = np.bincount((keys + places_NP).ravel(), minlength=cells * len(indices_NP))
    counts = counted.reshape(-1, _PATTERNS, COLOURS)
    there = np.arange(COLOURS) < palettes.amounts[:, None, None]
    begun = np.where(there, table.weights, 0) / _COME
    bits = _growth(begun.sum(2), counts.sum(2)).sum(1)
    bits -= np.where(there, _growth(np.where(there, begun, 1), counts), 0).sum((1, 2))
    starts = _colour_starts(len(numbered))
    kinds_NK, _ = _told(palettes.colours, numbered)
    own = np.log2(TOTAL / np.maximum(np.diff(starts), 1))[kinds_NK]
    own += np.array([*[0] * NUMBERED, 6, 18])[kinds_NK]
    listed = np.arange(COLOURS) < palettes.amounts[:, None]
    return bits + 3 + (own * listed).sum(1) + _MARGIN


def _growth(begun: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Logarithms to base 2 of products of weights that grow by 1 from `begun`, `counts` times."""
    tenths = np.rint(begun * _COME).astype(np.int64)
    return _products()[tenths, counts]


@cache
def _products() -> np.ndarray:
    most = int(_neighbours().weights.sum(1).max())
    begun = np.arange(most + 1)[:, None] / _COME + np.arange(_PIXELS)
    with np.errstate(divide="ignore"):
        logs = np.log2(begun).cumsum(1)
    return np.concatenate([np.zeros((most + 1, 1)), logs], 1)


def _walk(coder: _Coder, said: Palettes, numbered: np.ndarray) -> Palettes:
    """Code palettes, of which a decoder knows but how many patches there are."""
    everyone, count = slice(None), len(said.amounts)
    numbered = _code_numbered(coder, numbered)
    even = np.arange(COLOURS + 1)[None] * (TOTAL // COLOURS)
    amounts_N = 1 + coder.code(everyone, even.repeat(count, 0), said.amounts - 1)
    colours = np.zeros((count, COLOURS, 3), np.uint8)
    kinds_NK, tints_NK3 = _told(said.colours, numbered)
    starts = _colour_starts(len(numbered))
    for place in range(COLOURS):
        rows = np.flatnonzero(amounts_N > place)
        kinds = coder.code(rows, starts[None].repeat(len(rows), 0), kinds_NK[rows, place])
        tints = tints_NK3[rows, place]
        for channel in range(3):
            some = np.flatnonzero((kinds == _FREE) | ((kinds == _GREY) & (channel == 0)))
            even = np.arange(_TINTS + 1)[None] * (TOTAL // _TINTS)
            tints[some, channel] = coder.code(
                rows[some], even.repeat(len(some), 0), tints[some, channel]
            )
        tints = np.where((kinds == _GREY)[:, None], tints[:, :1], tints)
        own = _tinted(tints)
        known = kinds < len(numbered)
        own[known] = numbered[kinds[known]]
        colours[rows, place] = own
    indices_NP = np.zeros((count, _PIXELS), np.int64)
    rows = np.flatnonzero(amounts_N > 1)
    indices_NP[rows] = _code_indices(coder, rows, amounts_N[rows], said.indices[rows])
    return Palettes(amounts_N, colours, indices_NP)


def _code_numbered(coder: _Coder, numbered: np.ndarray) -> np.ndarray:
    """Code the colours of the picture, in the first stream."""
    first, one = np.zeros(1, np.int64), np.arange(NUMBERED + 2)[None] * (TOTAL // (NUMBERED + 1))
    (count,) = coder.code(first, one, np.array([len(numbered)]))
    found, even = np.zeros((int(count), 3), np.uint8), np.arange(257)[None] * (TOTAL // 256)
    for place in range(int(count)):
        for channel in range(3):
            told = numbered[place, channel] if place < len(numbered) else 0
            (found[place, channel],) = coder.code(first, even, np.array([told], np.int64))
    return found


def _code_indices(
    coder: _Coder, rows: np.ndarray, amounts_N: np.ndarray, said_NP: np.ndarray
) -> np.ndarray:
    """Code the indices of the pixels of some streams."""
    table, each = _neighbours(), np.arange(len(rows))
    there = np.arange(COLOURS) < amounts_N[:, None]
    weights = np.where(there[:, None], table.weights, 0).astype(np.int32)
    found_NP = np.zeros_like(said_NP)
    starts = np.zeros((len(rows), COLOURS + 1), np.int64)
    room = np.where(there, TOTAL - COLOURS, 0)
    for pixel in range(_PIXELS):
        near = _near(found_NP, pixel)
        pattern = table.pattern[near]
        own = weights[each, pattern]
        sizes = own * room // own.sum(1, keepdims=True) + there
        sizes[:, 0] += TOTAL - sizes.sum(1)
        np.cumsum(sizes, axis=1, out=starts[:, 1:])
        place = coder.code(rows, starts, table.rank[near, said_NP[:, pixel]])
        place = np.minimum(place, amounts_N - 1)
        found_NP[:, pixel] = table.order[near, place]
        weights[each, pattern, place] += _COME
    return found_NP


def _colour_starts(numbered: int) -> np.ndarray:
    """Where the ways to tell a colour begin in `TOTAL`: by each number, earlier ones more likely,
    as one of the greys, or freely; numbers that the picture does not use have no room."""
    likely = np.zeros(NUMBERED + 2, np.int64)
    likely[:numbered] = 3 * TOTAL // 4 * 1000 // (np.arange(numbered) + 3)
    if numbered:
        likely[:numbered] = likely[:numbered] * (3 * TOTAL // 4) // likely.sum()
    likely[_GREY] = (TOTAL - likely.sum()) // 2
    likely[_FREE] = TOTAL - likely.sum()
    return np.concatenate([[0], likely.cumsum()])


def _told(colours_NK3: np.ndarray, numbered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How colours are told: by number, as a grey, or freely (N, K), and in tints (N, K, 3)."""
    tints = (colours_NK3.astype(np.int64) * (_TINTS - 1) * 2 + 255) // 510
    grey = (tints == tints[..., :1]).all(-1)
    kinds = np.where(grey, _GREY, _FREE)
    if len(numbered):
        packed = colours_NK3.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        same = packed[..., None] == numbered.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        kinds = np.where(same.any(-1), same.argmax(-1), kinds)
    return kinds, tints


def _tinted(tints: np.ndarray) -> np.ndarray:
    """Colours of tints, uint8."""
    return ((tints * 510 + _TINTS - 1) // (2 * (_TINTS - 1))).astype(np.uint8)


def tellable(colours: np.ndarray) -> np.ndarray:
    """The nearest colours (.., 3), uint8, that can be told without a number."""
    whole = np.clip(np.rint(colours), 0, 255).astype(np.int64)
    return _tinted((whole * (_TINTS - 1) * 2 + 255) // 510)
