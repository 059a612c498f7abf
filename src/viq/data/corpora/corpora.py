"""What a tokenizer is trained on: pictures with questions, answers and captions, by index.

A corpus is an endless or finite list of examples, each made when it is asked for. `RowCorpus` reads
files; `SyntheticCorpus` (synthetic_corpus.py) draws pictures and knows their exact answers. A tenth
of every corpus is held out, by the name of the row, which is the same wherever the data lie, or the
number of the drawing, so that no picture is both trained on and tested.
"""

from __future__ import annotations

import functools
import os
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from viq.core.types import ViqError
from viq.data.sources.access import Access
from viq.data.sources.open import Row, Source, SourceError, concatenate, open_source
from viq.data.sources.tables import holds_codes
from viq.data.text.conversations import (
    IMAGE_PLACEHOLDER,
    Conversation,
    ConversationError,
    Turn,
    conversation,
    of_pairs,
)
from viq.image.open import open_image

Split = Literal["train", "held-out"]
_HELD_OUT = 10  # one example in so many
_NAMES = ("What is this?", "What does the picture show?", "Name the object in the picture.")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation about pictures that are in memory.

    Attributes:
        chat: its turns; `chat.images` has one entry a picture.
        pictures: RGB, in the order of the image placeholders.
        kinds: of each question-answer pair, for scoring by kind.
        caption: a sentence about the first picture, if one is known.
    """

    chat: Conversation
    pictures: tuple[Image.Image, ...]
    kinds: tuple[str, ...]
    caption: str | None = None


class Corpus(Protocol):
    """Examples by index. `length` and `samples` are None for an endless one."""

    name: str

    @property
    def length(self) -> int | None: ...

    @property
    def samples(self) -> Sequence[int] | None:
        """Examples of each shard, in their order, as `viq.store.order.Order` takes them."""
        ...

    def key(self, index: int) -> str: ...

    def example(self, index: int, rng: random.Random) -> Any: ...


@dataclass(frozen=True)
class _Drawn:
    """A picture that needs no reading, where a conversation wants a place to read from."""

    picture: Any

    def read(self) -> Any:
        return self.picture


def split_of(name: str) -> Split:
    """The part that a row belongs to, by what it is called (`Source.names`) alone."""
    held_out = zlib.crc32(name.encode(errors="surrogatepass")) % _HELD_OUT == 0
    return "held-out" if held_out else "train"


class RowCorpus:
    """Rows of a source that pass a filter and belong to a split; of both, if that is None.

    A row with a conversation, question-answer pairs or captions is used as it is; one with only a
    `label` becomes the question what the picture shows.

    Attributes:
        skipped: (key, reason) of rows that cannot be read and so cannot be shown to pass the
            filter; they are left out.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        split: Split | None,
        *,
        where: dict[str, str] | None = None,
    ) -> None:
        self.name, self.source = name, source
        parts = [split_of(name) for name in source.names()]
        self._rows = [i for i, part in enumerate(parts) if split in (part, None)]
        self.skipped: list[tuple[str, str]] = []
        if where:
            self._rows = [i for i in self._rows if self._passes(i, where)]

    @property
    def length(self) -> int:
        return len(self._rows)

    @property
    def samples(self) -> list[int]:
        """Examples of each shard of the source."""
        return samples_of(self._rows, self.source.shards)

    def key(self, index: int) -> str:
        return self._key(self._rows[index])

    def _key(self, number: int) -> str:
        return f"{self.name}:{number}"

    def _passes(self, number: int, where: dict[str, str]) -> bool:
        try:
            extras = self.source[number].extras
        except SourceError as error:
            self.skipped.append((self._key(number), str(error)))
            return False
        return all(str(extras.get(column)) == value for column, value in where.items())

    def row(self, index: int) -> Row:
        """The row behind an example."""
        return self.source[self._rows[index]]

    def names(self) -> list[str]:
        """What the rows are called, by which they belong to a split, as `Source.names`."""
        chosen = set(self._rows)
        return [name for i, name in enumerate(self.source.names()) if i in chosen]

    @property
    def pictures_only(self) -> bool:
        """Whether it has no text but labels, if those: a set of photos. Its first row tells."""
        return not any(self._first.get(name) for name in _TEXTS)

    @property
    def talks(self) -> bool:
        """Whether it has text or labels to make conversations of. Its first row tells."""
        return any(name in self._first for name in (*_TEXTS, "label"))

    @functools.cached_property
    def _first(self) -> dict[str, Any]:
        """Extras of the first row that can be read."""
        for number in self._rows:
            try:
                return self.source[number].extras
            except SourceError:
                continue
        return {}

    def texts(self, index: int, rng: random.Random) -> Iterator[str]:
        """What a text tokenizer should know."""
        yield from texts_of(self.chat(index, rng))

    def chat(self, index: int, rng: random.Random) -> Conversation:
        """The conversation alone, no picture opened."""
        row = self.row(index)
        if not _has_text(row):
            return _label_chat(row, rng)
        chat = conversation(row, choice=rng.randrange(1000))
        return _shuffled(chat, rng) if of_pairs(row) else chat

    def example(self, index: int, rng: random.Random) -> Example:
        """Raises SourceError, ConversationError or ImageError for a bad row."""
        row, chat = self.row(index), self.chat(index, rng)
        pictures = tuple(open_image(image.read(), name=chat.where) for image in chat.images)
        pairs = len(chat.turns) // 2
        return Example(
            chat=chat,
            pictures=pictures,
            kinds=(self.name if _has_text(row) else f"{self.name}/label",) * pairs,
            caption=_caption(row),
        )


