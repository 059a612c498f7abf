"""An image to as many codes as a size or a quality asks for.

Of each patch the codes of each number are looked for: one to four of the transform code, each with
the class that is best for so many, then words for what the decoder leaves of four. `Choice` picks
numbers; what the decoder leaves is measured again with these, and the words are made.

T = patches of an image in raster order, S = 4 slots, D = values of a patch, n = codes of a patch,
W = words of a patch at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from viq.codec.entropy_model import EntropyModel
from viq.core.codes import COUNTED_HEADER_BYTES, Codes, detail_slots
from viq.core.counts import pack_counts
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, Grid, Size, ViqError, tile_grid
from viq.image.patches import PatchBatch, patchify, unpatchify
from viq.models.tokenizer import counted
from viq.models.tokenizer.transform_quantizer import PixelEncoder
from viq.models.tokenizer.variable_rate import Choice, Rate

if TYPE_CHECKING:
    from viq.models.tokenizer.inference import Tile
    from viq.models.tokenizer.tokenizer import VisualTokenizer

_ROWS = 4096  # patches whose coefficients are at hand at a time
_LEAST, _BUSY = 8, 6  # words of a patch at most: so many, and so many times the mean
_STRICTNESS = (1.0, 0.7, 0.4, 0.0)  # of the error that numbers are first chosen for
_TRIES = 8  # of meeting a size: how many bytes counts take is known only afterwards


class CountedEncoder:
    """One image on its way to codes.

    Args:
        cut: patches (rows*cols, D) of a tile.
        size: (height, width) px of the image.
        tile: px, as in `Codes`.
        coder: makes the bytes that a rate is about; None: those of a .viq file.
    """

    def __init__(
        self,
        model: VisualTokenizer,
        cut: Callable[[Tile], Tensor],
        grid: Grid,
        size: Size,
        tile: int,
        coder: EntropyModel | None = None,
    ) -> None:
        self._model, self._size, self._grid, self._tile = model, size, grid, tile
        self._coder = coder
        self._quantizer, self._refinement = counted.parts_of(model)
        self._stream = self._refinement.stream()
        self._meaning = self._quantizer.code.config.shares
        slots_hw = detail_slots(grid, tile, self._meaning)
        self._slots_T = torch.from_numpy(slots_hw).flatten()
        self._ids_nhwS = torch.zeros(CODES_PER_PATCH, *grid, CODES_PER_PATCH, dtype=torch.long)
        self._errors_nhw = torch.zeros(CODES_PER_PATCH, *grid)
        self._pixels = torch.zeros(3, grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)
        for where in tile_grid(grid, tile // PATCH_SIZE):
            self._look(cut(where), where)

    def encode(self, rate: Rate) -> Codes:
        """Codes for a rate.

        Raises:
            ViqError: it cannot be met; says what can.
        """
        most = self._most_words(rate)
        rest_TK, classes_T, over_T = self._rest(self._slots_T)
        gains_TW, modes_TW = self._stream.search(rest_TK, classes_T, most)
        choice = self._choice(over_T, gains_TW)
        base_T, fixed = self._slots_T, choice
        for strictness in _STRICTNESS:
            counts_T = self._pick(choice, rate, strictness)
            base_T = torch.minimum(torch.from_numpy(counts_T), self._slots_T)
            whole = (base_T == self._slots_T).numpy()
            rest_TK, classes_T, over_T = self._rest(base_T)
            gains_TW[whole], modes_TW[whole] = self._stream.search(
                rest_TK[whole], classes_T[whole], most
            )
            fixed = self._fixed(base_T, over_T, gains_TW)
            error = rate.error_for(self._size)
            if error is None or fixed.error(fixed.at(0)) <= error:
                break  # else those with fewer codes than slots are worse than was thought
        counts_T = self._pick(fixed, rate)
        return self._codes(counts_T, rest_TK, classes_T, modes_TW)

    # What is known of patches

    def _look(self, patches_TD: Tensor, where: Tile) -> None:
        """Codes and errors of the patches of a tile for each number of codes up to four."""
        code, refinement = self._quantizer.code, self._refinement
        grid = (where[0].stop - where[0].start, where[1].stop - where[1].start)
        batch = PatchBatch(patches_TD=patches_TD, grids_hw=(grid,))
        patches_TD = self._model.encoder(batch)  # as they are; whoever watches it is told
        seen = code.analyse(patches_TD.float(), grid)
        mean_T = code.coarse[seen.coarse_T] + code.fine[seen.coarse_T, seen.fine_T]
        outside_T = seen.energy_T - seen.values_TV.square().sum(1)
        values_TV = seen.values_TV.clone()
        values_TV[:, -1] += mean_T
        for count in range(1, CODES_PER_PATCH + 1):
            ids_TS = code.chosen(seen, refinement.tables(code, count), count)
            said_TV = refinement.values(code, ids_TS, count)
            error_T = outside_T + (said_TV - values_TV).square().sum(1)
            self._ids_nhwS[count - 1][where] = ids_TS.unflatten(0, grid).cpu()
            self._errors_nhw[count - 1][where] = error_T.unflatten(0, grid).cpu()
        self._say_meaning(batch, where)
        y, x = (slice(part.start * PATCH_SIZE, part.stop * PATCH_SIZE) for part in where)
        size = (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)
        self._pixels[:, y, x] = unpatchify(patches_TD.float(), size).cpu()

    def _say_meaning(self, batch: PatchBatch, where: Tile) -> None:
        """Put meaning into the fourth ids that are left to it."""
        encoder = self._model.encoder
        if not self._meaning or not isinstance(encoder, PixelEncoder):
            return
        said = encoder.meaning(batch)
        assert said is not None
        detail = self._quantizer.code.config.detail
        for ids_hwS in self._ids_nhwS[:, where[0], where[1]]:
            ids_hwS[::2, ::2, -1] = detail + said[0].cpu()

    def _ids(self, base_T: Tensor) -> Tensor:
        """Completed ids (T, S) for numbers of codes up to a patch's slots."""
        ids_nTS = self._ids_nhwS.flatten(1, 2)
        picked_TS = ids_nTS[base_T - 1, torch.arange(len(base_T))]
        shared_T = self._slots_T < CODES_PER_PATCH
        picked_TS[shared_T, -1] = ids_nTS[0, shared_T, -1]
        return counted.completed(self._model, picked_TS, base_T, self._slots_T)

    def _rest(self, base_T: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the decoder leaves with so many codes: coefficients (T, K), classes (T,), and the
        squared error (T,) of patches, in the domain of the filter."""
        from viq.models.tokenizer.inference import painted_windows

        base_T = torch.minimum(base_T, self._slots_T)
        ids_hwS = self._ids(base_T).unflatten(0, self._grid)
        rest = self._pixels.clone()
        numbers = tuple(part.unflatten(0, self._grid) for part in (base_T, self._slots_T))
        for rows, cols, patches_hwD in painted_windows(self._model, ids_hwS, numbers):
            y, x = (slice(part.start * PATCH_SIZE, part.stop * PATCH_SIZE) for part in (rows, cols))
            size = (y.stop - y.start, x.stop - x.start)
            rest[:, y, x] -= unpatchify(patches_hwD.flatten(0, 1), size).float().cpu()
        rest[:, self._size[0] :] = 0  # beyond the image nobody looks
        rest[:, :, self._size[1] :] = 0
        code = self._quantizer.code
        patches_TD = patchify(code.lapped(rest.to(code.basis.device, code.basis.dtype)))
        error_T = patches_TD.square().sum(1)
        rest_TK = torch.cat([self._refinement.coefficients(p) for p in patches_TD.split(_ROWS)])
        classes_T = code.classes(ids_hwS.flatten(0, 1))
        return (
            rest_TK.float().cpu().numpy(), classes_T.cpu().numpy(), error_T.float().cpu().numpy()
        )  # fmt: skip

    # Numbers of codes

    def _choice(self, over_T: np.ndarray, gains_TW: np.ndarray) -> Choice:
        """Errors by the number of codes; those of fewer than all slots are estimates."""
        slots_T = self._slots_T.numpy()
        closed_nT = self._errors_nhw.flatten(1).numpy()
        last_T = closed_nT[slots_T - 1, np.arange(len(slots_T))]
        share = min(1.0, float(over_T.sum()) / max(float(last_T.sum()), 1e-9))
        errors = np.full(
            (len(slots_T), CODES_PER_PATCH + gains_TW.shape[1] - 1), np.inf, np.float32
        )
        for slots in (CODES_PER_PATCH - 1, CODES_PER_PATCH):
            rows = np.flatnonzero(slots_T == slots)
            errors[rows, : slots - 1] = share * closed_nT[: slots - 1, rows].T
            errors[rows, slots - 1 : slots - 1 + gains_TW.shape[1]] = (
                over_T[rows, None] - gains_TW[rows]
            )
        return Choice(errors, np.ones_like(slots_T))

    def _fixed(self, base_T: Tensor, over_T: np.ndarray, gains_TW: np.ndarray) -> Choice:
        """Errors by the number of codes, where patches with fewer than all slots keep theirs."""
        base, slots = base_T.numpy(), self._slots_T.numpy()
        errors = np.full((len(base), CODES_PER_PATCH + gains_TW.shape[1] - 1), np.inf, np.float32)
        errors[np.arange(len(base)), base - 1] = over_T
        for count in (CODES_PER_PATCH - 1, CODES_PER_PATCH):
            rows = np.flatnonzero((base == slots) & (slots == count))
            errors[rows, count - 1 : count - 1 + gains_TW.shape[1]] = (
                over_T[rows, None] - gains_TW[rows]
            )
        return Choice(errors, base)

    def _most_words(self, rate: Rate) -> int:
        """Words of a patch that are looked at."""
        whole, total = self._refinement.config.words, rate.bytes_for(self._size)
        if total is None:
            return whole
        return min(whole, _LEAST + int(_BUSY * total / 2 / len(self._slots_T)))

    def _pick(self, choice: Choice, rate: Rate, strictness: float | None = None) -> np.ndarray:
        """Numbers of codes (T,) for a rate; with `strictness` for so much of the error, or as near
        to it as may be.

        Raises:
            ViqError: the most that can be had is not good enough, or the least is too much.
        """
        total = rate.bytes_for(self._size)
        if total is None:
            return self._good_enough(choice, rate, strictness)
        best_T, used = None, 0
        codes = total // 2
        for _ in range(_TRIES):  # what counts take is known only when there are counts
            counts_T = choice.within(codes)
            left = total - self._bytes(counts_T)
            if left >= 0 and total - left > used:
                best_T, used = counts_T, total - left
            if 0 <= left < 2:
                break
            codes = int(counts_T.sum()) + left // 2
        return self._least(choice, total) if best_T is None else best_T

    def _least(self, choice: Choice, total: int) -> np.ndarray:
        """The fewest codes. Raises `ViqError`: these are too many."""
        counts_T = choice.at(np.inf)
        if (least := self._bytes(counts_T)) > total:
            raise ViqError(
                f"{total:,} bytes are too few for {self._size[1]}x{self._size[0]} px: {least:,} "
                f"are the least ({8 * least / self._size[0] / self._size[1]:.3f} bits a pixel)"
            )
        return counts_T

    def _good_enough(self, choice: Choice, rate: Rate, strictness: float | None) -> np.ndarray:
        error = rate.error_for(self._size)
        assert error is not None
        if strictness is not None:
            return choice.reaching(strictness * error)
        counts_T = choice.reaching(error)
        if (least := choice.error(counts_T)) > error:
            mean = least * 127.5**2 / (3 * self._size[0] * self._size[1]) + 1 / 12
            raise ViqError(
                f"{rate.psnr} dB are more than this model can keep of the image: "
                f"{10 * np.log10(255**2 / mean):.2f} dB are the most"
            )
        return counts_T

    def _bytes(self, counts_T: np.ndarray) -> int:
        """Of a file with these numbers of codes, or compressed."""
        if self._coder is not None:
            return self._coder.stored_bytes(self._made(counts_T))
        packed = len(pack_counts(counts_T.astype(np.uint8).reshape(self._grid)))
        shared = int((self._slots_T < CODES_PER_PATCH).sum())
        return COUNTED_HEADER_BYTES + packed + 2 * (int(counts_T.sum()) + shared)

    def _codes(
        self, counts_T: np.ndarray, rest_TK: np.ndarray, classes_T: np.ndarray,
        modes_TW: np.ndarray,
    ) -> Codes:  # fmt: skip
        """The codes with these numbers."""
        words_T = np.maximum(counts_T - self._slots_T.numpy(), 0)
        some = np.flatnonzero(words_T)
        modes = modes_TW[some, words_T[some]]
        extra = self._stream.encode(rest_TK[some], classes_T[some], words_T[some], modes)
        return replace(
            self._made(counts_T), extra=extra, refinement=counted.refinement_digest(self._model)
        )

    def _made(self, counts_T: np.ndarray) -> Codes:
        """Codes with these numbers, whose extra ones are still 0."""
        base_T = torch.minimum(torch.from_numpy(counts_T), self._slots_T)
        words = int(np.maximum(counts_T - self._slots_T.numpy(), 0).sum())
        return Codes(
            self._ids(base_T).unflatten(0, self._grid).numpy().astype(np.uint16),
            self._size,
            self._tile,
            self._model.fingerprint,
            self._model.dtype_name,
            counts_T.astype(np.uint8).reshape(self._grid),
            np.zeros(words, np.uint16),
            self._meaning,
        )
