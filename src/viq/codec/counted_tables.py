"""Format 3: the tables of format 2 for codes of which each patch has another number.

Ids beyond the count of a patch are not stored; reading makes them anew (`completion.py`). Counts
are known before, and smooth patches, which have few codes, are of other classes than busy ones: so
the tables of classes are multiplied by weights that depend on the count. Codes without counts are
coded as in format 2.

G = groups of counts, H and L = high and low digits of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from viq.codec.class_tables import ClassTables
from viq.codec.completion import Completion, Head
from viq.codec.entropy_model import Known
from viq.core.counts import codes_counted, ids_counted
from viq.core.types import CODES_PER_PATCH, ViqError

EDGES = np.array([1, 2, 3, 4, 5, 9])  # counts from which on patches are in the next group
GROUPS = len(EDGES) + 1  # G; the first is of patches without counts
UNIT = 1024  # weight that changes nothing


class CountedTables(ClassTables, format=3):
    """Probabilities of the parts of transform codes, given the counts of patches.

    Args:
        tensors: those of `ClassTables`; `radices` and `nearest` as of `Completion`; and weights
            from 1 to 65535, in `UNIT`s, `group_high` (G, H) and `group_low` (G, H, L).

    Raises:
        ViqError: tensors of wrong names, shapes or values.
    """

    counted = True
    _more = ("radices", "nearest", "group_high", "group_low")

    def __init__(
        self, tensors: Mapping[str, np.ndarray], levels: Sequence[int], fingerprint: str
    ) -> None:
        if not tensors.keys() >= set(self._more):
            raise ViqError(f"an entropy model without {', '.join(self._more)}: copy it again")
        super().__init__(tensors, levels, fingerprint)
        head = Head(self.shape.coarse * self.shape.fine, self.shape.first)
        self._completion = Completion(tensors["radices"], tensors["nearest"], head)
        products = tensors["radices"].astype(np.int64).prod(2)
        if not np.array_equal(products, tensors["sizes"]):
            raise ViqError("an entropy model whose digits do not fit its codes: copy it again")
        self._weights = {}
        for name in ("high", "low"):
            weights = tensors[f"group_{name}"].astype(np.float64)
            wanted = GROUPS, *self._tables[name].shape[2:]
            if weights.shape != wanted or not 1 <= weights.min() <= weights.max() < 1 << 16:
                raise ViqError(f"an entropy model without weights of {name} digits: copy it again")
            self._weights[name] = weights

    def _there(self, known: Known) -> tuple[np.ndarray, np.ndarray]:
        kept_ST, group_T = super()._there(known)
        if known.counts is not None:
            group_T = group_of(codes_counted(known.counts.ravel()))
        return kept_ST, group_T

    def _by_group(
        self, name: str, likely_nl: np.ndarray, places: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        return likely_nl * self._weights[name][places]

    def _completed(self, ids: Sequence[np.ndarray], known: Sequence[Known]) -> list[np.ndarray]:
        return [
            each
            if about.counts is None or about.slots is None
            else self._completion.complete(
                each.reshape(-1, CODES_PER_PATCH),
                ids_counted(about.counts.ravel()),
                about.slots.ravel(),
            ).reshape(each.shape)
            for each, about in zip(ids, known, strict=True)
        ]


def group_of(counts_T: np.ndarray) -> np.ndarray:
    """Groups (T,), int32, of counts from 1 on."""
    return np.searchsorted(EDGES, counts_T, side="right").astype(np.int32)
