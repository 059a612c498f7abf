"""Conversations about codes: samples of a store, packed into sequences for a language model.

What a sample says rides along in the columns of the store, in any of the forms of
`viq.data.text.conversations`; text without images comes from the store too, or from files of its
own.

T = patches of all images, S = 4 slots, L = tokens of a packed sequence.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viq.core.codes import Codes
from viq.core.types import CodesError, Grid, ViqError, language_tokens
from viq.data.batching.mixture import Mixture, Position, Stream
from viq.data.corpora.corpora import RowCorpus, Split
from viq.data.sources.base import Row, Source
from viq.data.sources.open import open_source
from viq.data.text.chat_format import ChatConfig, EncodedChat, TextPack, encode_chat, pack_chats
from viq.data.text.conversations import Conversation, ConversationError
from viq.image.open import ImageError
from viq.image.patches import lengths_of
from viq.store.dataset import CodeDataset

CUT = " (cut)"  # ends the key of a sample that is listed because only its end was left out


@dataclass(frozen=True)
class CodesRef:
    """An image that is codes already, where a row has the place of its image."""

    codes: Codes

    def read(self) -> bytes:
        raise ImageError("is codes, not an image; decode it first")


class CodeSource(Source):
    """The samples of a store as rows; their images are codes.

    Args:
        store, columns: as `CodeDataset` takes them.
        cache: folder for unpacked shards.
    """

    def __init__(
        self,
        store: str | Path,
        cache: Path | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.name, self.data = str(store), CodeDataset(store, cache=cache, columns=columns)
        self._lock = Lock()  # the data set is made for one thread

    def __len__(self) -> int:
        return self.data.total

    @property
    def shards(self) -> Sequence[int]:
        return self.data.samples

    def keys(self) -> Iterator[str]:
        return self.data.keys()

    def key(self, index: int) -> str:
        with suppress(CodesError), self._lock:  # of a damaged shard, which may still have its keys
            return self.data[index].key
        return super().key(index)

    def _row(self, index: int) -> Row:
        with self._lock:
            sample = self.data[index]
        return Row(
            key=sample.key,
            images=tuple(map(CodesRef, sample.codes)),
            extras=dict(sample.extras),
            where=f"{self.name}: {sample.key}",
        )


@dataclass(frozen=True, kw_only=True)
class CodeExample:
    """One conversation, and the codes of its images in the order of the marks."""

    chat: Conversation
    codes: tuple[Codes, ...]


class CodeCorpus(RowCorpus):
    """Samples of a store, or rows of text alone, that belong to a split."""

    def example(  # pyright: ignore[reportIncompatibleMethodOverride]  # codes, and no pictures
        self, index: int, rng: random.Random
    ) -> CodeExample:
        """Raises SourceError or ConversationError for a bad row, CodesError for a damaged shard."""
        chat = self.chat(index, rng)
        codes = tuple(image.codes for image in chat.images if isinstance(image, CodesRef))
        if len(codes) != len(chat.images):
            raise ConversationError(
                f"{chat.where}: has pictures where codes are wanted; make a store of it: viq encode"
            )
        return CodeExample(chat=chat, codes=codes)


def open_stores(
    stores: Sequence[str | Path],
    split: Split,
    *,
    fingerprint: str = "",
    where: dict[str, str] | None = None,
    cache: Path | None = None,
) -> list[CodeCorpus]:
    """One corpus a store.

    Args:
        fingerprint: of the tokenizer whose codes are wanted; "" takes any, but the same in all.
        where: only samples whose columns have these values.

    Raises:
        ViqError: no store, one of another tokenizer, or one without conversations.
    """
    corpora = []
    for store in stores:
        source = CodeSource(store, cache)
        found = source.data.info
        fingerprint = fingerprint or found.fingerprint
        if found.fingerprint != fingerprint:
            raise ViqError(
                f"{store}: its codes were made by {found.model} ({found.fingerprint}), but the "
                f"model reads those of {fingerprint}: encode the images with that tokenizer, or "
                "name the one that made the codes (--tokenizer)"
            )
        corpus = CodeCorpus(Path(store).stem, source, split, where=where)
        if where and not corpus.length:
            wanted = ", ".join(f"{column}={value}" for column, value in where.items())
            raise ViqError(f"{store}: no {split} sample has {wanted}: check column and value")
        corpora.append(_checked(corpus))
    return corpora


def open_texts(paths: Sequence[str | Path], split: Split) -> list[CodeCorpus]:
    """One corpus a file of conversations without images.

    Raises:
        ViqError: no data, or data without conversations.
    """
    return [_checked(CodeCorpus(Path(p).stem, open_source(p), split)) for p in paths]


def _checked(corpus: CodeCorpus) -> CodeCorpus:
    if not corpus.length:
        raise ViqError(f"{corpus.name}: no sample falls into this part of it: give more samples")
    if not corpus.talks:
        raise ViqError(
            f"{corpus.name}: its samples have no conversations, pairs, captions or labels: encode "
            "data that have them, whose columns ride along, such as a .jsonl or Parquet file"
        )
    return corpus


@dataclass(frozen=True, kw_only=True)
class CodeDataConfig:
    """The data of one stage of training on codes."""

    gradient_accumulation: int = 1  # micro-batches a step, shared by all processes
    tokens: int = 4096  # length of a packed sequence, which is a micro-batch
    text_share: float = 0.1  # of the samples that are text alone, where such files are given
    chat: ChatConfig = field(default_factory=ChatConfig)

    def __post_init__(self) -> None:
        if self.chat.max_length > self.tokens:
            raise ViqError(
                f"chat.max_length is {self.chat.max_length}, but a sequence has only {self.tokens} "
                "tokens: a sample must fit into one"
            )


@dataclass(frozen=True, kw_only=True)
class CodeBatch:
    """One packed sequence.

    Attributes:
        codes_TS: int64, of all images, in the order of their places in the text.
        grids_hw: of each image.
        text: the conversations.
    """

    codes_TS: Tensor
    grids_hw: tuple[Grid, ...]
    text: TextPack

    @property
    def counts(self) -> dict[str, int]:
        """What the sums of loss terms are divided by, and what tells the speed."""
        return {
            "answers": self.text.answers,
            "tokens": len(self.text.ids_L),
            "images": len(self.grids_hw),
            "patches": len(self.codes_TS),
        }

    def to(self, device: torch.device) -> CodeBatch:
        """The same on another device."""
        return replace(self, codes_TS=self.codes_TS.to(device), text=self.text.to(device))


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    chat: EncodedChat
    codes: tuple[Codes, ...]


class CodeStream(Stream[_Prepared, CodeBatch]):
    """The packed sequences of a stage.

    A conversation that is too long loses whole question-answer pairs from its end until it fits
    (`encode_chat`); that it did is listed among `skipped`, once.

    Args:
        tokenizer: text tokenizer of the language model.
        merge_size: patches a side of a visual token.
        lanes, positions, threads: see `Stream`.
    """

    def __init__(
        self,
        config: CodeDataConfig,
        mixture: Mixture,
        *,
        lanes: Sequence[int],
        tokenizer: Any,
        merge_size: int = 2,
        positions: Mapping[int, Position] | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(
            mixture,
            lanes=lanes,
            all_lanes=config.gradient_accumulation,
            budgets=(config.tokens,),
            positions=positions,
            threads=threads,
        )
        self.config, self.tokenizer, self.merge_size = config, tokenizer, merge_size

    def _prepare(self, example: CodeExample) -> _Prepared:
        chat = example.chat
        places = [language_tokens(codes.grid, self.merge_size) for codes in example.codes]
        encoded = encode_chat(chat.turns, places, self.tokenizer, self.config.chat, chat.where)
        if encoded.cut:
            left_out = f"{chat.where}: its last {encoded.cut} of {len(chat.turns) // 2} answers"
            self.skipped.add(
                chat.key + CUT,
                ConversationError(f"{left_out} do not fit into {self.config.chat.max_length}"),
            )
        return _Prepared(chat=encoded, codes=example.codes[: encoded.images])

    def _cost(self, item: _Prepared) -> tuple[int]:
        return (len(item.chat.ids),)

    def _collate(self, items: Sequence[_Prepared], number: int) -> CodeBatch:
        codes = [codes for item in items for codes in item.codes]
        grids = tuple(item.grid for item in codes)
        ids = np.zeros((sum(lengths_of(grids)), 4), np.int64)
        for item, stop in zip(codes, np.cumsum(lengths_of(grids)), strict=True):
            flat = item.ids.reshape(-1, 4)
            ids[stop - len(flat) : stop] = flat
        return CodeBatch(
            codes_TS=torch.from_numpy(ids),
            grids_hw=grids,
            text=pack_chats([item.chat for item in items]),
        )
