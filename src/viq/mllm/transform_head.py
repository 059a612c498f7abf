"""The head for tokenizers with a transform code: likelihoods and draws of what its ids say.

An id of such a tokenizer is a mixed-radix number whose radices depend on the patch's class
(`viq.models.tokenizer.transform_code`), so its digits as FSQ levels mean nothing. What is drawn is
what the codes say, one after another: the class, the two digits of the mean, the level of each
coefficient that the class has, and, where a patch's fourth code is left to meaning, its six levels.

Each class has directions of its own, and most classes are seldom seen. So the head answers in the
basis that all classes share: it expects a patch there, some of it taken from the patches around it,
and the direction of a coefficient picks its part of that. What is learnt for one class then serves
all. Coefficients come in blocks, the two strongest alone, then 2, 4, 8 and so on, which are drawn
at once: they are principal components, so that they hardly depend on each other, and weak.

T = patches, S = 4 slots, C = classes of them, V = values of a patch in the shared basis, Q =
coefficients of a class, q = those of a block, l = levels of a coefficient, N = 4 neighbours, d =
levels of a code of meaning, n = patches that have one, E = width of the language model, U = width
of the head, F = values a patch is read as, B = pictures drawn at once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.types import CODES_PER_PATCH
from viq.mllm.level_head import NEIGHBOURS, PatchHead, Sampling, draw_level
from viq.models.layers.blocks import Mlp
from viq.models.tokenizer.semantic import GROUP, SemanticConfig, SemanticValues
from viq.models.tokenizer.transform_code import Indices, TransformConfig
from viq.models.tokenizer.transform_quantizer import TransformQuantizer

_NAMES = 3  # class, coarse and fine digit of the mean: what is drawn before coefficients
_SHARP = (-4.0, 8.0)  # logarithm of the precision of a coefficient, in units of its own size
_CLOSED = -1.4  # what gates of neighbours begin with: a fifth of each
_FAR = 4.0  # a coefficient may expect so many times its own size of what is usual


class Coefficients(NamedTuple):
    """Of some patches, what their classes say about their coefficients.

    Attributes:
        towards_TQV: what a coefficient takes of the patch that is expected.
        steps_TQV: what one unit of it adds to the patch.
        amounts_TQl: of its levels, in units of its own size; ascending.
        counts_TQ: how many levels there are.
    """

    towards_TQV: Tensor
    steps_TQV: Tensor
    amounts_TQl: Tensor
    counts_TQ: Tensor


class TransformHead(PatchHead):
    """The distribution of a transform-coded patch given a hidden state, exactly factorised.

    As in `viq.mllm.level_head.LevelHead`, the state of a choice is what the language model says
    plus something for each choice already made, and one small MLP reads all states. Of a
    coefficient the answer is a mean and a precision, as of a Gaussian over amounts, plus logits of
    levels by number; a softmax over the levels that the class gives it makes them a distribution.

    Args:
        width: E.
        head_width: U.
        detail_width: width of what features say of pixels (`TransformQuantizer.detail_width`).
        transform, semantic: of the tokenizer.

    Attributes:
        quantizer: the tokenizer's tables, which are not trained.
    """

    def __init__(
        self,
        width: int,
        head_width: int,
        detail_width: int,
        transform: TransformConfig,
        semantic: SemanticConfig | None,
    ) -> None:
        super().__init__()
        self.quantizer = TransformQuantizer(detail_width, transform).requires_grad_(False)
        self.semantic = SemanticValues(semantic) if semantic is not None else None
        meant = self.semantic.fsq.levels if self.semantic is not None else ()
        # Choices that are names: class, coarse, fine, then levels of meaning; all in one table.
        self.choices = (transform.classes, *transform.means, *meant)
        self.blocks = _blocks(transform.coefficients)
        count, names, w = transform.coefficients, sum(self.choices), head_width
        self.project = nn.Linear(width, w)
        self.place = nn.Parameter(
            torch.empty(len(self.choices) + len(self.blocks), w).normal_(std=0.02)
        )
        self.drawn = nn.Parameter(torch.empty(names, w).normal_(std=0.02))
        self.add = nn.Linear(transform.basis, w, bias=False)
        self.norm = nn.LayerNorm(w)
        self.mlp = Mlp(w, 2 * w, w)
        self.final_norm = nn.LayerNorm(w)
        self.out = nn.Parameter(torch.empty(names, w).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(names))
        self.expect = nn.Linear(w, transform.basis)
        self.copied = nn.Parameter(torch.eye(transform.basis).repeat(NEIGHBOURS, 1, 1))
        self.gate = nn.Linear(w, NEIGHBOURS)
        nn.init.constant_(self.gate.bias, _CLOSED)
        self.sharp = nn.Linear(w, count)
        self.out_levels = nn.Parameter(torch.empty(count, transform.levels, w).normal_(std=0.02))
        self.bias_levels = nn.Parameter(torch.zeros(count, transform.levels))

    def values(self, codes_TS: Tensor) -> Tensor:
        """Values in the shared basis, the class, and values of meaning, (T, F).

        Values of sharp edges are many times as large as those of photos: their inverse hyperbolic
        sine is taken.
        """
        code, basis = self.quantizer.code, self.quantizer.code.config.basis
        detail_TF = self.quantizer.features(codes_TS, ())
        parts = [detail_TF[:, :basis].asinh(), detail_TF[:, basis:]]
        if self.semantic is not None:
            said_T = code.meaning(codes_TS)
            values_TF = self.semantic(said_T.clamp(0, self.semantic.ids - 1))
            parts.append(values_TF.masked_fill((said_T < 0)[:, None], 0))
        return torch.cat(parts, 1)

    def nats(self, hidden_TE: Tensor, codes_TS: Tensor, around_TNF: Tensor) -> Tensor:
        """Negative log-likelihood (T,) of each patch, nats, fp32.

        Whether a fourth code is meaning, and its phase, are taken as known: its place says both.
        """
        # Amounts of a sharp coefficient lie closer than half precision tells apart.
        kind, dtype = hidden_TE.device.type, self.project.weight.dtype
        with torch.autocast(kind, enabled=False):
            return self._nats(hidden_TE.to(dtype), codes_TS, around_TNF.to(dtype))

    def _nats(self, hidden_TE: Tensor, codes_TS: Tensor, around_TNF: Tensor) -> Tensor:
        code = self.quantizer.code
        said, meant_T = code.unpack(codes_TS), code.meaning(codes_TS)
        short_T = meant_T >= 0
        state_TU = self.project(hidden_TE)
        nats_T = torch.zeros(len(codes_TS), device=codes_TS.device)
        for number, name_T in enumerate((said.classes_T, said.coarse_T, said.fine_T)):
            logits_Tl = self._name_logits(state_TU, number)
            nats_T = nats_T + F.cross_entropy(logits_Tl, name_T, reduction="none")
            state_TU = state_TU + self._name_drawn(number, name_T)
        found = self._coefficients(said.classes_T, short_T)
        copies_TNV = self._copies(around_TNF)
        for block in range(len(self.blocks)):
            levels_Tq = said.levels_TQ[:, self.blocks[block]]
            logits_Tql = self._block_logits(state_TU, block, found, copies_TNV)
            nats_Tq = F.cross_entropy(logits_Tql.mT, levels_Tq, reduction="none")
            nats_T = nats_T + nats_Tq.sum(1)
            state_TU = state_TU + self._block_drawn(block, levels_Tq, found)
        if self.semantic is None or not bool(short_T.any()):
            return nats_T
        state_nU = state_TU[short_T]
        index_n = (
            meant_T[short_T].clamp_max(self.semantic.ids - 1) % self.semantic.fsq.codebook_size
        )
        nats_n = torch.zeros(len(index_n), device=nats_T.device)
        for number, level_n in enumerate(self.semantic.fsq.levels_of(index_n).T, _NAMES):
            logits_nl = self._name_logits(state_nU, number)
            nats_n = nats_n + F.cross_entropy(logits_nl, level_n, reduction="none")
            state_nU = state_nU + self._name_drawn(number, level_n)
        return nats_T.index_add(0, short_T.nonzero()[:, 0], nats_n)

    def write(
        self,
        hidden_BE: Tensor,
        free_BE: Tensor | None,
        around_BNF: Tensor,
        place: tuple[int, int],
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> Tensor:
        code = self.quantizer.code
        short = code.config.shares and not (place[0] % GROUP or place[1] % GROUP)
        states = [self.project(hidden_BE)]
        if free_BE is not None:
            states.append(self.project(free_BE))

        def name(number: int) -> Tensor:
            logits = [self._name_logits(state_BU, number) for state_BU in states]
            drawn_B = draw_level(logits, sampling, generator)
            states[:] = [state + self._name_drawn(number, drawn_B) for state in states]
            return drawn_B

        class_B, coarse_B, fine_B = (name(number) for number in range(_NAMES))
        found = self._coefficients(class_B, torch.full_like(class_B, short, dtype=torch.bool))
        copies_BNV, levels = self._copies(around_BNF), []
        for block in range(len(self.blocks)):
            logits = [
                self._block_logits(state, block, found, copies_BNV).flatten(0, 1)
                for state in states
            ]
            drawn_Bq = draw_level(logits, sampling, generator).view(len(class_B), -1)
            levels.append(drawn_Bq)
            states = [state + self._block_drawn(block, drawn_Bq, found) for state in states]
        said = Indices(class_B, coarse_B, fine_B, torch.cat(levels, 1))
        codes_BS = code.pack(said, CODES_PER_PATCH - int(short))
        if short:
            codes_BS[:, -1] = code.config.detail
        if short and self.semantic is not None:
            fsq = self.semantic.fsq
            row, column = (side // GROUP % GROUP for side in place)
            phase = GROUP * row + column
            meant_Bd = torch.stack([name(i) for i in range(_NAMES, len(self.choices))], 1)
            basis = torch.tensor(fsq.basis, device=meant_Bd.device)
            codes_BS[:, -1] += phase * fsq.codebook_size + (meant_Bd * basis).sum(1)
        return codes_BS

    def _answer(self, state_TU: Tensor, place: int) -> Tensor:
        """What the MLP makes of the state before a choice, (T, U)."""
        x_TU = state_TU + self.place[place]
        return self.final_norm(x_TU + self.mlp(self.norm(x_TU)))

    def _name_logits(self, state_TU: Tensor, number: int) -> Tensor:
        """Logits (T, choices) of one of the choices that are names, fp32."""
        part = self._part(number)
        return (self._answer(state_TU, number) @ self.out[part].T).float() + self.bias[part]

    def _name_drawn(self, number: int, name_T: Tensor) -> Tensor:
        return F.embedding(name_T, self.drawn[self._part(number)])

    def _part(self, number: int) -> slice:
        """Where a choice stands in the table of names."""
        first = sum(self.choices[:number])
        return slice(first, first + self.choices[number])

    def _copies(self, around_TNF: Tensor) -> Tensor:
        """What a patch may take of its neighbours, (T, N, V), in units of what photos have."""
        values_TNV = around_TNF[..., : len(self.quantizer.scale)].sinh()
        return torch.einsum("tnv,nwv->tnw", values_TNV, self.copied)

    def _block_logits(
        self, state_TU: Tensor, block: int, found: Coefficients, copies_TNV: Tensor
    ) -> Tensor:
        """Logits (T, q, most levels) of a block of coefficients, fp32; -inf where the class has no
        such level."""
        part = self.blocks[block]
        amounts_Tql, counts_Tq = found.amounts_TQl[:, part], found.counts_TQ[:, part]
        most = int(counts_Tq.max()) if len(counts_Tq) else 1
        amounts_Tql = amounts_Tql[..., :most]
        answer_TU = self._answer(state_TU, len(self.choices) + block)
        by_number_Tql = torch.einsum("tu,qlu->tql", answer_TU, self.out_levels[part, :most])
        by_number_Tql = by_number_Tql.float() + self.bias_levels[part, :most]
        gates_T1N = self.gate(answer_TU).sigmoid()[:, None]
        patch_TV = (self.expect(answer_TU) + (gates_T1N @ copies_TNV)[:, 0]).float()
        mean_Tq = (found.towards_TQV[:, part] @ patch_TV[..., None])[..., 0]
        precision_Tq = self.sharp(answer_TU)[:, part].float().clamp(*_SHARP).exp()
        far_Tql = (amounts_Tql - mean_Tq[..., None]).square() * precision_Tq[..., None] / 2
        live_Tql = torch.arange(most, device=counts_Tq.device) < counts_Tq[..., None]
        logits_Tql = by_number_Tql + _log_widths(amounts_Tql, live_Tql) - far_Tql
        return logits_Tql.masked_fill(~live_Tql, -torch.inf)

    def _block_drawn(self, block: int, levels_Tq: Tensor, found: Coefficients) -> Tensor:
        """What the state has more (T, U) once a block is drawn."""
        part = self.blocks[block]
        amounts_Tq = found.amounts_TQl[:, part].gather(2, levels_Tq[..., None])[..., 0]
        patch_TV = (amounts_Tq[:, None] @ found.steps_TQV[:, part])[:, 0]
        return self.add(patch_TV.to(self.add.weight.dtype))

    def _coefficients(self, classes_T: Tensor, short_T: Tensor) -> Coefficients:
        """What the classes of patches say."""
        code, scale_V = self.quantizer.code, self.quantizer.scale
        classes_C, at_T = classes_T.unique(return_inverse=True)
        whole_CQ = code.counts(CODES_PER_PATCH)[classes_C]
        short_CQ = code.counts(CODES_PER_PATCH - 1)[classes_C]
        whole_CQl, short_CQl = code.values[classes_C], code.short_values[classes_C]
        number_l = torch.arange(whole_CQl.shape[2], device=classes_T.device)
        energy_CQ = whole_CQl.square().mul(number_l < whole_CQ[..., None]).sum(2)
        size_CQ1 = (energy_CQ / whole_CQ).sqrt().clamp_min(1e-4)[..., None]
        # A patch is expected in units of what photos usually have.
        usual_CQV = code.directions[classes_C].mT * scale_V
        usual_CQ1 = usual_CQV.norm(dim=2, keepdim=True).clamp_min(1e-6)
        share_CQ1 = (usual_CQ1 / size_CQ1).clamp_max(_FAR) / usual_CQ1
        steps_CQV = code.directions[classes_C].mT / scale_V * size_CQ1
        amounts_TQl = torch.where(
            short_T[:, None, None], (short_CQl / size_CQ1)[at_T], (whole_CQl / size_CQ1)[at_T]
        )
        return Coefficients(
            towards_TQV=(usual_CQV * share_CQ1)[at_T],
            steps_TQV=steps_CQV[at_T],
            amounts_TQl=amounts_TQl,
            counts_TQ=torch.where(short_T[:, None], short_CQ[at_T], whole_CQ[at_T]),
        )


def _blocks(count: int) -> tuple[slice, ...]:
    """Coefficients that are drawn at once: 1, 1, 2, 4, 8 and so on."""
    ends = [0, *(2**power for power in range((count - 1).bit_length())), count]
    return tuple(slice(first, end) for first, end in pairwise(ends))


def _log_widths(amounts_Tql: Tensor, live_Tql: Tensor) -> Tensor:
    """Logarithms of half the distance between the neighbours of each level; of the first and the
    last, of the distance to the only one."""
    steps = amounts_Tql.diff(dim=2).masked_fill(~live_Tql[..., 1:], 0)
    left, right = F.pad(steps, (1, 0)), F.pad(steps, (0, 1))
    neighbours = (left > 0).long() + (right > 0).long()
    return ((left + right) / neighbours.clamp_min(1)).clamp_min(1e-3).log()
