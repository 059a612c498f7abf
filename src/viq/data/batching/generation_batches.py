"""Pictures as text with patches in it: what a model that generates codes is trained on.

    <|im_start|>user\\nDraw a red circle.<|im_end|>\\n<|im_start|>assistant\\n
    6x6<|vision_start|>(36 patches)<|vision_end|><|im_end|>

The size is plain text, the two vision tokens are special tokens of Qwen2.5. A tenth of the captions
is dropped ("Draw."), which is what guidance moves away from. The other way round, a
picture is read and its caption is the answer; then patches are not scored.

Samples of stores that have a caption are drawn and packed as all data are
(`viq.data.batching.mixture`), a fixed number to a pack.

T = patches, S = 4 slots.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from viq.core.codes import Codes
from viq.core.types import IGNORE, IMAGE_TOKEN, Grid, ViqError
from viq.data.batching.code_batches import CodeSource, CodesRef
from viq.data.batching.mixture import Mixture, Position, Stream
from viq.data.corpora.corpora import samples_of
from viq.data.sources.base import Row
from viq.data.sources.open import concatenate
from viq.data.text.chat_format import ChatConfig, encode_chat, encode_prompt
from viq.data.text.chat_template import answer_ends
from viq.data.text.conversations import IMAGE_PLACEHOLDER, Turn
from viq.store.columns import Extras
from viq.store.rows import CodesWriter, StoreInfo

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
UNCONDITIONAL_PROMPT = "Draw."  # what is asked where the caption is left out
_READ = "Describe the image."
_CAPTION = "caption"  # column

Task = Literal["generate", "generate unconditionally", "describe"]


@dataclass(frozen=True, kw_only=True)
class CodePair:
    """A sentence and the codes of a picture it is true of."""

    caption: str
    codes: Codes


@dataclass(frozen=True, kw_only=True)
class GenerationSample:
    """One sample as tokens: as `viq.data.text.chat_format.EncodedChat`, with one picture in it.

    Attributes:
        generates: whether its patches are scored.
    """

    ids: list[int]
    labels: list[int]
    codes: Codes
    generates: bool


@dataclass(frozen=True, kw_only=True)
class GenerationBatch:
    """Samples packed into one sequence, with the pictures in them.

    Attributes:
        ids_L: of text; IMAGE_TOKEN where a patch stands.
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


@dataclass(frozen=True, kw_only=True)
class PairExample:
    """A pair, and what is to be learnt from it."""

    pair: CodePair
    task: Task


class PairCorpus:
    """The pairs of stores: every picture of every sample that has a caption, none held out.

    All are gone over once, to know how many there are; codes stay where they are.

    Args:
        stores: with the column `caption`.
        caption_ratio: share of examples that describe a picture instead of drawing it.
        caption_dropout: share of the others whose caption is left out.

    Attributes:
        samples: pairs of each shard.
        captions: all there are.
        grids: how many pictures have it, by grid; in the order they were met.

    Raises:
        ViqError: no captions in one of them, or a damaged sample.
    """

    name = "pairs"

    def __init__(
        self,
        stores: Sequence[CodeSource],
        *,
        caption_ratio: float = 0.0,
        caption_dropout: float = 0.0,
    ) -> None:
        self._source = concatenate(stores)
        self._caption_ratio, self._caption_dropout = caption_ratio, caption_dropout
        self.captions: set[str] = set()
        self.grids = Counter[Grid]()
        self._rows: list[int] = []  # of each pair, in order
        self._images: list[int] = []  # which of its row
        first = 0
        for store in stores:
            before = len(self._rows)
            for number, row in enumerate(store, first):
                self._add(number, row)
            if len(self._rows) == before:
                raise ViqError(
                    f"{store.name}: no row has codes and a caption; encode pictures with captions"
                )
            first += len(store)
        self.samples = samples_of(self._rows, self._source.shards)

    def _add(self, number: int, row: Row) -> None:
        for image, pair in enumerate(_pairs(row)):
            self._rows.append(number)
            self._images.append(image)
            self.captions.add(pair.caption)
            self.grids[pair.codes.grid] += 1

    @property
    def length(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return f"{self.name}:{index}"

    def pair(self, index: int) -> CodePair:
        """One pair, in the order of the stores. Raises CodesError for a damaged shard."""
        return list(_pairs(self._source[self._rows[index]]))[self._images[index]]

    def example(self, index: int, rng: random.Random) -> PairExample:
        """Raises CodesError for a damaged shard."""
        task = choose_task(rng, self._caption_ratio, self._caption_dropout)
        return PairExample(pair=self.pair(index), task=task)


def choose_task(rng: random.Random, caption_ratio: float, caption_dropout: float) -> Task:
    """What is to be learnt from a pair, by the shares of `PairCorpus`."""
    if rng.random() < caption_ratio:
        return "describe"
    return "generate unconditionally" if rng.random() < caption_dropout else "generate"


def _pairs(row: Row) -> Iterator[CodePair]:
    if row.extras.get(_CAPTION):
        for image in row.images:
            if isinstance(image, CodesRef):
                yield CodePair(caption=str(row.extras[_CAPTION]), codes=image.codes)


def open_pairs(store: str | Path, cache: Path | None = None) -> CodeSource:
    """The rows of a store, or of a Parquet file of codes, with their captions alone.

    Args:
        cache: folder for unpacked shards.

    Raises:
        ViqError: no codes.
    """
    return CodeSource(store, cache, [_CAPTION])


def write_pairs(path: Path, info: StoreInfo, pairs: Iterable[CodePair]) -> None:
    """A Parquet file that `open_pairs` opens."""
    import pyarrow as pa

    with CodesWriter(path, info, Extras([pa.field(_CAPTION, pa.string())])) as writer:
        for number, pair in enumerate(pairs):
            writer.add(f"{number:07d}", pair.codes, extras={_CAPTION: pair.caption})


def add_image_tokens(tokenizer: Any) -> int:
    """Add the special tokens around a picture to a text tokenizer; gives its new size."""
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [VISION_START, VISION_END]},
        replace_extra_special_tokens=False,
    )
    return len(tokenizer)


