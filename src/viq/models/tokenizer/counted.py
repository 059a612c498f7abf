"""Codes of a variable number a patch, of one image, turned into pixels.

A patch with a palette shows its colours in place of what the decoder paints there, and the lapped
filter leaves its borders alone: its neighbours are refined as if the image ended there.

T = patches of an image in raster order, S = 4 slots, D = values of a patch, V = values in the basis
of the code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from viq.core.codes import Codes
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, CodesError, Grid, ViqError
from viq.image.patches import patchify, unpatchify
from viq.models.tokenizer import palette_stream
from viq.models.tokenizer.refinement import Refinement
from viq.models.tokenizer.transform_quantizer import TransformQuantizer
from viq.weights.checkpoint import hashed

if TYPE_CHECKING:
    from viq.models.tokenizer.tokenizer import VisualTokenizer


def parts_of(model: VisualTokenizer) -> tuple[TransformQuantizer, Refinement]:
    """What a variable rate needs.

    Raises:
        ViqError: the model has no refinement.
    """
    quantizer, refinement = model.quantizer, model.refinement
    if not isinstance(quantizer, TransformQuantizer) or not isinstance(refinement, Refinement):
        raise ViqError(
            f"{model.config.name}: has no refinement, so no other number of codes than four a "
            "patch; choose a model with one, or fit it with viq train refinement"
        )
    return quantizer, refinement


def refinement_digest(model: VisualTokenizer) -> str:
    """16 hex digits of what reads extra codes: the refinement, and the decoder that it refines."""
    weights = {
        name: weight
        for name, weight in model.state_dict().items()
        if name.startswith(("refinement.", "decoder."))
    }
    return hashed("", ((name, weights[name]) for name in sorted(weights)))


def require_refinement(model: VisualTokenizer, codes: Codes) -> None:
    """Refuse codes with counts that this model cannot read. Raises `CodesError`."""
    try:
        parts_of(model)
    except ViqError as error:
        raise CodesError(f"these codes have a count for each patch, but {error}") from None
    if codes.refinement and codes.refinement != (own := refinement_digest(model)):
        raise CodesError(
            f"these codes were made with the refinement {codes.refinement}, but the one of "
            f"{model.config.name} is {own}: load the tokenizer that made them"
        )
    most = parts_of(model)[1].config.words
    if int(codes.extra_counts[~codes.palettes].max(initial=0)) > most:
        raise CodesError(f"a patch has more than {most} extra codes: the codes are damaged")


# Fewer codes than four


def completed(model: VisualTokenizer, ids_TS: Tensor, counts_T: Tensor, slots_T: Tensor) -> Tensor:
    """Ids (T, S) with those beyond the counts made to say what those before say."""
    quantizer, refinement = parts_of(model)
    ids_TS = ids_TS.clone()
    for slots in (CODES_PER_PATCH, CODES_PER_PATCH - 1):
        for count in range(1, slots):
            rows = ((slots_T == slots) & (counts_T == count)).nonzero()[:, 0]
            if len(rows):
                found = refinement.completed(quantizer.code, ids_TS[rows], count, slots)
                ids_TS[rows, :slots] = found[:, :slots]
    return ids_TS


def _features(
    model: VisualTokenizer, ids_TS: Tensor, counts_T: Tensor, slots_T: Tensor, grid: Grid
) -> Tensor:
    """Features (T, C) with exactly the values that fewer codes than four say."""
    quantizer, refinement = parts_of(model)
    features_TC = model.features(ids_TS, [grid])
    for count in range(1, CODES_PER_PATCH):
        rows = ((counts_T == count) & (count < slots_T)).nonzero()[:, 0]
        if len(rows):
            values_TV = refinement.values(quantizer.code, ids_TS[rows], count)
            values_TV = values_TV / quantizer.scale
            features_TC[rows, : values_TV.shape[1]] = values_TV.to(features_TC.dtype)
    return features_TC


def paint(model: VisualTokenizer, ids_hwS: Tensor, counts_hw: Tensor, slots_hw: Tensor) -> Tensor:
    """Patches (T, D) that the decoder paints of completed ids and their counts."""
    grid = (ids_hwS.shape[0], ids_hwS.shape[1])
    counts_T, slots_T = counts_hw.flatten(), slots_hw.flatten()
    features_TC = _features(model, ids_hwS.flatten(0, 1), counts_T, slots_T, grid)
    return model.reconstruct(features_TC, [grid])


# More codes than four


class Words:
    """The extra codes of an image, ready to finish what is painted."""

    def __init__(self, model: VisualTokenizer, codes: Codes) -> None:
        self._quantizer, self._refinement = parts_of(model)
        self._stream = self._refinement.stream()
        self._codes, self._counts = codes, codes.extra_counts
        self._ends = np.cumsum(self._counts.ravel())
        self._palettes = codes.palettes

    def finished(self, pixels: Tensor, rows: slice, cols: slice) -> Tensor:
        """Painted pixels (3, H, W) of some patches, with all that is known of them."""
        pixels = pixels + self._refined(rows, cols)
        mine = self._palettes[rows, cols]
        if not mine.any():
            return pixels
        numbers = np.arange(self._counts.size).reshape(self._counts.shape)[rows, cols]
        shown_ND = torch.from_numpy(self._shown(numbers[mine])).to(pixels.device, pixels.dtype)
        patches_TD = patchify(pixels).clone()
        patches_TD[torch.from_numpy(mine.ravel()).to(pixels.device)] = shown_ND / 127.5 - 1
        return unpatchify(patches_TD, (pixels.shape[1], pixels.shape[2]))

    def _shown(self, numbers_N: np.ndarray) -> np.ndarray:
        """Patches (N, D), uint8, of those with palettes."""
        first = np.flatnonzero(self._palettes.ravel())[0]  # tells the colours of the picture
        read = np.append(first, numbers_N[numbers_N != first])
        found = palette_stream.decode(self._words(read), self._counts.ravel()[read])
        shown = found.pixels().swapaxes(1, 2).reshape(len(read), -1)
        return shown[len(read) - len(numbers_N) :]

    def _words(self, numbers_N: np.ndarray) -> np.ndarray:
        """Extra codes of some patches, one after another."""
        counts, ends = self._counts.ravel()[numbers_N], self._ends[numbers_N]
        parts = zip(ends - counts, ends, strict=True)
        return np.concatenate([self._codes.extra[start:end] for start, end in parts])

    def _refined(self, rows: slice, cols: slice) -> Tensor:
        """What words add to pixels (3, H, W) of some patches."""
        top, left = max(0, rows.start - 1), max(0, cols.start - 1)  # the filter sees neighbours
        window = slice(top, rows.stop + 1), slice(left, cols.stop + 1)
        numbers = np.arange(self._counts.size).reshape(self._counts.shape)[window]
        patches_TD = self._patches(numbers.ravel())
        size = (numbers.shape[0] * PATCH_SIZE, numbers.shape[1] * PATCH_SIZE)
        lapped, apart = self._quantizer.code.lapped, torch.from_numpy(self._palettes[window])
        pixels = lapped.inverse(
            unpatchify(patches_TD, size),
            apart.to(patches_TD.device) if bool(apart.any()) else None,
        )
        y, x = (rows.start - top) * PATCH_SIZE, (cols.start - left) * PATCH_SIZE
        height = (min(rows.stop, self._counts.shape[0]) - rows.start) * PATCH_SIZE
        width = (min(cols.stop, self._counts.shape[1]) - cols.start) * PATCH_SIZE
        return pixels[:, y : y + height, x : x + width]

    def _patches(self, numbers_T: np.ndarray) -> Tensor:
        """Patches (T, D), before the filter is undone, of some patches by rising numbers."""
        basis = self._refinement.basis
        patches_TD = basis.new_zeros(len(numbers_T), len(basis))
        counts_T = self._counts.ravel()[numbers_T]
        some = np.flatnonzero((counts_T > 0) & ~self._palettes.ravel()[numbers_T])
        if len(some):
            ids_TS = self._codes.ids.reshape(-1, CODES_PER_PATCH)[numbers_T[some]]
            classes = self._quantizer.code.classes(torch.from_numpy(ids_TS.astype(np.int64)))
            found = self._stream.decode(
                self._words(numbers_T[some]), classes.numpy(), counts_T[some]
            )
            coefficients = torch.from_numpy(found).to(basis.device, basis.dtype)
            where = torch.from_numpy(some).to(basis.device)
            patches_TD[where] = self._refinement.patches(coefficients)
        return patches_TD