def samples_of(rows: Sequence[int], shards: Sequence[int]) -> list[int]:
    """How many of these rows, which are in order, each shard has; `shards` tells of all rows."""
    return np.diff(np.searchsorted(rows, np.cumsum(shards)), prepend=0).tolist()


def synthetic_example(
    key: str,
    picture: Image.Image,
    asked: Sequence[tuple[str, str, str]],
    caption: str | None = None,
) -> Example:
    """A conversation about one synthetic picture, from (kind, question, answer)."""
    chat = Conversation(
        turns=turns_of((question, answer) for _, question, answer in asked),
        images=(_Drawn(picture),),
        resize=(None,),
        key=key,
        where=key,
    )
    kinds = tuple(kind for kind, _, _ in asked)
    return Example(chat=chat, pictures=(picture,), kinds=kinds, caption=caption)


def open_corpora(
    paths: Iterable[str | Path],
    split: Split | None,
    *,
    where: dict[str, str] | None = None,
    root: Path | None = None,
    access: Access | None = None,
) -> list[RowCorpus]:
    """One corpus a file; a folder of Parquet files gives one a file; numbered shards are joined.

    Args:
        split: None for the rows of both parts.
        where: only rows whose columns have these values, e.g. {"licence_tier": "permissive"}.
        root, access: where paths in the data begin, and what they and URLs may open, as of
            `open_source`.

    Raises:
        ViqError: a path is no data, or no row of all passes.
    """
    named: dict[str, list[Source]] = {}
    for given in paths:
        path = Path(given)
        inner = sorted(path.glob("*.parquet")) if path.is_dir() else []
        for file in [file for file in inner if not holds_codes(file)] or [given]:
            stem = Path(os.path.abspath(file)).stem  # `.` has a name, too
            name = re.sub(r"[-_.]?\d+(-of-\d+)?$", "", stem) or stem
            # One of several in a folder is a row that fails, and no more, if it is damaged.
            source = open_source(file, root=root, access=access, alone=len(inner) < 2)
            named.setdefault(name, []).append(source)
    corpora = [
        RowCorpus(name, concatenate(sources), split, where=where) for name, sources in named.items()
    ]
    if corpora and not any(corpus.length for corpus in corpora):
        if where:
            raise ViqError(f"no row of the data passes {where}: check the column and the value")
        part = f"falls into the {split} part" if split else "is there"
        raise ViqError(f"no row of the data {part}: give more rows")
    return [corpus for corpus in corpora if corpus.length]


def open_split(
    paths: Iterable[str | Path],
    *,
    where: dict[str, str] | None = None,
    root: Path | None = None,
    access: Access | None = None,
) -> list[tuple[RowCorpus, RowCorpus]]:
    """(train, held-out) corpora of the same files; those without a held-out row are left out."""
    paths = list(paths)
    train, held = (
        open_corpora(paths, split, where=where, root=root, access=access)
        for split in ("train", "held-out")
    )
    held_out = {corpus.name: corpus for corpus in held}
    return [(corpus, held_out[corpus.name]) for corpus in train if corpus.name in held_out]


def turns_of(pairs: Iterable[tuple[str, str]], images: int = 1) -> tuple[Turn, ...]:
    """User and assistant turns; the first question carries the image placeholders."""
    turns: list[Turn] = []
    for prompt, answer in pairs:
        mark = "" if turns else f"{IMAGE_PLACEHOLDER}\n" * images
        turns += [Turn(role="user", text=mark + prompt), Turn(role="assistant", text=answer)]
    return tuple(turns)


def _shuffled(chat: Conversation, rng: random.Random) -> Conversation:
    """Independent questions about one picture, in a new order."""
    pairs = [
        (question.text.replace(IMAGE_PLACEHOLDER, "").strip(), answer.text)
        for question, answer in zip(chat.turns[::2], chat.turns[1::2], strict=True)
    ]
    rng.shuffle(pairs)
    return replace(chat, turns=turns_of(pairs, len(chat.images)))


def _label_chat(row: Row, rng: random.Random) -> Conversation:
    if not row.extras.get("label"):
        raise ConversationError(f"{row.where}: has neither text nor a label")
    turns = turns_of([(rng.choice(_NAMES), str(row.extras["label"]).lower())])
    return Conversation(
        turns=turns, images=row.images[:1], resize=(None,), key=row.key, where=row.where
    )


_TEXTS = ("conversations", "messages", "pairs", "caption", "captions", "text")


def _has_text(row: Row) -> bool:
    return any(row.extras.get(name) for name in _TEXTS)


def texts_of(chat: Conversation) -> Iterator[str]:
    return (turn.text.replace(IMAGE_PLACEHOLDER, "") for turn in chat.turns)


def _caption(row: Row) -> str | None:
    """A sentence about the picture for the teacher: a caption, or one made of its label."""
    if row.extras.get("label") and not _has_text(row):
        return f"a photo of a {str(row.extras['label']).lower()}"
    pairs: Sequence[Any] = row.extras.get("pairs") or ()
    for pair in pairs:
        if isinstance(pair, dict) and str(pair.get("prompt")).lower().startswith("describe"):
            return str(pair.get("text"))
    found = row.extras.get("caption") or row.extras.get("captions")
    return str(found[0] if isinstance(found, list) else found) if found else None
