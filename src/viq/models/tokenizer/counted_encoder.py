"""An image to as many codes as a size or a quality asks for.

Of each patch the codes of each number are looked for: one to four of the transform code, each with
the class that is best for so many, then words for what the decoder leaves of four; or the first
and a palette, where that leaves less. `Choice` picks numbers; what the decoder leaves is measured
again with these, and the words are made.

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
from viq.core.codes import COUNTED_HEADER_BYTES, Codes, detail_slots, extra_codes, kept_ids
from viq.core.counts import PALETTE, pack_counts
from viq.core.types import CODES_PER_PATCH, PATCH_SIZE, Grid, Size, ViqError, tile_grid
from viq.image.patches import PatchBatch, denormalize, patchify, unpatchify
from viq.models.tokenizer import counted, palette_search, palette_stream
from viq.models.tokenizer.palette_search import PaletteSearch
from viq.models.tokenizer.transform_quantizer import PixelEncoder
from viq.models.tokenizer.variable_rate import Choice, Rate

if TYPE_CHECKING:
    from viq.models.tokenizer.inference import Tile
    from viq.models.tokenizer.tokenizer import VisualTokenizer

_ROWS = 4096  # patches whose coefficients are at hand at a time
_LEAST, _BUSY = 8, 6  # words of a patch at most: so many, and so many times the mean
_STRICTNESS = (1.0, 0.7, 0.4, 0.0)  # of the error that numbers are first chosen for
_MOST_OF_PALETTE = 80  # words; those of the colours of the picture come on top
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
        found = self._palettes(most)
        rest_TK, classes_T, over_T = self._rest(self._slots_T)
        gains_TW, modes_TW = self._stream.search(rest_TK, classes_T, most)
        choice = self._choice(over_T, gains_TW, found)
        base_T, fixed = self._slots_T, choice
        for strictness in _STRICTNESS:
            counts_T = self._pick(choice, found, rate, strictness)
            palettes_T = choice.palettes(counts_T)
            base_T = self._base(counts_T, palettes_T)
            whole = (base_T == self._slots_T).numpy()
            rest_TK, classes_T, over_T = self._rest(base_T, palettes_T)
            gains_TW[whole], modes_TW[whole] = self._stream.search(
                rest_TK[whole], classes_T[whole], most
            )
            fixed = self._fixed(base_T, over_T, gains_TW, found, palettes_T)
            error = rate.error_for(self._size)
            if error is None or fixed.error(fixed.at(0)) <= error:
                break  # else those with fewer codes than slots are worse than was thought
        counts_T = self._pick(fixed, found, rate)
        stored_T = self._stored(counts_T, fixed.palettes(counts_T), found)
        codes = self._made(stored_T)
        refined = np.flatnonzero((stored_T < PALETTE) & (stored_T > self._slots_T.numpy()))
        words_N = stored_T[refined] - self._slots_T.numpy()[refined]
        refining = self._stream.encode(
            rest_TK[refined], classes_T[refined], words_N, modes_TW[refined, words_N]
        )
        return replace(
            codes,
            extra=self._merged(codes, refining, self._palette_words(counts_T, stored_T, found)),
            refinement=counted.refinement_digest(self._model),
        )

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

    def _palettes(self, most: int) -> PaletteSearch:
        """Palettes of all patches, of up to so many words."""
        pixels_TP3 = patchify(denormalize(self._pixels).movedim(-1, 0)).unflatten(1, (3, -1)).mT
        inside = torch.zeros(1, *self._pixels.shape[1:], dtype=torch.bool)
        inside[:, : self._size[0], : self._size[1]] = True
        inside_TP = patchify(inside.expand(3, -1, -1)).unflatten(1, (3, -1))[:, 0]
        return palette_search.search(
            pixels_TP3.contiguous().numpy(), inside_TP.numpy(), min(most, _MOST_OF_PALETTE)
        )

    def _ids(self, base_T: Tensor) -> Tensor:
        """Completed ids (T, S) for numbers of codes up to a patch's slots."""
        ids_nTS = self._ids_nhwS.flatten(1, 2)
        picked_TS = ids_nTS[base_T - 1, torch.arange(len(base_T))]
        shared_T = self._slots_T < CODES_PER_PATCH
        picked_TS[shared_T, -1] = ids_nTS[0, shared_T, -1]
        return counted.completed(self._model, picked_TS, base_T, self._slots_T)

    def _rest(
        self, base_T: Tensor, palettes_T: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the decoder leaves with so many codes: coefficients (T, K), classes (T,), and the
        squared error (T,) of patches, in the domain of the filter.

        Args:
            palettes_T: patches that have palettes; None: none has.
        """
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
        apart = None
        if palettes_T is not None and palettes_T.any():
            apart = torch.from_numpy(palettes_T).unflatten(0, self._grid).to(code.basis.device)
        patches_TD = patchify(code.lapped(rest.to(code.basis.device, code.basis.dtype), apart))
        error_T = patches_TD.square().sum(1)
        rest_TK = torch.cat([self._refinement.coefficients(p) for p in patches_TD.split(_ROWS)])
        classes_T = code.classes(ids_hwS.flatten(0, 1))
        return (
            rest_TK.float().cpu().numpy(), classes_T.cpu().numpy(), error_T.float().cpu().numpy()
        )  # fmt: skip

    # Numbers of codes

    def _choice(self, over_T: np.ndarray, gains_TW: np.ndarray, found: PaletteSearch) -> Choice:
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
        other = self._palette_errors(found, errors.shape[1])
        return Choice(np.minimum(errors, other), np.ones_like(slots_T), other < errors)

    def _fixed(
        self,
        base_T: Tensor,
        over_T: np.ndarray,
        gains_TW: np.ndarray,
        found: PaletteSearch,
        palettes_T: np.ndarray,
    ) -> Choice:
        """Errors by the number of codes, where patches with fewer than all slots keep theirs, and
        those with palettes have palettes."""
        base, slots = base_T.numpy(), self._slots_T.numpy()
        errors = np.full((len(base), CODES_PER_PATCH + gains_TW.shape[1] - 1), np.inf, np.float32)
        errors[np.arange(len(base)), base - 1] = over_T
        for count in (CODES_PER_PATCH - 1, CODES_PER_PATCH):
            rows = np.flatnonzero((base == slots) & (slots == count))
            errors[rows, count - 1 : count - 1 + gains_TW.shape[1]] = (
                over_T[rows, None] - gains_TW[rows]
            )
        errors[palettes_T] = self._palette_errors(found, errors.shape[1])[palettes_T]
        least_T = np.where(palettes_T, 1 + np.isfinite(errors).argmax(1), base)
        which = np.broadcast_to(palettes_T[:, None], errors.shape)
        return Choice(errors, least_T, which)

    @staticmethod
    def _palette_errors(found: PaletteSearch, numbers: int) -> np.ndarray:
        """Errors (T, n) of palettes by the number of codes, the first id included."""
        some = min(found.errors_TW.shape[1], numbers - 1)
        errors = np.full((len(found.errors_TW), numbers), np.inf, np.float32)
        errors[:, 1 : 1 + some] = found.errors_TW[:, :some]
        errors[:, 1 + some :] = errors[:, some : some + 1]
        return errors

    def _most_words(self, rate: Rate) -> int:
        """Words of a patch that are looked at."""
        whole, total = self._refinement.config.words, rate.bytes_for(self._size)
        if total is None:
            return whole
        return min(whole, _LEAST + int(_BUSY * total / 2 / len(self._slots_T)))

    def _pick(
        self, choice: Choice, found: PaletteSearch, rate: Rate, strictness: float | None = None
    ) -> np.ndarray:
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
            left = total - self._bytes(self._stored(counts_T, choice.palettes(counts_T), found))
            if left >= 0 and total - left > used:
                best_T, used = counts_T, total - left
            if 0 <= left < 2:
                break
            codes = int(counts_T.sum()) + left // 2
        return self._least(choice, found, total) if best_T is None else best_T

    def _least(self, choice: Choice, found: PaletteSearch, total: int) -> np.ndarray:
        """The fewest codes. Raises `ViqError`: these are too many."""
        counts_T = choice.at(np.inf)
        stored_T = self._stored(counts_T, choice.palettes(counts_T), found)
        if (least := self._bytes(stored_T)) > total:
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

    # Codes

    def _base(self, counts_T: np.ndarray, palettes_T: np.ndarray) -> Tensor:
        """How many ids of patches count (T,)."""
        return torch.from_numpy(np.where(palettes_T, 1, np.minimum(counts_T, self._slots_T)))

    def _stored(
        self, counts_T: np.ndarray, palettes_T: np.ndarray, found: PaletteSearch
    ) -> np.ndarray:
        """Counts (T,), int64, as `Codes` has them, of numbers of codes."""
        stored_T = counts_T.copy()
        with_palette = np.flatnonzero(palettes_T)
        if len(with_palette):
            picks = found.picks(with_palette, counts_T[with_palette] - 1)
            stored_T[with_palette] = PALETTE + found.words[picks]
            stored_T[with_palette[0]] += palette_stream.head_words(found.numbered)
        return stored_T

    def _bytes(self, stored_T: np.ndarray) -> int:
        """Of a file with these counts, or compressed."""
        if self._coder is not None:
            return self._coder.stored_bytes(self._made(stored_T))
        packed = len(pack_counts(stored_T.astype(np.uint8).reshape(self._grid)))
        slots_T = self._slots_T.numpy()
        codes = kept_ids(stored_T, slots_T).sum() + extra_codes(stored_T, slots_T).sum()
        return COUNTED_HEADER_BYTES + packed + 2 * int(codes)

    def _made(self, stored_T: np.ndarray) -> Codes:
        """Codes with these counts, whose extra ones are still 0."""
        slots_T = self._slots_T.numpy()
        base_T = self._base(stored_T, stored_T >= PALETTE)
        return Codes(
            self._ids(base_T).unflatten(0, self._grid).numpy().astype(np.uint16),
            self._size,
            self._tile,
            self._model.fingerprint,
            self._model.dtype_name,
            stored_T.astype(np.uint8).reshape(self._grid),
            np.zeros(int(extra_codes(stored_T, slots_T).sum()), np.uint16),
            self._meaning,
        )

    def _palette_words(
        self, counts_T: np.ndarray, stored_T: np.ndarray, found: PaletteSearch
    ) -> np.ndarray:
        """Words of all palettes, patch after patch."""
        some = np.flatnonzero(stored_T >= PALETTE)
        palettes = found.taken(found.picks(some, counts_T[some] - 1))
        return palette_stream.encode(palettes, found.numbered, stored_T[some] - PALETTE)

    @staticmethod
    def _merged(codes: Codes, refining: np.ndarray, coloured: np.ndarray) -> np.ndarray:
        """Extra codes of all patches, of those that refine and those of palettes."""
        owned = np.repeat(codes.palettes.ravel(), codes.extra_counts.ravel())
        extra = np.empty(len(owned), np.uint16)
        extra[owned], extra[~owned] = coloured, refining
        return extra
