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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viq.core import untrusted
from viq.core.files import make_readable, write_atomically
from viq.core.levels import check_levels
from viq.core.quiet import quiet
from viq.core.types import CODES_PER_PATCH, IGNORE, IMAGE_TOKEN, Grid
from viq.mllm.cache_name import CACHE
from viq.mllm.level_head import NEIGHBOURS, LevelHead, PatchHead, Sampling, draw_level
from viq.mllm.transform_head import TransformHead
from viq.models.language.heads import final_logits
from viq.models.language.packed import base_of, packed_hidden, use_packed_attention
from viq.models.language.vision_language import load_language
from viq.models.layers.blocks import Mlp
from viq.models.layers.places import PLACE_FEATURES, place_features
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.semantic import MEANING_WIDTH, SemanticConfig
from viq.models.tokenizer.transform_code import TransformConfig
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
        transform, semantic: of a tokenizer with a transform code, and of its meaning.
        detail_width: width of what its features say of pixels.
    """

    levels: tuple[int, ...]
    tokenizer: str = "viq-tiny"
    fingerprint: str = ""
    grid: tuple[int, int] = (6, 6)
    most_patches: int = 36
    head_width: int = 128
    transform: TransformConfig | None = None
    semantic: SemanticConfig | None = None
    detail_width: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_levels(self.levels))
        untrusted.shape(self, most_patches=2**20, head_width=2**14)
        untrusted.fingerprint(self.fingerprint, "fingerprint")
        for side in self.grid:
            untrusted.whole_number(side, "grid", 1, 2**16)
        if self.transform is not None:
            untrusted.whole_number(self.detail_width, "detail_width", self.transform.basis, 2**16)

    @property
    def width_read(self) -> int:
        """F, values that a written patch is read as."""
        if self.transform is None:
            return CODES_PER_PATCH * len(self.levels)
        return self.detail_width + (MEANING_WIDTH if self.semantic is not None else 0)


class CodeGenerator(nn.Module):
    """Any Hugging Face causal language model, taught to write codes."""

    def __init__(self, language: Any, config: CodeGeneratorConfig) -> None:
        super().__init__()
        use_packed_attention(language)
        width = language.get_input_embeddings().embedding_dim
        self.config, self.language = config, language
        self.read = Mlp(config.width_read, width, width)
        self.ahead = nn.Linear(PLACE_FEATURES, width)
        self.head: PatchHead
        self.around = None
        if config.transform is None:
            self.head = LevelHead(width, config.levels, config.head_width)
        else:
            self.head = TransformHead(
                width, config.head_width, config.detail_width, config.transform, config.semantic
            )
            self.around = Mlp(NEIGHBOURS * (config.width_read + 1), width, width)

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
        hidden_LE, around_TNG = self._hidden(ids_L, lengths, codes_TS, grids_hw)
        scored_L = targets_L != IGNORE
        logits = self._words(hidden_LE[scored_L])
        text = F.cross_entropy(logits, targets_L[scored_L], reduction="sum")
        patches_L = (ids_L == IMAGE_TOKEN).nonzero()[:, 0]
        written_TE = hidden_LE[patches_L[scored_T] - 1]
        around_TNF = around_TNG[scored_T, :, :-1]
        codes = self.head.nats(written_TE, codes_TS[scored_T], around_TNF).sum()
        return {"next": text + codes, "text": text, "codes": codes}

    @torch.inference_mode()
    def text_nats(
        self,
        ids_L: Tensor,
        targets_L: Tensor,
        lengths: Sequence[int],
        codes_TS: Tensor,
        grids_hw: Sequence[Grid],
    ) -> Tensor:
        """Nats of the scored words of each sample, fp32; arguments as of `forward`."""
        hidden_LE, _ = self._hidden(ids_L, lengths, codes_TS, grids_hw)
        logits = self._words(hidden_LE)
        nats_L = F.cross_entropy(logits, targets_L, reduction="none", ignore_index=IGNORE)
        return torch.stack([part.sum() for part in nats_L.split(list(lengths))])

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
        guided, count = sampling.guidance != 1, grid[0] * grid[1]
        rows = [*prompts, *([unconditional] * len(prompts) if guided else [])]
        inputs_BLE, mask_BL = self._padded(rows)
        values_BTF = inputs_BLE.new_zeros(len(prompts), 0, self.config.width_read)
        places_TP = place_features(grid).to(self.ahead.weight)
        ahead_BE, around_BNF = self._coming(grid, places_TP, values_BTF)
        inputs_BLE[:, -1] += ahead_BE.repeat(1 + guided, 1)
        cache, written = None, []
        for patch in range(count):
            output = base_of(self.language).get_decoder()(
                inputs_embeds=inputs_BLE,
                attention_mask=mask_BL,
                position_ids=(mask_BL.cumsum(1) - 1).clamp_min(0)[:, -inputs_BLE.shape[1] :],
                use_cache=True,
                **{CACHE: cache},
            )
            cache, hidden = output[CACHE], output.last_hidden_state[:, -1]
            asked, without = (hidden.chunk(2)) if guided else (hidden, None)
            place = divmod(patch, grid[1])
            written.append(self.head.write(asked, without, around_BNF, place, sampling, generator))
            if after is not None:
                after(torch.stack(written, 1))
            if patch + 1 < count:
                values_BF = self.head.values(written[-1])
                values_BTF = torch.cat([values_BTF, values_BF[:, None]], 1)
                ahead_BE, around_BNF = self._coming(grid, places_TP, values_BTF)
                read_BE = self._read(values_BF) + ahead_BE
                inputs_BLE = read_BE.repeat(1 + guided, 1)[:, None]
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
            words = choices[draw_level([logits[:, choices]], sampling, generator)].tolist()
            for i, word in zip(going, words, strict=True):
                tokens[i].append(word)
            going = [i for i in going if tokens[i][-1] != end]
            if not going:
                break
        return [words[:-1] if words[-1] == end else words for words in tokens]

    def take_tables(self, embedder: CodeEmbedder) -> None:
        """Have the tables of the tokenizer whose codes are written, where its codes need some."""
        if isinstance(self.head, TransformHead):
            own = self.head.quantizer.state_dict()
            given = embedder.transform.state_dict()
            self.head.quantizer.load_state_dict({name: given[name] for name in own})

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

    def _hidden(
        self, ids_L: Tensor, lengths: Sequence[int], codes_TS: Tensor, grids_hw: Sequence[Grid]
    ) -> tuple[Tensor, Tensor]:
        """What the language model says at each token (L, E), and `_neighbours` of all patches;
        arguments as of `forward`."""
        places_L = ids_L == IMAGE_TOKEN
        words_LE = self.language.get_input_embeddings()(ids_L.masked_fill(places_L, 0))
        patches_L = places_L.nonzero()[:, 0]
        extra_LE = torch.zeros_like(words_LE)
        around_TNG = words_LE.new_zeros(0, NEIGHBOURS, self.config.width_read + 1)
        if len(patches_L):
            values_TF = self.head.values(codes_TS)
            values_TE = self._read(values_TF).to(words_LE.dtype)
            images = values_TF.split([rows * cols for rows, cols in grids_hw])
            around_TNG = _neighbours(images, grids_hw)
            ahead_TE = self._ahead(torch.cat([*map(place_features, grids_hw)]), around_TNG)
            # A patch's own place is told one token before it, where it is predicted.
            extra_LE = extra_LE.index_put((patches_L,), values_TE)
            ahead_TE = ahead_TE.to(words_LE.dtype)  # autocast gives half precision
            extra_LE = extra_LE.index_put((patches_L - 1,), ahead_TE, accumulate=True)
        inputs_LE = words_LE.masked_fill(places_L[:, None], 0) + extra_LE
        return packed_hidden(self.language, inputs_LE, lengths), around_TNG

    def _read(self, values_TF: Tensor) -> Tensor:
        """Input vectors (T, E) of what written patches are read as."""
        return self.read(values_TF.to(self.read.fc1.weight.dtype))

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

    def _ahead(self, places_TP: Tensor, around_TNG: Tensor) -> Tensor:
        """What is added one token before each patch of pictures, (T, E): its place and, of codes of
        a transform, its neighbours."""
        ahead_TE = self.ahead(places_TP.to(self.ahead.weight))
        if self.around is None:
            return ahead_TE
        return ahead_TE + self.around(around_TNG.flatten(1).to(self.around.fc1.weight.dtype))

    def _coming(self, grid: Grid, places_TP: Tensor, values_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """Of the patch that comes after so many of each picture, `_ahead` (B, E) and what its
        neighbours are read as (B, N, F).

        Args:
            places_TP: `place_features` of the grid.
        """
        pictures, patch, _ = values_BTF.shape
        row, cols = patch // grid[1], grid[1]
        top = max(0, row - 1)  # a patch has no neighbours but in its row and in that above
        lines = _neighbours(values_BTF[:, top * cols :], [(row - top + 1, cols)] * pictures)
        around_BNG = lines.unflatten(0, (pictures, -1))[:, patch - top * cols]
        ahead_BE = self._ahead(places_TP[patch].expand(pictures, -1), around_BNG)
        return ahead_BE, around_BNG[..., :-1]


def _neighbours(images: Iterable[Tensor], grids_hw: Sequence[Grid]) -> Tensor:
    """What the patches left of each are read as, and those left above, above, and right above it:
    (T, N, F + 1) of all pictures; the last value of each says that there is one.

    Args:
        images: what the patches of each are read as, (n, F) in raster order; maybe only the first
            ones, of which then only the next patch has all its neighbours.
    """
    parts = []
    pairs = zip(images, grids_hw, strict=True)
    for (_, (rows, cols)), run in groupby(pairs, lambda pair: (len(pair[0]), pair[1])):
        values_BnF = torch.stack([values_nF for values_nF, _ in run])
        missing = rows * cols - values_BnF.shape[1]
        whole_BTF = F.pad(F.pad(values_BnF, (0, 1), value=1), (0, 0, 0, missing))
        padded = F.pad(whole_BTF.unflatten(1, (rows, cols)), (0, 0, 1, 1, 1, 0))
        above = [padded[:, :-1, i : i + cols] for i in range(NEIGHBOURS - 1)]
        parts.append(torch.stack([padded[:, 1:, :cols], *above], 3).flatten(0, 2))
    return torch.cat(parts)
