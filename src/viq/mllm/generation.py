"""A language model that also writes codes: pictures as a language (docs/generation.md).

A picture enters the sequence as its size in text ("6x8"), a start token, one token a patch in
raster order, and an end token. Text and special tokens are scored by the language model's own head,
patches by `LevelHead`; both are next-token losses in nats and are simply added. A written patch is
read back as the values of its codes through an MLP. Patches also carry the place of the *next*
patch, for a sequence of tokens does not tell where a row ends.

L = tokens of a packed sequence, T = written patches, S = 4 slots, d = FSQ dims, K = S * d levels of
a patch, E = width of the language model, U = width of the head, B = pictures drawn at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.files import make_readable, write_atomically
from viq.core.levels import check_levels
from viq.core.quiet import quiet
from viq.core.types import CODES_PER_PATCH, IGNORE, IMAGE_TOKEN, Grid, ViqError
from viq.mllm.cache_name import CACHE
from viq.models.language.heads import final_logits
from viq.models.language.packed import base_of, packed_hidden, use_packed_attention
from viq.models.language.vision_language import load_language
from viq.models.layers.blocks import Mlp
from viq.models.layers.places import PLACE_FEATURES, place_features
from viq.models.tokenizer.fsq import FSQ
from viq.weights import checkpoint
from viq.weights.verify import DIGEST, digest_of, digests_of, verify_all, write_digest

LANGUAGE = "language"  # folder of the language model and its words, inside that of a writer


@dataclass(frozen=True, kw_only=True)
class CodeGeneratorConfig:
    """What is added to a language model.

    Attributes:
        levels: of the tokenizer's FSQ.
        tokenizer: whose codes it writes: a bundled name, a folder, or a hub id.
        fingerprint: of that tokenizer.
        grid: rows and columns of patches of the pictures it was trained on, the most frequent.
        most_patches: of a picture it was trained on; it chooses no larger size by itself.
        head_width: U.
    """

    levels: tuple[int, ...]
    tokenizer: str = "viq-tiny"
    fingerprint: str = ""
    grid: tuple[int, int] = (6, 6)
    most_patches: int = 36
    head_width: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_levels(self.levels))
        untrusted.shape(self, most_patches=2**20, head_width=2**14)
        untrusted.fingerprint(self.fingerprint, "fingerprint")
        for side in self.grid:
            untrusted.whole_number(side, "grid", 1, 2**16)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How levels are drawn. Guidance moves away from what the model would draw without a caption:
    logits become unconditional + guidance * (conditional - unconditional); 1 leaves it out."""

    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.guidance < 0:
            raise ViqError(
                f"temperature {self.temperature}, top-p {self.top_p}, guidance {self.guidance}: "
                "use temperature and guidance of at least 0 and a top-p above 0, at most 1"
            )


class LevelHead(nn.Module):
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
            asked, *unconditional = (self._logits(state[:, None], place)[:, 0] for state in states)
            if unconditional:
                asked = unconditional[0] + sampling.guidance * (asked - unconditional[0])
                asked = asked.masked_fill(self._missing(place), -torch.inf)  # was inf - inf
            levels.append(_draw(asked, sampling, generator))
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


