"""Format 1: a small causal network gives the probabilities of FSQ levels, one after another.

A code is a mixed-radix number of FSQ levels. The levels of an image are coded one after another,
each with the probabilities that a network gives it from the patches to the left, above and above
left, and from the levels of its own patch that were coded before:

    context = MLP(levels of the three neighbours)                 once a patch
    hidden  = clip(context + sum over j < i of embed[j, level j])   for level i of the patch
    logits  = head[i] @ hidden

Patches on one anti-diagonal depend on earlier diagonals alone. A diagonal is therefore one step,
and images that are read together share their steps.

The reader must arrive at exactly the probabilities of the writer, on any machine, and matrix
libraries promise no order of summation. So all arithmetic is on integers: weights are multiples
of 1/256, values of 1/128, hidden values lie in 0..4, the exponential is a table. The integers are
held in float32 for the speed of its matrix products; no partial sum reaches 2**24, which is checked
when a model is made, so nothing is ever rounded and the order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from viq.codec.entropy_model import EntropyModel, Known, constriction
from viq.codec.layout import (
    _NEIGHBOURS,
    CAP,
    EXACT,
    LEVEL_UNIT,
    VALUE_UNIT,
    WEIGHT_UNIT,
    Layout,
    _centred,
)
from viq.core.codes import Codes
from viq.core.types import CODES_PER_PATCH, CodesError, ViqError

_LOGIT_STEPS = 32  # steps in 1 of logits, as the table of exponentials has them
_LOGIT_SCALE = _LOGIT_STEPS / (WEIGHT_UNIT * VALUE_UNIT)
# In float64: the coder scales sums of it to 2**24, and float32 can round them beyond the end.
_EXP = np.array(
    [round(65536 * math.exp(-i / _LOGIT_STEPS)) for i in range(12 * _LOGIT_STEPS)], np.float64
)
_BLOCK = 512  # patches whose tables are computed together: their hidden values stay in the cache


class LevelNetwork(EntropyModel, format=1):
    """Probabilities of FSQ levels given their neighbours, by a network.

    T = patches of all images, K = levels of a patch (slots times dims), l = greatest number of
    levels, U = hidden width.

    Args:
        tensors: integers. `context.N.weight` (out, in) and `context.N.bias` (out) for N = 0, 1,
            ..; `embed` (K, l, U); `head.weight` (K, l, U) and `head.bias` (K, l). The first layer
            reads 3 * (K + 1) values (see `Layout`). Unit of weights: 1/WEIGHT_UNIT, of embed:
            1/VALUE_UNIT, of biases: the product of both.

    Raises:
        ViqError: tensors of wrong names or shapes, or so large that sums could be rounded.
    """

    batch_patches = 1 << 14

    def __init__(
        self, tensors: Mapping[str, np.ndarray], levels: Sequence[int], fingerprint: str
    ) -> None:
        super().__init__(tensors, levels, fingerprint)
        self._sizes = np.array(self.levels * CODES_PER_PATCH)
        self._basis = np.cumprod([1, *self.levels[:-1]])
        depth = sum(name.startswith("context.") for name in tensors) // 2
        _check(tensors, self._sizes, depth)
        values = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        self._context = [
            (values[f"context.{i}.weight"].T.copy(), values[f"context.{i}.bias"])
            for i in range(depth)
        ]
        self._embed = values["embed"]
        # What stands for no level gets no probability.
        absent = np.arange(self._sizes.max()) >= self._sizes[:, None]
        self._head = np.where(absent[..., None], 0, values["head.weight"]).transpose(0, 2, 1).copy()
        self._bias = np.where(absent, -np.float32(EXACT), values["head.bias"])

    def bits(self, codes: Sequence[Codes]) -> float:
        """Information content of all codes under the model, in bits; payloads come close to it."""
        self._require_own(codes)
        total = 0.0
        for batch in self._batches([item.grid for item in codes]):
            layout = Layout.of([item.grid for item in codes[batch]])
            total += float(self._bits(layout, [item.ids for item in codes[batch]]).sum())
        return total

    def patch_bits(self, codes: Codes) -> np.ndarray:
        self._require_own([codes])
        layout = Layout.of([codes.grid])
        bits_T = np.zeros(len(layout.step_T))
        bits_T[:] = self._bits(layout, [codes.ids]).sum(1)[layout.places[0]]
        return bits_T.reshape(codes.grid)

    def _bits(self, layout: Layout, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Bits (T, K) of all levels, in the order of the layout."""
        levels_TK = layout.levels(ids, self.levels)
        tables_TKl = self._tables(layout, levels_TK)
        p_TK = np.take_along_axis(tables_TKl, levels_TK[..., None], 2)[..., 0]
        return -np.log2(np.maximum(p_TK, 2**-8) / tables_TKl.sum(2))

    def _encode(self, ids: Sequence[np.ndarray], known: Sequence[Known]) -> Iterator[np.ndarray]:
        layout = Layout.of([each.grid for each in known])
        levels_TK = layout.levels(ids, self.levels)
        tables_TKl = self._tables(layout, levels_TK)
        coder, family = _coder()
        dims = levels_TK.shape[1]
        for image in range(len(ids)):
            mine = np.flatnonzero(layout.image_T == image)
            # Coding order: diagonal, then level of the patch, then patch on the diagonal.
            place_TK = layout.step_T[mine, None] * dims + np.arange(dims)
            order = np.argsort(place_TK.ravel(), kind="stable")
            encoder = coder.RangeEncoder()
            encoder.encode(
                levels_TK[mine].ravel()[order],
                family,
                tables_TKl[mine].reshape(len(order), -1)[order],
            )
            yield encoder.get_compressed()

    def _decode(self, words: Sequence[np.ndarray], known: Sequence[Known]) -> list[np.ndarray]:
        coder, family = _coder()
        grids = [each.grid for each in known]
        layout, dims = Layout.of(grids), len(self._sizes)
        decoders = [coder.RangeDecoder(w) for w in words]
        levels_TK = np.zeros((len(layout.step_T), dims), np.int32)
        values = layout.values(levels_TK, self._sizes)
        for start, stop, parts in layout.steps():
            hidden_TU = self._hidden(values[layout.neighbours_T3[start:stop]])
            clipped_TU = np.empty_like(hidden_TU)
            for i in range(dims):
                table_Tl = self._table(i, hidden_TU, clipped_TU)
                try:
                    found = [decoders[image].decode(family, table_Tl[a:b]) for image, a, b in parts]
                except AssertionError:  # no symbol can begin like this
                    raise CodesError(self._damage()) from None
                level_T = found[0] if len(found) == 1 else np.concatenate(found)
                levels_TK[start:stop, i] = level_T
                hidden_TU += self._embed[i][level_T]
            values[start + 1 : stop + 1, :dims] = _centred(levels_TK[start:stop], self._sizes)
        slots = levels_TK.reshape(-1, CODES_PER_PATCH, len(self.levels))
        ids_TS = (slots @ self._basis.astype(np.int32)).astype(np.uint16)
        return [
            ids_TS[places].reshape(*grid, CODES_PER_PATCH)
            for places, grid in zip(layout.places, grids, strict=True)
        ]

    def _tables(self, layout: Layout, levels_TK: np.ndarray) -> np.ndarray:
        """Tables (T, K, l) of all levels of all patches, since all are known."""
        values = layout.values(levels_TK, self._sizes)
        tables_TKl = np.empty((*levels_TK.shape, self._sizes.max()), _EXP.dtype)
        for start in range(0, len(levels_TK), _BLOCK):
            block = slice(start, start + _BLOCK)
            hidden_TU = self._hidden(values[layout.neighbours_T3[block]])
            clipped_TU = np.empty_like(hidden_TU)
            for i in range(len(self._sizes)):
                tables_TKl[block, i] = self._table(i, hidden_TU, clipped_TU)
                hidden_TU += self._embed[i][levels_TK[block, i]]
        return tables_TKl

    def _hidden(self, values_T3I: np.ndarray) -> np.ndarray:
        """What the context gives to hidden (T, U), not yet clipped."""
        x_TI = values_T3I.reshape(len(values_T3I), -1)
        for i, (weight, bias) in enumerate(self._context):
            x_TI = x_TI if i == 0 else np.clip(x_TI, 0, CAP)
            x_TI = np.floor((x_TI @ weight + bias) * np.float32(1 / WEIGHT_UNIT))
        return x_TI

    def _table(self, i: int, hidden_TU: np.ndarray, clipped_TU: np.ndarray) -> np.ndarray:
        """Unnormalised probabilities (T, l) of level i, integers; `clipped_TU` is overwritten."""
        np.clip(hidden_TU, 0, CAP, out=clipped_TU)
        logits_Tl = clipped_TU @ self._head[i] + self._bias[i]
        below = (logits_Tl.max(1, keepdims=True) - logits_Tl) * np.float32(_LOGIT_SCALE)
        return _EXP[np.minimum(below, len(_EXP) - 1).astype(np.intp)]


