"""The class of least error of each patch, out of hundreds, and the levels of its coefficients.

Classes are ranked by an estimate: energy outside of their levels plus their mean rounding error. Of
the best few the error itself is computed. A class that was fitted to patches of other energies is
not tried.

Ranking is most of the cost of a code, and nearly all of it are products of matrices. So patches are
taken in the order of their energy, a few hundred at a time, which all try the same classes; classes
with fewer coefficients than others are multiplied by these alone; and what is computed for a few
classes stays in a processor's cache. The coefficients of the best few are computed again rather
than kept, which gives the same bits.

T = patches, V = values of a patch in the basis that all classes share, J = classes, Q =
coefficients of a class, l = levels of a coefficient, k = candidates of a patch, n = classes that a
chunk of patches tries, S = slots: up to L pairs of a patch and a candidate of one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 256  # patches of like energy, which try the same classes
_BLOCK = 16  # classes tried at a time: what is computed for them stays in a processor's cache
_CANDIDATES = 6  # classes of a patch whose error is computed exactly
_LANES = 16  # pairs of a slot
_SLOTS = 64  # whose bases are at hand at a time: 18 KB each


class Levels(NamedTuple):
    """The levels of coefficients for one number of codes."""

    values_JQl: Tensor  # ascending
    counts_JQ: Tensor  # how many of them are used, from 1 on


def least_error(
    values_TV: Tensor,
    log_T: Tensor,
    directions_JVQ: Tensor,
    window_J2: Tensor,
    kinds: Sequence[Levels],
    kind_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """Class (T,) and levels (T, Q), int64, of patches.

    Args:
        log_T: logarithms of energies, which windows are compared with.
        window_J2: from which logarithm to which a class is tried.
        kind_T: int64, which of `kinds` a patch has levels of.
    """
    cand_Tk = kind_T.new_zeros(len(values_TV), min(_CANDIDATES, len(window_J2)))
    never_Tk = torch.ones_like(cand_Tk, dtype=torch.bool)
    ranking = _Ranking(directions_JVQ, window_J2, kinds)
    for chunk in log_T.argsort().split(_CHUNK) if len(log_T) else ():
        near = ranking.near(log_T[chunk[0]], log_T[chunk[-1]])
        chunk = chunk[kind_T[chunk].argsort(stable=True)]
        sizes = kind_T[chunk].bincount(minlength=len(kinds)).tolist()
        estimate_nT = ranking.estimate(values_TV[chunk], near, sizes)
        outside_nT = (log_T[chunk] < window_J2[near, :1]) | (log_T[chunk] > window_J2[near, 1:])
        estimate_Tn = estimate_nT.masked_fill_(outside_nT, torch.inf).T
        count = min(cand_Tk.shape[1], len(near))
        found = estimate_Tn.topk(count, dim=1, largest=False)
        cand_Tk[chunk, :count] = near[found.indices]
        never_Tk[chunk, :count] = found.values.isinf()
    z_TkQ, levels_TkQ = _coefficients(values_TV, directions_JVQ, kinds, kind_T, cand_Tk)
    each_Q = torch.arange(z_TkQ.shape[2], device=z_TkQ.device)
    picked_TkQ = torch.empty_like(z_TkQ)
    for number, kind in enumerate(kinds):
        rows = (kind_T == number).nonzero()[:, 0]
        picked_TkQ[rows] = kind.values_JQl[cand_Tk[rows, :, None], each_Q, levels_TkQ[rows]]
    error_Tk = ((picked_TkQ - z_TkQ).square_() - z_TkQ.square()).sum(2)
    best_T = error_Tk.masked_fill_(never_Tk, torch.inf).argmin(1)
    each_T = torch.arange(len(best_T), device=best_T.device)
    return cand_Tk[each_T, best_T], levels_TkQ[each_T, best_T]


class _Ranking:
    """Estimates of the error of patches in classes."""

    def __init__(self, directions_JVQ: Tensor, window_J2: Tensor, kinds: Sequence[Levels]) -> None:
        self._directions, self._window = directions_JVQ, window_J2
        self._bounds, self._rounding, used_JQ = [], [], None
        for values_JQl, counts_JQ in kinds:
            least_JQ, most_JQ = values_JQl[..., 0], values_JQl[..., -1]
            step_JQ = (most_JQ - least_JQ) / (counts_JQ - 1).clamp_min(1)
            self._bounds.append((least_JQ, most_JQ))
            self._rounding.append(step_JQ.square().sum(1) / 12)
            some_JQ = (least_JQ != 0) | (most_JQ != 0)  # else all levels are 0: it changes nothing
            used_JQ = some_JQ if used_JQ is None else used_JQ | some_JQ
        assert used_JQ is not None
        number_Q = torch.arange(1, used_JQ.shape[1] + 1, device=used_JQ.device)
        self._width_J = (used_JQ * number_Q).amax(1).clamp_min(1)
        self._order_J = self._width_J.argsort(stable=True)

    def near(self, least: Tensor, most: Tensor) -> Tensor:
        """Classes (n,) to try for logarithms of energies in a range, by rising width."""
        window = self._window[self._order_J]
        near = self._order_J[(window[:, 0] <= most) & (window[:, 1] >= least)]
        # Half precision rounds the windows, so there can be gaps between them.
        return near if len(near) else self._order_J

    def estimate(self, values_TV: Tensor, near: Tensor, sizes: Sequence[int]) -> Tensor:
        """Errors (n, T), less the energy of a patch.

        Args:
            sizes: how many of the patches are of each kind; those of a kind come together.
        """
        count, values_VT = len(values_TV), values_TV.T.contiguous()
        bounds = [(low[near, :, None], high[near, :, None]) for low, high in self._bounds]
        widths = self._width_J[near].tolist()
        room = values_TV.new_empty(_BLOCK * self._directions.shape[2] * count)
        error_nT = values_TV.new_empty(len(near), count)
        for start in range(0, len(near), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(near)))
            width, some = widths[part.stop - 1], part.stop - start
            z_nQT = room[: some * width * count].view(some, width, count)
            bases_nQV = self._directions[near[part]].mT[:, :width]
            torch.bmm(bases_nQV, values_VT.expand(some, -1, -1), out=z_nQT)
            stop = 0
            for (low, high), size in zip(bounds, sizes, strict=True):
                rows, stop = slice(stop, stop + size), stop + size
                if not size:
                    continue
                z = z_nQT[..., rows]
                inside = torch.maximum(z, low[part, :width])
                torch.minimum(inside, high[part, :width], out=inside)
                # (z - inside)^2 - z^2, in as few passes over memory as can be
                error_nT[part, rows] = torch.add(inside, z, alpha=-2).mul_(inside).sum(1)
        stop = 0
        for rounding_J, size in zip(self._rounding, sizes, strict=True):
            error_nT[:, stop : stop + size] += rounding_J[near, None]
            stop += size
        return error_nT


def _coefficients(
    values_TV: Tensor,
    directions_JVQ: Tensor,
    kinds: Sequence[Levels],
    kind_T: Tensor,
    cand_Tk: Tensor,
) -> tuple[Tensor, Tensor]:
    """Coefficients (T, k, Q) of patches in their candidates, and the nearest levels of these.

    Pairs of a patch and a candidate are sorted by class and kind, so that many of them are
    multiplied by the same basis and compared with the same thresholds.
    """
    classes, width = len(directions_JVQ), directions_JVQ.shape[2]
    group_P = (kind_T[:, None] * classes + cand_Tk).flatten()
    order_P = group_P.argsort(stable=True)
    pairs_G = group_P.bincount(minlength=len(kinds) * classes)
    slots_G = -(-pairs_G // _LANES)
    first_pair_G, first_slot_G = pairs_G.cumsum(0) - pairs_G, slots_G.cumsum(0) - slots_G
    sorted_P = group_P[order_P]
    within_P = torch.arange(len(order_P), device=order_P.device) - first_pair_G[sorted_P]
    place_P = torch.empty_like(order_P)  # of each pair among the lanes of all slots
    place_P[order_P] = first_slot_G[sorted_P] * _LANES + within_P
    group_S = torch.arange(len(slots_G), device=order_P.device).repeat_interleave(slots_G)
    patch_SL = order_P.new_zeros(len(group_S) * _LANES)  # lanes that are left over: the first patch
    patch_SL[place_P[order_P]] = order_P // cand_Tk.shape[1]
    patch_SL = patch_SL.view(-1, _LANES)
    between = torch.cat([(v[..., 1:] + v[..., :-1]) / 2 for v, _ in kinds])
    most_GQ = torch.cat([counts_JQ for _, counts_JQ in kinds]) - 1
    z_SLQ = values_TV.new_empty(len(group_S), _LANES, width)
    levels_SLQ = order_P.new_empty(z_SLQ.shape)
    for start in range(0, len(group_S), _SLOTS):
        part = slice(start, start + _SLOTS)
        group = group_S[part]
        torch.bmm(values_TV[patch_SL[part]], directions_JVQ[group % classes], out=z_SLQ[part])
        z_SQL = z_SLQ[part].mT.contiguous()
        levels_SQL = torch.searchsorted(between[group], z_SQL)
        levels_SLQ[part] = torch.minimum(levels_SQL, most_GQ[group, :, None]).mT
    shape = *cand_Tk.shape, width
    z_TkQ = z_SLQ.flatten(0, 1)[place_P].view(shape)
    return z_TkQ, levels_SLQ.flatten(0, 1)[place_P].view(shape)