class CodeGenerator(nn.Module):
    """Any Hugging Face causal language model, taught to write codes."""

    def __init__(self, language: Any, config: CodeGeneratorConfig) -> None:
        super().__init__()
        use_packed_attention(language)
        width = language.get_input_embeddings().embedding_dim
        self.config, self.language = config, language
        self.fsq = FSQ(config.levels)
        self.read = Mlp(CODES_PER_PATCH * len(config.levels), width, width)
        self.ahead = nn.Linear(PLACE_FEATURES, width)
        self.head = LevelHead(width, config.levels, config.head_width)

    def forward(
        self,
        ids_L: Tensor,
        targets_L: Tensor,
        lengths: Sequence[int],
        codes_TS: Tensor,
        grids_hw: Sequence[Grid],
        scored_T: Tensor,
    ) -> dict[str, Tensor]:
        """Sums of nats over packed samples: `next` of everything scored, of it `text` and `codes`.

        Arguments are those of `viq.data.batching.generation_batches.GenerationBatch`.
        """
        places_L = ids_L == IMAGE_TOKEN
        words_LE = self.language.get_input_embeddings()(ids_L.masked_fill(places_L, 0))
        patches_L = places_L.nonzero()[:, 0]
        extra_LE = torch.zeros_like(words_LE)
        if len(patches_L):
            ahead_TE = torch.cat([self._ahead(grid) for grid in grids_hw])
            values_TE = self.read_codes(codes_TS).to(words_LE.dtype)
            # A patch's own place is told one token before it, where it is predicted.
            extra_LE = extra_LE.index_put((patches_L,), values_TE)
            ahead_TE = ahead_TE.to(words_LE.dtype)  # autocast gives half precision
            extra_LE = extra_LE.index_put((patches_L - 1,), ahead_TE, accumulate=True)
        inputs_LE = words_LE.masked_fill(places_L[:, None], 0) + extra_LE
        hidden_LE = packed_hidden(self.language, inputs_LE, lengths)
        scored_L = targets_L != IGNORE
        logits = self._words(hidden_LE[scored_L])
        text = F.cross_entropy(logits, targets_L[scored_L], reduction="sum")
        written_TE = hidden_LE[patches_L[scored_T] - 1]
        levels_TK = self.fsq.levels_of(codes_TS[scored_T]).flatten(1)
        codes = self.head(written_TE, levels_TK).sum()
        return {"next": text + codes, "text": text, "codes": codes}

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        unconditional: Sequence[int],
        grid: Grid,
        sampling: Sampling,
        generator: torch.Generator | None = None,
        after: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Codebook indices (B, rows, cols, S) for prompts that end with the start token.

        Args:
            unconditional: the prompt without caption, for guidance.
            after: called after each patch with the indices (B, patches so far, S).
        """
        guided = sampling.guidance != 1
        rows = [*prompts, *([unconditional] * len(prompts) if guided else [])]
        ahead_TE = self._ahead(grid)
        inputs_BLE, mask_BL = self._padded(rows)
        inputs_BLE[:, -1] += ahead_TE[0]
        cache, written = None, []
        for patch in range(grid[0] * grid[1]):
            output = base_of(self.language).get_decoder()(
                inputs_embeds=inputs_BLE,
                attention_mask=mask_BL,
                position_ids=(mask_BL.cumsum(1) - 1).clamp_min(0)[:, -inputs_BLE.shape[1] :],
                use_cache=True,
                **{CACHE: cache},
            )
            cache, hidden = output[CACHE], output.last_hidden_state[:, -1]
            asked, without = (hidden.chunk(2)) if guided else (hidden, None)
            levels_BK = self.head.sample(asked, without, sampling, generator)
            written.append(self._codes(levels_BK))
            if after is not None:
                after(torch.stack(written, 1))
            if patch + 1 < len(ahead_TE):
                read_BE = self.read_codes(written[-1]) + ahead_TE[patch + 1]
                inputs_BLE = read_BE.repeat(2 if guided else 1, 1)[:, None]
                mask_BL = F.pad(mask_BL, (0, 1), value=1)
        return torch.stack(written, 1).unflatten(1, grid)

    @torch.inference_mode()
    def generate_text(
        self,
        prompts: Sequence[Sequence[int]],
        allowed: Sequence[int],
        end: int,
        most: int,
        sampling: Sampling,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Words that go on each prompt, drawn of `allowed` alone until `end`, at most so many.

        Nothing is cached: it is for a few words, such as a size.
        """
        tokens: list[list[int]] = [[] for _ in prompts]
        going, choices = list(range(len(prompts))), torch.tensor([*allowed, end])
        for _ in range(most):
            inputs_BLE, mask_BL = self._padded([[*prompts[i], *tokens[i]] for i in going])
            hidden_BLE = (
                base_of(self.language)
                .get_decoder()(
                    inputs_embeds=inputs_BLE,
                    attention_mask=mask_BL,
                    position_ids=(mask_BL.cumsum(1) - 1).clamp_min(0),
                    use_cache=False,
                )
                .last_hidden_state
            )
            logits = self._words(hidden_BLE[:, -1]).cpu()
            words = choices[_draw(logits[:, choices], sampling, generator)].tolist()
            for i, word in zip(going, words, strict=True):
                tokens[i].append(word)
            going = [i for i in going if tokens[i][-1] != end]
            if not going:
                break
        return [words[:-1] if words[-1] == end else words for words in tokens]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the language model in the Hugging Face manner, then what was added to it."""
        folder = Path(folder)
        with quiet():
            self.language.save_pretrained(folder / LANGUAGE)
        write_digest(folder / LANGUAGE)
        make_readable(*(folder / LANGUAGE).iterdir())
        added = {k: v for k, v in self.state_dict().items() if not k.startswith("language.")}
        checkpoint.write_weights(folder / checkpoint.WEIGHTS_FILE, added)
        values = {"format": 1, **checkpoint.to_dict(self.config), DIGEST: digest_of(added)}
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(folder / checkpoint.CONFIG_FILE, text.encode())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> CodeGenerator:
        """A writer from its folder, frozen, in eval mode.

        Raises:
            ViqError: the folder is incomplete, damaged, or of another kind.
        """
        folder = Path(folder)
        values, where = checkpoint.read_config(folder), str(folder / checkpoint.CONFIG_FILE)
        path = folder / checkpoint.WEIGHTS_FILE
        digest = digests_of(values, where)[1]
        own_fingerprint = values.pop("fingerprint", "")  # of the tokenizer whose codes it writes
        for name in ("format", DIGEST):
            values.pop(name, None)
        config = checkpoint.from_dict(
            CodeGeneratorConfig, {**values, "fingerprint": own_fingerprint}, where
        )
        verify_all(path, digest)
        language = load_language(folder / LANGUAGE)
        with checkpoint.building(where):
            writer = cls(language, config)
        own = {k: v for k, v in writer.state_dict().items() if k.startswith("language.")}
        given = {name: tuple(weight.shape) for name, weight in own.items()}
        checkpoint.require_shapes(writer, given | checkpoint.shapes_in(path), str(path))
        weights = checkpoint.read_weights(path, dtype=torch.float32)
        checkpoint.load_strictly(writer, own | weights, str(folder))
        return writer.requires_grad_(False).eval()

    def read_codes(self, codes_TS: Tensor) -> Tensor:
        """Input vectors (T, E) of written patches."""
        values_TK = self.fsq.decode(codes_TS).flatten(1)
        return self.read(values_TK.to(self.read.fc1.weight.dtype))

    def _words(self, hidden_AE: Tensor) -> Tensor:
        """The logits of words, in float32, as the language model gives them."""
        logits = self.language.get_output_embeddings()(hidden_AE)
        return final_logits(logits, self.language.config).float()

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Input vectors (B, L, E) and mask (B, L) of prompts, padded on the left."""
        embed = self.language.get_input_embeddings()
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        device = embed.weight.device
        return embed(ids.to(device)).clone(), mask.to(device)

    def _ahead(self, grid: Grid) -> Tensor:
        """What is added one token before each patch of a picture, (rows * cols, E)."""
        return self.ahead(place_features(grid).to(self.ahead.weight))

    def _codes(self, levels_BK: Tensor) -> Tensor:
        """Codebook indices (B, S) of levels."""
        basis = torch.tensor(self.fsq.basis, device=levels_BK.device)
        return (levels_BK.unflatten(1, (CODES_PER_PATCH, -1)) * basis).sum(-1)


def _draw(logits_Bl: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """One of the levels of each row; temperature 0 takes the most probable."""
    if sampling.temperature == 0:
        return logits_Bl.argmax(-1)
    chances, order = (logits_Bl / sampling.temperature).softmax(-1).sort(-1, descending=True)
    beyond = chances.cumsum(-1) - chances >= sampling.top_p  # the first always stays
    picked = torch.multinomial(chances.masked_fill(beyond, 0), 1, generator=generator)
    return order.gather(-1, picked)[:, 0]
