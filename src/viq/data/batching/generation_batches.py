"""Pictures as text with patches in it: what a model that writes codes is trained on.

    <|im_start|>user\\nDraw a red circle.<|im_end|>\\n<|im_start|>assistant\\n
    6x6<|vision_start|>(36 patches)<|vision_end|><|im_end|>

The size mark is plain text, the two marks are Qwen2.5's own special tokens. A tenth of the
captions is dropped ("Draw."), which is what guidance moves away from. The other way round, a
picture is read and its caption is the answer; then patches are not scored.

T = patches, S = 4 slots.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viq.core.codes import Codes
from viq.core.types import IGNORE, IMAGE_TOKEN, Grid, ViqError
from viq.data.batching.mixture import Stream
from viq.data.text.chat_format import END, ChatConfig, encode_chat, encode_prompt
from viq.data.text.conversations import IMAGE_PLACEHOLDER, Turn
from viq.store.columns import Extras
from viq.store.folder import Store
from viq.store.rows import CodesWriter, StoreInfo

BEGIN, FINISH = "<|vision_start|>", "<|vision_end|>"
UNCONDITIONAL_PROMPT = "Draw."  # what is asked where the caption is left out
_READ = "Describe the image."


@dataclass(frozen=True, kw_only=True)
class CodePair:
    """A sentence and the codes of a picture it is true of."""

    caption: str
    codes: Codes


@dataclass(frozen=True, kw_only=True)
class GenerationSample:
    """One sample as tokens: as `viq.data.text.chat_format.EncodedChat`, with one picture in it.

    Attributes:
        writes: whether its patches are scored.
    """

    ids: list[int]
    labels: list[int]
    codes: Codes
    writes: bool


@dataclass(frozen=True, kw_only=True)
class GenerationBatch:
    """Samples packed into one sequence, with the pictures in them.

    Attributes:
        ids_L: words and marks; IMAGE_TOKEN where a patch stands.
        targets_L: the word to come at each place, IGNORE where none is scored.
        lengths: tokens of each sample.
        codes_TS: codebook indices of all patches, in the order of their places.
        grids_hw: of each picture.
        scored_T: whether the patch is written (else it is only read).
    """

    ids_L: Tensor
    targets_L: Tensor
    lengths: tuple[int, ...]
    codes_TS: Tensor
    grids_hw: tuple[Grid, ...]
    scored_T: Tensor

    @property
    def counts(self) -> dict[str, int]:
        """What sums of losses are divided by."""
        words, patches = int((self.targets_L != IGNORE).sum()), int(self.scored_T.sum())
        return {"answers": words, "patches": patches, "scored": words + patches,
                "tokens": len(self.ids_L)}  # fmt: skip

    def to(self, device: torch.device) -> GenerationBatch:
        """The same on another device."""
        return GenerationBatch(
            ids_L=self.ids_L.to(device),
            targets_L=self.targets_L.to(device),
            lengths=self.lengths,
            codes_TS=self.codes_TS.to(device),
            grids_hw=self.grids_hw,
            scored_T=self.scored_T.to(device),
        )


def read_pairs(path: str | Path) -> tuple[StoreInfo, list[CodePair]]:
    """The pairs of a store, or of a Parquet file of codes, whose rows have a caption, and who made
    the codes.

    Raises:
        ViqError: no codes, or no captions.
    """
    store = Store(path)
    pairs = [
        CodePair(caption=str(row.extras["caption"]), codes=row.codes)
        for row in store.rows(["caption"])
        if row.codes is not None and row.extras.get("caption")
    ]
    if not pairs:
        raise ViqError(f"{path}: no row has codes and a caption; encode pictures with captions")
    return store.info, pairs


def write_pairs(path: Path, info: StoreInfo, pairs: Iterable[CodePair]) -> None:
    """A Parquet file that `read_pairs` reads."""
    import pyarrow as pa

    with CodesWriter(path, info, Extras([pa.field("caption", pa.string())])) as writer:
        for number, pair in enumerate(pairs):
            writer.add(f"{number:07d}", pair.codes, extras={"caption": pair.caption})


def add_image_tokens(tokenizer: Any) -> int:
    """Teach a text tokenizer the marks around a picture; gives how many words it knows then."""
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [BEGIN, FINISH]}, replace_extra_special_tokens=False
    )
    return len(tokenizer)


def generation_prompt(caption: str | None, grid: Grid, tokenizer: Any) -> list[int]:
    """Ids of the order to draw, up to the begin mark of the picture; None: without caption."""
    return [*instruction_prompt(caption, tokenizer), *_begun(grid, tokenizer)]


def instruction_prompt(caption: str | None, tokenizer: Any) -> list[int]:
    """Ids of the order to draw, up to the size mark; None: without caption."""
    order = UNCONDITIONAL_PROMPT if caption is None else f"Draw {caption}."
    return encode_prompt([Turn(role="user", text=order)], [], tokenizer)


def size_tokens(tokenizer: Any) -> tuple[list[int], int]:
    """Ids of the words that a size mark is made of, and of the begin mark that ends it."""
    words = tokenizer.encode("0123456789x", add_special_tokens=False)
    return words, _marks(tokenizer, BEGIN)[0]


def parse_size(words: Sequence[int], tokenizer: Any) -> Grid | None:
    """Rows and columns of patches that a size mark says; None if it says nothing of the kind."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", tokenizer.decode(words).replace(" ", ""))
    return (int(found[1]), int(found[2])) if found else None


