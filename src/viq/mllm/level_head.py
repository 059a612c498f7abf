"""Heads that give a patch's codes a likelihood and draw them: what they share, and that of FSQ.

A head knows one kind of codes. `LevelHead` is for tokenizers whose ids are made of FSQ levels,
`viq.mllm.transform_head.TransformHead` for those with a transform code.

T = patches, S = 4 slots, d = FSQ dims, K = S * d levels of a patch, E = width of the language
model, U = width of the head, F = values a patch is read as, B = pictures drawn at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core.types import CODES_PER_PATCH, ViqError
from viq.models.layers.blocks import Mlp
from viq.models.tokenizer.fsq import FSQ

NEIGHBOURS = 4  # of a patch, that come before it: left, and left above, above and right above


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How levels are drawn. Guidance moves away from what the model would draw without a caption:
    logits become unconditional + guidance * (conditional - unconditional); 1 leaves it out.

    Attributes:
        candidates: pictures that are drawn of each caption; the one is taken that the model itself,
            asked to describe it, most likely describes by that caption.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float = 1.0
    candidates: int = 1

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ViqError(f"candidates {self.candidates}: use 1 or more")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.guidance < 0:
            raise ViqError(
                f"temperature {self.temperature}, top-p {self.top_p}, guidance {self.guidance}: "
                "use temperature and guidance of at least 0 and a top-p above 0, at most 1"
            )


class PatchHead(nn.Module, ABC):
    """The distribution of a patch's codes given a hidden state, and what written codes say."""

    @abstractmethod
    def values(self, codes_TS: Tensor) -> Tensor:
        """What a language model reads of written patches, (T, F)."""

    @abstractmethod
    def nats(self, hidden_TE: Tensor, codes_TS: Tensor, around_TNF: Tensor) -> Tensor:
        """Negative log-likelihood (T,) of each patch, nats, fp32.

        Args:
            around_TNF: `values` of the neighbours of each, 0 where there is none.
        """

    @abstractmethod
    def write(
        self,
        hidden_BE: Tensor,
        free_BE: Tensor | None,
        around_BNF: Tensor,
        place: tuple[int, int],
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Codes (B, S), int64, of the patch at a place of each picture.

        Args:
            free_BE: hidden states without the caption, for guidance.
            around_BNF: as of `nats`.
            place: its row and column.
        """


class LevelHead(PatchHead):
    """The distribution of a patch's K levels given a hidden state, exactly factorised.

    A softmax over 64,000 codes in four slots cannot be learned from few pictures, and most of its
    weights would be for codes hardly ever seen; heads that are independent within a patch draw
    mixtures (half a red corner, half a blue one). So levels follow one another, each a small
    softmax (8, 8, 8, 5, 5, 5, four times) that knows all before it. The state of level k is a sum:
    what the language model says, plus one embedding for each level already drawn, as in NADE
    (Larochelle and Murray, 2011). A running sum gives all K states at once, so training costs one
    pass of a small MLP; drawing takes K cheap steps a patch and none of the language model.
    """

    def __init__(self, width: int, levels: Sequence[int], head_width: int) -> None:
        super().__init__()
        self.fsq = FSQ(levels)
        self.choices = tuple(levels) * CODES_PER_PATCH  # of each of the K levels
        count, w = len(self.choices), head_width
        self.project = nn.Linear(width, w)
        self.place = nn.Parameter(torch.empty(count, w).normal_(std=0.02))
        self.drawn = nn.Parameter(torch.empty(count, max(levels), w).normal_(std=0.02))
        self.norm = nn.LayerNorm(w)
        self.mlp = Mlp(w, 2 * w, w)
        self.final_norm = nn.LayerNorm(w)
        self.out = nn.Parameter(torch.empty(count, max(levels), w).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(count, max(levels)))

    def values(self, codes_TS: Tensor) -> Tensor:
        return self.fsq.decode(codes_TS).flatten(1)

    def nats(self, hidden_TE: Tensor, codes_TS: Tensor, around_TNF: Tensor) -> Tensor:
        del around_TNF  # the language model has them
        return self(hidden_TE, self.fsq.levels_of(codes_TS).flatten(1))

    def write(
        self,
        hidden_BE: Tensor,
        free_BE: Tensor | None,
        around_BNF: Tensor,
        place: tuple[int, int],
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> Tensor:
        del around_BNF, place  # all patches are alike
        return self.codes_of(self.sample(hidden_BE, free_BE, sampling, generator))

    def codes_of(self, levels_BK: Tensor) -> Tensor:
        """Codebook indices (B, S) of levels."""
        basis = torch.tensor(self.fsq.basis, device=levels_BK.device)
        return (levels_BK.unflatten(1, (CODES_PER_PATCH, -1)) * basis).sum(-1)

    def forward(self, hidden_TE: Tensor, levels_TK: Tensor) -> Tensor:
        """Negative log-likelihood (T,) of each patch, nats, fp32."""
        places = torch.arange(len(self.choices), device=levels_TK.device)
        drawn_TKU = self.drawn[places, levels_TK]
        before_TKU = drawn_TKU.cumsum(1) - drawn_TKU
        logits_TKl = self._logits(self.project(hidden_TE)[:, None] + before_TKU, places)
        nats = F.cross_entropy(logits_TKl.flatten(0, 1), levels_TK.flatten(), reduction="none")
        return nats.view_as(levels_TK).sum(1)

    def sample(
        self,
        hidden_BE: Tensor,
        free_BE: Tensor | None,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Levels (B, K), one after another.

        Args:
            free_BE: hidden states without the caption, for guidance.
        """
        states = [self.project(hidden_BE)]
        if free_BE is not None:
            states.append(self.project(free_BE))
        levels = []
        for k in range(len(self.choices)):
            place = torch.tensor([k], device=hidden_BE.device)
            logits = [self._logits(state[:, None], place)[:, 0] for state in states]
            levels.append(draw_level(logits, sampling, generator))
            states = [state + self.drawn[k, levels[-1]] for state in states]
        return torch.stack(levels, 1)

    def _logits(self, states_TkU: Tensor, places_k: Tensor) -> Tensor:
        """Logits (T, k, most levels) of the levels at some places, fp32."""
        x_TkU = states_TkU + self.place[places_k]
        x_TkU = self.final_norm(x_TkU + self.mlp(self.norm(x_TkU)))
        logits = torch.einsum("tkw,klw->tkl", x_TkU, self.out[places_k]).float()
        return (logits + self.bias[places_k]).masked_fill(self._missing(places_k), -torch.inf)

    def _missing(self, places_k: Tensor) -> Tensor:
        """Which levels (k, most levels) do not exist there."""
        choices = torch.tensor(self.choices, device=places_k.device)[places_k]
        return torch.arange(self.bias.shape[1], device=places_k.device) >= choices[:, None]


def draw_level(
    logits: Sequence[Tensor], sampling: Sampling, generator: torch.Generator | None
) -> Tensor:
    """One of the levels of each row (B,), int64; temperature 0 takes the most probable.

    Args:
        logits: (B, l) fp32, -inf where there is no level; and those without the caption, if
            guidance is to be used.
    """
    logits_Bl, *free = logits
    if free:
        guided_Bl = free[0] + sampling.guidance * (logits_Bl - free[0])
        logits_Bl = guided_Bl.masked_fill(logits_Bl.isneginf(), -torch.inf)  # was inf - inf
    if sampling.temperature == 0:
        return logits_Bl.argmax(-1)
    chances, order = (logits_Bl / sampling.temperature).softmax(-1).sort(-1, descending=True)
    beyond = chances.cumsum(-1) - chances >= sampling.top_p  # the first always stays
    picked = torch.multinomial(chances.masked_fill(beyond, 0), 1, generator=generator)
    return order.gather(-1, picked)[:, 0]