def _check(tensors: Mapping[str, np.ndarray], sizes: np.ndarray, depth: int) -> None:
    """Names and shapes fit, and no sum can leave the integers that float32 holds."""
    if (sizes.max() - 1) * LEVEL_UNIT > CAP:
        raise ViqError(f"entropy models take FSQ levels up to {CAP // LEVEL_UNIT + 1}")
    try:
        hidden, wide = tensors["embed"].shape[2], tensors["context.0.weight"].shape[0]
        shapes = {
            "embed": (len(sizes), sizes.max(), hidden),
            "head.weight": (len(sizes), sizes.max(), hidden),
            "head.bias": (len(sizes), sizes.max()),
        }
        inputs = _NEIGHBOURS * (len(sizes) + 1)
        for i in range(depth):
            outputs = hidden if i == depth - 1 else wide
            shapes |= {f"context.{i}.weight": (outputs, inputs), f"context.{i}.bias": (outputs,)}
            inputs = outputs
        found = {name: tensor.shape for name, tensor in tensors.items()}
    except (KeyError, IndexError):
        raise ViqError("an entropy model without its tensors: copy it again") from None
    if found != shapes:
        raise ViqError(f"an entropy model of shapes {found}, expected {shapes}: copy it again")
    for name in [f"context.{i}" for i in range(depth)] + ["head"]:
        weight = np.abs(tensors[f"{name}.weight"].astype(np.int64)).sum(-1)
        if (weight * CAP + np.abs(tensors[f"{name}.bias"].astype(np.int64))).max() >= EXACT:
            raise ViqError(f"the weights of {name} are too large to add up exactly in float32")
    # Hidden sums: the context, below EXACT / WEIGHT_UNIT, and one row of embed for every level.
    if (
        np.abs(tensors["embed"].astype(np.int64)).max(1).sum(0).max() + EXACT // WEIGHT_UNIT
        >= EXACT
    ):
        raise ViqError("the weights of embed are too large to add up exactly in float32")


def _coder() -> tuple[Any, Any]:
    """The coder, and the family of its models."""
    stream = constriction()
    return stream.queue, stream.model.Categorical(perfect=False)