def generation_prompt(caption: str | None, grid: Grid, tokenizer: Any) -> list[int]:
    """Ids of the instruction, the size and the start token; None: without caption."""
    return [*instruction_prompt(caption, tokenizer), *_image_start(grid, tokenizer)]


def instruction_prompt(caption: str | None, tokenizer: Any) -> list[int]:
    """Ids of the instruction alone, up to the size; None: without caption."""
    order = UNCONDITIONAL_PROMPT if caption is None else f"Draw {caption}."
    return encode_prompt([Turn(role="user", text=order)], [], tokenizer)


def size_tokens(tokenizer: Any) -> tuple[list[int], int]:
    """Ids of what a size is made of, and of the start token that ends it."""
    words = tokenizer.encode("0123456789x", add_special_tokens=False)
    return words, _token_ids(tokenizer, VISION_START)[0]


def parse_size(words: Sequence[int], tokenizer: Any) -> Grid | None:
    """Rows and columns of patches that a size says; None if it says nothing of the kind."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", tokenizer.decode(words).replace(" ", ""))
    return (int(found[1]), int(found[2])) if found else None


def encode_generation(
    pair: CodePair, tokenizer: Any, *, unconditional: bool = False
) -> GenerationSample:
    """A picture drawn to its caption, or to none."""
    asked = instruction_prompt(None if unconditional else pair.caption, tokenizer)
    begun = _image_start(pair.codes.grid, tokenizer)
    ended = _token_ids(tokenizer, VISION_END, answer_ends(tokenizer)[0])
    patches = pair.codes.grid[0] * pair.codes.grid[1]
    return GenerationSample(
        ids=[*asked, *begun, *[IMAGE_TOKEN] * patches, *ended],
        labels=[*[IGNORE] * len(asked), *begun, *[IGNORE] * patches, *ended],
        codes=pair.codes,
        generates=True,
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
    ids[first], ids[first + rows * cols + 1] = _token_ids(tokenizer, VISION_START, VISION_END)
    return GenerationSample(ids=ids, labels=chat.labels, codes=pair.codes, generates=False)


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
            [torch.full((len(c),), s.generates) for c, s in zip(codes, samples, strict=True)]
        ),
    )


class GenerationStream(Stream[GenerationSample, GenerationBatch]):
    """The packs of a training run.

    Args:
        mixture: of `PairCorpus`.
        tokenizer: text tokenizer that knows the vision tokens.
        samples: in a pack.
        lanes, positions, threads: see `Stream`.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: Any,
        *,
        samples: int,
        lanes: Sequence[int],
        positions: Mapping[int, Position] | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(
            mixture,
            lanes=lanes,
            all_lanes=mixture.lanes,
            budgets=(samples,),
            positions=positions,
            threads=threads,
        )
        self.tokenizer = tokenizer

    def _prepare(self, example: PairExample) -> GenerationSample:
        if example.task == "describe":
            return encode_description(example.pair, self.tokenizer)
        unconditional = example.task == "generate unconditionally"
        return encode_generation(example.pair, self.tokenizer, unconditional=unconditional)

    def _cost(self, item: GenerationSample) -> tuple[int]:
        return (1,)

    def _collate(self, items: Sequence[GenerationSample], number: int) -> GenerationBatch:
        return pack_generation(items)


def _image_start(grid: Grid, tokenizer: Any) -> list[int]:
    """Size and start token."""
    size = tokenizer.encode(f"{grid[0]}x{grid[1]}", add_special_tokens=False)
    return [*size, *_token_ids(tokenizer, VISION_START)]


def _token_ids(tokenizer: Any, *tokens: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]
