"""What a language model is trained on: questions and answers about the images of a row.

Whatever a data set calls them, they become turns of user and assistant with one mark for each
image. Marks and images are counted against each other, as a silent mismatch would train a model on
the wrong picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

from viq.data.source_base import ImageRef, Row, SourceError

__all__ = [
    "IMAGE_MARK",
    "Conversation",
    "ConversationError",
    "Turn",
    "conversation",
    "marked",
    "turns_of",
]

IMAGE_MARK = "<image>"
Role = Literal["user", "assistant"]

_ROLES: dict[Any, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"
}  # fmt: skip
_CAPTIONS = ("caption", "captions", "text")


class ConversationError(SourceError):
    """A row cannot be used as a conversation. One line: where, what, how to mend."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side says; a user's text has `IMAGE_MARK` where an image goes."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns of user and assistant in alternation, and their images.

    Attributes:
        turns: an even number, the first by the user; the user's texts hold one mark an image.
        images: in the order of their marks; may be none.
        resize: for each image the size that the data asks for, as given there, or None.
        key, where: of the row.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...]
    resize: tuple[Any, ...]
    key: str
    where: str

    def __post_init__(self) -> None:
        for turn, role in zip(self.turns, cycle(("user", "assistant")), strict=False):
            if turn.role != role:
                raise self._error(
                    f"has a turn of {turn.role} where {role} should speak; begin with a question"
                    " and alternate"
                )
            if not turn.text.strip():
                raise self._error(f"a turn of {role} is empty; fill or remove it")
            if role == "assistant" and IMAGE_MARK in turn.text:
                raise self._error(f"an answer contains {IMAGE_MARK}; move it to the question")
        if not self.turns or len(self.turns) % 2:
            raise self._error("does not end with an answer; add it or remove the last question")
        marks = sum(turn.text.count(IMAGE_MARK) for turn in self.turns)
        if marks != len(self.images):
            more = f"more {IMAGE_MARK} marks than images"
            if marks < len(self.images):
                more = f"more images than {IMAGE_MARK} marks"
            raise self._error(f"has {more} ({marks} marks, {len(self.images)} images); match them")
        if len(self.resize) != len(self.images):
            raise self._error(
                f"has {len(self.resize)} entries in resize for {len(self.images)} images; give one"
                " an image"
            )

    def _error(self, what: str) -> ConversationError:
        return ConversationError(f"{self.where}: {what}")


def conversation(row: Row, *, prompt: str = "Describe the image.", choice: int = 0) -> Conversation:
    """Make a conversation of the first of these that `row.extras` holds:

    - `conversations` or `messages`: turns of {from, value} or {role, content}
    - `pairs`: questions and answers, {prompt, text}. A question that comes again is asked once
    - `caption`, `captions` or `text`: one text, or a list of them, as the answer to `prompt`

    Of several captions, or answers to the same question, number `choice` is taken, counted around:
    any whole number will do, so a draw at random needs not know how many there are. Marks are put
    before the first question if there are none.

    Raises:
        ConversationError: there is nothing of these, turns do not alternate, one is empty, or marks
            and images differ in number.
    """
    turns = marked(_turns(row, prompt, choice), len(row.images))
    resize = row.extras.get("resize")
    return Conversation(
        turns=tuple(turns),
        images=row.images,
        resize=tuple(resize) if isinstance(resize, list) else (resize,) * len(row.images),
        key=row.key,
        where=row.where,
    )


def turns_of(items: Iterable[Any], where: str) -> list[Turn]:
    """Turns of {from, value} or {role, content}; content in parts of type text and image, too.

    Raises:
        ConversationError: other objects, or other roles than user and assistant.
    """
    return [_turn(item, where) for item in items]


def _turns(row: Row, prompt: str, choice: int) -> list[Turn]:
    """The turns as the data has them, not checked against each other."""
    extras = row.extras
    for name in ("conversations", "messages"):
        if extras.get(name) is not None:
            return turns_of(_list(row, name), f"{row.where}: {name}")
    if extras.get("pairs") is not None:
        answers: dict[str, list[str]] = {}
        for pair in _list(row, "pairs"):
            if not isinstance(pair, dict):
                raise ConversationError(f"{row.where}: pairs must hold {{prompt, text}}")
            question = _text(pair.get("prompt"), f"{row.where}: prompt of a pair")
            answer = _text(pair.get("text"), f"{row.where}: text of a pair")
            answers.setdefault(question, []).append(answer)
        return [
            turn
            for question, texts in answers.items()
            for turn in _exchange(question, texts[choice % len(texts)])
        ]
    for name in _CAPTIONS:
        if captions := extras.get(name):
            captions = captions if isinstance(captions, list) else [captions]
            if not row.images:
                raise ConversationError(
                    f"{row.where}: has a {name} but no image to describe; give conversations"
                )
            answer = _text(captions[choice % len(captions)], f"{row.where}: {name}")
            return _exchange(prompt, answer)
    raise ConversationError(
        f"{row.where}: has no conversations, messages, pairs, caption, captions or text (its"
        f" fields: {', '.join(map(str, extras)) or 'none'}); rename the field that holds the text"
    )


def marked(turns: Sequence[Turn], images: int) -> list[Turn]:
    """The same turns; if there are images but no mark, marks come before the first question."""
    if not images or not turns or any(IMAGE_MARK in turn.text for turn in turns):
        return list(turns)
    first = f"{IMAGE_MARK}\n" * images + turns[0].text
    return [Turn(role=turns[0].role, text=first), *turns[1:]]


def _exchange(question: str, answer: str) -> list[Turn]:
    return [Turn(role="user", text=question), Turn(role="assistant", text=answer)]


def _turn(item: Any, where: str) -> Turn:
    if not isinstance(item, dict):
        raise ConversationError(f"{where} must hold objects, not {type(item).__name__}")
    speaker = item.get("from", item.get("role"))
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise ConversationError(
            f"{where} has a turn of {speaker!r}; use human and gpt, or user and assistant"
        )
    content = item.get("value", item.get("content"))
    return Turn(role=_ROLES[speaker], text=_text(_joined(content), f"{where}, {speaker}"))


def _joined(content: Any) -> Any:
    """Content in parts of type text and image as one text; other content as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = [IMAGE_MARK if part.get("type") == "image" else part.get("text") for part in content]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else content


def _list(row: Row, name: str) -> Sequence[Any]:
    value = row.extras[name]
    if not isinstance(value, list) or not value:
        raise ConversationError(f"{row.where}: {name} must be a list with at least one entry")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConversationError(f"{where} is {type(value).__name__}, not text; write a string")
    return value
