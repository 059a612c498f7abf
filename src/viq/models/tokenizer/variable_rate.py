"""How many codes each patch of an image gets: as many as a size or a quality asks for.

Of each patch it is known what its squared error is with each number of codes. For a price of a
code, each patch takes the number where error and price together are least (Lagrange); the price is
searched for. Patches that get fewer than four change what the decoder paints around them, so
what it leaves is measured once more before the words of the others are made.

T = patches of an image in raster order, S = 4 slots, D = values of a patch, K = directions,
n = codes of a patch from 1 on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from viq.core.types import ViqError

_PRICES = 40  # steps of a search
_AHEAD = 4  # codes that `_fill` looks ahead


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What is asked for; exactly one of these.

    Attributes:
        bpp: bits a pixel, at most, of a whole .viq file, or of what is stored compressed.
        psnr: dB, at least.
        nbytes: of the same, at most.
    """

    bpp: float | None = None
    psnr: float | None = None
    nbytes: int | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            raise ViqError("a rate is one of bpp, psnr and nbytes")
        ((name, value),) = given.items()
        if not 0 < value < float("inf"):
            raise ViqError(f"{name} {value}: give a number above 0")

    @classmethod
    def of(
        cls, bpp: float | None = None, psnr: float | None = None, nbytes: int | None = None
    ) -> Rate | None:
        """None if nothing is asked for."""
        if bpp is None and psnr is None and nbytes is None:
            return None
        return cls(bpp=bpp, psnr=psnr, nbytes=nbytes)

    def bytes_for(self, size: tuple[int, int]) -> int | None:
        """Bytes that a file of an image of (height, width) px may have; None for a quality."""
        if self.bpp is not None:
            return int(self.bpp * size[0] * size[1] / 8)
        return self.nbytes

    def error_for(self, size: tuple[int, int]) -> float | None:
        """Squared error that pixels in [-1, 1] may have in all; None for a size.

        Rounding to 8 bits adds a twelfth of a squared grey level a value.
        """
        if self.psnr is None:
            return None
        mean = max(255**2 / 10 ** (self.psnr / 10) - 1 / 12, 0)
        return mean / 127.5**2 * 3 * size[0] * size[1]


@dataclass(frozen=True)
class Choice:
    """The errors of patches by their number of codes.

    Attributes:
        errors_Tn: squared; column i is of i + 1 codes; infinite where there is no such number.
        least_T: the number of codes that a patch has at least.
        palettes_Tn: which of these errors are of palettes, bool.
    """

    errors_Tn: np.ndarray
    least_T: np.ndarray
    palettes_Tn: np.ndarray

    def at(self, price: float) -> np.ndarray:
        """Numbers of codes (T,) for a price of a code, in squared error; for an
        infinite one the least."""
        if price == np.inf:
            return self.least_T.copy()
        numbers = np.arange(1, self.errors_Tn.shape[1] + 1)
        total = self.errors_Tn + np.float32(price) * numbers
        total[numbers < self.least_T[:, None]] = np.inf
        return total.argmin(1) + 1

    def palettes(self, counts_T: np.ndarray) -> np.ndarray:
        """Which patches have palettes with these numbers, bool (T,)."""
        return np.take_along_axis(self.palettes_Tn, counts_T[:, None] - 1, 1)[:, 0]

    def error(self, counts_T: np.ndarray) -> float:
        """Squared error of all patches with these numbers."""
        return float(np.take_along_axis(self.errors_Tn, counts_T[:, None] - 1, 1).sum())

    def within(self, codes: int) -> np.ndarray:
        """Numbers of codes of at most `codes` in all, if the least are not more already."""
        if int(self.least_T.sum()) >= codes:
            return self.least_T.copy()
        counts = self._search(lambda found: int(found.sum()) <= codes)
        return self._fill(counts, codes - int(counts.sum()))

    def reaching(self, error: float) -> np.ndarray:
        """As few codes as give at most this squared error in all; the most, if none does."""
        return self._search(lambda found: self.error(found) > error, past=True)

    def _search(self, cheap: Callable[[np.ndarray], bool], past: bool = False) -> np.ndarray:
        """The numbers at the lowest price that is `cheap`; `past`: the highest that is not."""
        low, high = 1e-7, 1e5
        for _ in range(_PRICES):
            price = (low * high) ** 0.5
            low, high = (low, price) if cheap(self.at(price)) else (price, high)
        return self.at(low if past else high)

    def _fill(self, counts_T: np.ndarray, left: int) -> np.ndarray:
        """Spend what is left on the patches that gain most for a code, each once."""
        counts_T = counts_T.copy()
        rows = np.arange(len(counts_T))
        most = self.errors_Tn.shape[1]
        gains = np.full((len(rows), _AHEAD), -np.inf)
        for more in range(1, _AHEAD + 1):
            there = counts_T + more <= most
            after = self.errors_Tn[rows, np.minimum(counts_T + more, most) - 1]
            gain = self.errors_Tn[rows, counts_T - 1] - after
            gains[:, more - 1] = np.where(there & np.isfinite(after), gain / more, -np.inf)
        more_T = gains.argmax(1) + 1
        best_T = gains.max(1)
        for row in np.argsort(-best_T, kind="stable"):
            if best_T[row] <= 0 or left <= 0:
                break
            if more_T[row] <= left:
                counts_T[row] += more_T[row]
                left -= int(more_T[row])
        return counts_T
