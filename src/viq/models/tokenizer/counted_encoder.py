"""An image to as many codes as a size or a quality asks for.

Of each patch the codes of each number are looked for: one to four of the transform code, each with
the class that is best for so many, then words for what the decoder leaves of four; or the first
and a palette, where that leaves less. `Choice` picks numbers; what the decoder leaves is measured
again with these, and the words are made.

T = patches of an image in raster order, S = 4 slots, D = values of a patch, n = codes of a patch,
W = words of a patch at most.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from viq.codec.entropy_model import EntropyModel
from viq.core.codes import COUNTED_HEADER_BYTES, Codes, extra_codes, kept_ids
from viq.core.counts import PALETTE, ids_counted, pack_counts
from viq.core.types import CODES_PER_PATCH, ViqError
from viq.models.tokenizer import counted, palette_stream
from viq.models.tokenizer.palette_search import PaletteSearch
from viq.models.tokenizer.seen_image import SeenImage
from viq.models.tokenizer.variable_rate import Choice, Rate

_LEAST, _BUSY = 8, 6  # words of a patch at most: so many, and so many times the mean
_STRICTNESS = (1.0, 0.7, 0.4, 0.0)  # of the error that numbers are first chosen for
_TRIES = 8  # of meeting a size: how many bytes counts take is known only afterwards


class _Known(NamedTuple):
    """What is known of patches with some number of ids.

    Attributes:
        rest_TK, classes_T, over_T: as `SeenImage.rest` gives them.
        gains_TW, modes_TW: as `Stream.search` gives them.
    """

    rest_TK: np.ndarray
    classes_T: np.ndarray
    over_T: np.ndarray
    gains_TW: np.ndarray
    modes_TW: np.ndarray


class _Plan(NamedTuple):
    """Numbers of codes.

    Attributes:
        counts_T: of codes, those of palettes included.
        stored_T: as `Codes` has them.
        cost: what is to be little: the squared error, or the bytes if a quality is asked for.
    """

    counts_T: np.ndarray
    stored_T: np.ndarray
    known: _Known
    found: PaletteSearch
    cost: float


class CountedEncoder:
    """One image on its way to codes.

    Args:
        seen: the image.
        coder: makes the bytes that a rate is about; None: those of a .viq file.
    """

    def __init__(self, seen: SeenImage, coder: EntropyModel | None = None) -> None:
        self._seen, self._coder = seen, coder
        self._size, self._slots_T = seen.size, seen.slots_T
        _, self._refinement = counted.parts_of(seen.model)
        self._stream = self._refinement.stream()

    def encode(self, rate: Rate) -> Codes:
        """Codes for a rate.

        Raises:
            ViqError: it cannot be met; says what can.
        """
        most = self._most_words(rate)
        found = self._seen.palettes(most)
        known = self._known(self._slots_T, None, most)
        plans, failure = list[_Plan](), None
        # Palettes cost a few bytes, and their borders are not filtered: an image that has hardly
        # any use for them is better off without.
        for some in (found, found.none()) if len(found.words) else (found,):
            try:
                plans.append(self._plan(rate, known, some))
                if plans[-1].stored_T.max() < PALETTE:
                    break
            except ViqError as error:
                failure = error
        if failure and not plans:
            raise failure
        return self._codes(min(plans, key=lambda plan: plan.cost))

    def _plan(self, rate: Rate, known: _Known, found: PaletteSearch) -> _Plan:
        """Numbers of codes for a rate. Raises `ViqError`: it cannot be met."""
        choice = self._choice(known, found)
        most, error = known.gains_TW.shape[1] - 1, rate.error_for(self._size)
        fixed = choice
        for strictness in _STRICTNESS:
            counts_T = self._pick(choice, found, rate, strictness)
            palettes_T = choice.palettes(counts_T)
            base_T = self._base(self._stored(counts_T, palettes_T, found))
            known = self._known(base_T, palettes_T, most, known)
            fixed = self._fixed(base_T, known, found, palettes_T)
            if error is None or fixed.error(fixed.at(0)) <= error:
                break  # else those with fewer codes than slots are worse than was thought
        counts_T = self._pick(fixed, found, rate)
        stored_T = self._stored(counts_T, fixed.palettes(counts_T), found)
        cost = fixed.error(counts_T) if error is None else self._bytes(stored_T)
        return _Plan(counts_T, stored_T, known, found, cost)

    def _known(
        self, base_T: Tensor, palettes_T: np.ndarray | None, most: int, before: _Known | None = None
    ) -> _Known:
        """What the decoder leaves with so many codes, and what words do about it where patches have
        all ids; of the others that is taken from `before`."""
        rest_TK, classes_T, over_T = self._seen.rest(base_T, palettes_T)
        if before is None:
            return _Known(
                rest_TK, classes_T, over_T, *self._stream.search(rest_TK, classes_T, most)
            )
        gains_TW, modes_TW = before.gains_TW.copy(), before.modes_TW.copy()
        whole = (base_T == self._slots_T).numpy()
        gains_TW[whole], modes_TW[whole] = self._stream.search(
            rest_TK[whole], classes_T[whole], most
        )
        return _Known(rest_TK, classes_T, over_T, gains_TW, modes_TW)

    def _codes(self, plan: _Plan) -> Codes:
        """Codes with the numbers of a plan."""
        codes, slots_T = self._made(plan.stored_T), self._slots_T.numpy()
        refined = np.flatnonzero((plan.stored_T < PALETTE) & (plan.stored_T > slots_T))
        words_N, known = plan.stored_T[refined] - slots_T[refined], plan.known
        refining = self._stream.encode(
            known.rest_TK[refined], known.classes_T[refined], words_N,
            known.modes_TW[refined, words_N],
        )  # fmt: skip
        coloured = np.flatnonzero(plan.stored_T >= PALETTE)
        found = plan.found
        colouring = palette_stream.encode(
            found.taken(found.picks(coloured, plan.counts_T[coloured] - 1)),
            found.numbered,
            plan.stored_T[coloured] - PALETTE,
        )
        owned = np.repeat(codes.palettes.ravel(), codes.extra_counts.ravel())
        extra = np.empty(len(owned), np.uint16)
        extra[owned], extra[~owned] = colouring, refining
        return replace(codes, extra=extra, refinement=counted.refinement_digest(self._seen.model))

    # Numbers of codes

    def _choice(self, known: _Known, found: PaletteSearch) -> Choice:
        """Errors by the number of codes; those of fewer than all slots are estimates."""
        over_T, gains_TW = known.over_T, known.gains_TW
        slots_T = self._slots_T.numpy()
        closed_nT = self._seen.errors_nT
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
        known: _Known,
        found: PaletteSearch,
        palettes_T: np.ndarray,
    ) -> Choice:
        """Errors by the number of codes, where patches with fewer than all slots keep theirs, and
        those with palettes have palettes."""
        over_T, gains_TW = known.over_T, known.gains_TW
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

    def _base(self, stored_T: np.ndarray) -> Tensor:
        """How many ids of patches count (T,)."""
        return torch.minimum(torch.from_numpy(ids_counted(stored_T)), self._slots_T)

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
        packed = len(pack_counts(stored_T.astype(np.uint8).reshape(self._seen.grid)))
        slots_T = self._slots_T.numpy()
        codes = kept_ids(stored_T, slots_T).sum() + extra_codes(stored_T, slots_T).sum()
        return COUNTED_HEADER_BYTES + packed + 2 * int(codes)

    def _made(self, stored_T: np.ndarray) -> Codes:
        """Codes with these counts, whose extra ones are still 0."""
        slots_T = self._slots_T.numpy()
        ids_TS = self._seen.ids(self._base(stored_T))
        return Codes(
            ids_TS.unflatten(0, self._seen.grid).numpy().astype(np.uint16),
            self._size,
            self._seen.tile,
            self._seen.model.fingerprint,
            self._seen.model.dtype_name,
            stored_T.astype(np.uint8).reshape(self._seen.grid),
            np.zeros(int(extra_codes(stored_T, slots_T).sum()), np.uint16),
            self._seen.meaning,
        )