def encode_generation(
    pair: CodePair, tokenizer: Any, *, unconditional: bool = False
) -> GenerationSample:
    """A picture drawn to its caption, or to none."""
    asked = instruction_prompt(None if unconditional else pair.caption, tokenizer)
    begun, ended = _begun(pair.codes.grid, tokenizer), _marks(tokenizer, FINISH, END)
    patches = pair.codes.grid[0] * pair.codes.grid[1]
    return GenerationSample(
        ids=[*asked, *begun, *[IMAGE_TOKEN] * patches, *ended],
        labels=[*[IGNORE] * len(asked), *begun, *[IGNORE] * patches, *ended],
        codes=pair.codes,
        writes=True,
    )


def encode_description(pair: CodePair, tokenizer: Any) -> GenerationSample:
    """A picture that is described by its caption."""
    rows, cols = pair.codes.grid
    turns = [
        Turn(role="user", text=f"{rows}x{cols}{IMAGE_PLACEHOLDER}\n{_READ}"),
        Turn(role="assistant", text=pair.caption),
    ]
    config = ChatConfig(system="", max_length=2**31)
    chat = encode_chat(turns, [rows * cols + 2], tokenizer, config)
    first = chat.ids.index(IMAGE_TOKEN)
    ids = list(chat.ids)
    ids[first], ids[first + rows * cols + 1] = _marks(tokenizer, BEGIN, FINISH)
    return GenerationSample(ids=ids, labels=chat.labels, codes=pair.codes, writes=False)


def pack_generation(samples: Sequence[GenerationSample]) -> GenerationBatch:
    """Join samples; at least one."""
    codes = [torch.from_numpy(s.codes.ids.astype(np.int64)).flatten(0, 1) for s in samples]
    return GenerationBatch(
        ids_L=torch.tensor([i for s in samples for i in s.ids]),
        targets_L=torch.tensor([label for s in samples for label in (*s.labels[1:], IGNORE)]),
        lengths=tuple(len(s.ids) for s in samples),
        codes_TS=torch.cat(codes),
        grids_hw=tuple(s.codes.grid for s in samples),
        scored_T=torch.cat(
            [torch.full((len(c),), s.writes) for c, s in zip(codes, samples, strict=True)]
        ),
    )


class GenerationStream(Stream[CodePair, GenerationBatch]):
    """The packs of a training run: functions of seed and number alone, so any can be made again.

    Args:
        pairs: sentences and codes, gone through in a new order each time.
        samples: in a pack.
        read: share of samples that describe instead of drawing.
        unconditional: share of drawings whose caption is left out.
    """

    def __init__(
        self,
        pairs: Sequence[CodePair],
        tokenizer: Any,
        *,
        samples: int,
        read: float,
        unconditional: float,
        seed: int,
        lanes: Sequence[int] = (0,),
        all_lanes: int = 1,
    ) -> None:
        super().__init__(None, lanes=lanes, all_lanes=all_lanes, budgets=())
        self.pairs, self.tokenizer, self.seed = pairs, tokenizer, seed
        self.samples, self.read, self.unconditional = samples, read, unconditional

    def _prepare(self, example: Any) -> CodePair:
        raise AssertionError("packs are made of their number alone")

    def _cost(self, item: CodePair) -> tuple[int, ...]:
        return ()

    def _collate(self, items: Sequence[CodePair], number: int) -> GenerationBatch:
        rng = np.random.default_rng([self.seed, number])
        first = number * self.samples
        return pack_generation(
            [self._sample(self._pair(place), rng) for place in range(first, first + self.samples)]
        )

    def _pair(self, place: int) -> CodePair:
        epoch, index = divmod(place, len(self.pairs))
        return self.pairs[_order(len(self.pairs), self.seed, epoch)[index]]

    def _sample(self, pair: CodePair, rng: np.random.Generator) -> GenerationSample:
        if rng.random() < self.read:
            return encode_description(pair, self.tokenizer)
        return encode_generation(
            pair, self.tokenizer, unconditional=rng.random() < self.unconditional
        )


@functools.lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> list[int]:
    """A shuffle of all pairs."""
    return np.random.default_rng([seed, 1, epoch]).permutation(length).tolist()


def _begun(grid: Grid, tokenizer: Any) -> list[int]:
    """Size mark and begin mark."""
    size = tokenizer.encode(f"{grid[0]}x{grid[1]}", add_special_tokens=False)
    return [*size, *_marks(tokenizer, BEGIN)]


def _marks(tokenizer: Any, *marks: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(mark) for mark in marks]
