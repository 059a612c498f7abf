"""What a language model is trained on: questions and answers about the images of a row.

Whatever a data set calls them, they become turns of user and assistant with one mark for each
image. Marks and images are counted against each other, as a silent mismatch would train a model on
the wrong picture.

A first turn of `system` (or `developer`), else the text in a field `system` beside the turns, is
what the sample is told in place of the usual system text. Tools are written as the chat template of
Qwen2.5 writes them: what the assistant calls, as <tool_call> in its answer, and what comes back,
from `tool`, `function` or `observation`, as <tool_response> in a turn of the user, which is read
and not scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

from viq.core.untrusted import printable
from viq.data.sources.base import ImageRef, Row, SourceError
from viq.data.sources.json_fields import CONVERSATIONS, IMAGE_PLACEHOLDER, content_of, is_image_part

__all__ = [
    "IMAGE_PLACEHOLDER",
    "Conversation",
    "ConversationError",
    "Turn",
    "conversation",
    "marked",
    "of_pairs",
    "split_system",
    "turns_of",
]

Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot"), "assistant"),
}
_RESULTS = ("tool", "function", "observation", "tool_response")
_CALLS = ("function_call", "tool_call")
_CAPTIONS = ("caption", "captions", "text")


class ConversationError(SourceError):
    """A row cannot be used as a conversation. One line: where, what, how to mend."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side says; a user's text has `IMAGE_PLACEHOLDER` where an image goes.

    One of `system` stands first or nowhere, and may be empty: no system text at all.
    """

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns of user and assistant in alternation, and their images.

    Attributes:
        turns: perhaps one of `system`, then an even number, the first by the user; the user's texts
            hold one mark an image.
        images: in the order of their placeholders; may be none.
        resize: for each image the size that the data asks for, as given there, or None.
        key, where: of the row.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...]
    resize: tuple[Any, ...]
    key: str
    where: str

    def __post_init__(self) -> None:
        system, turns = split_system(self.turns)
        if IMAGE_PLACEHOLDER in (system or ""):
            raise self._error(
                f"its system text contains {IMAGE_PLACEHOLDER}; move it to the question"
            )
        for turn, role in zip(turns, cycle(("user", "assistant")), strict=False):
            if turn.role != role:
                raise self._error(
                    f"has a turn of {turn.role} where {role} should speak; begin with a question"
                    " and alternate"
                )
            if not turn.text.strip():
                raise self._error(f"a turn of {role} is empty; fill or remove it")
            if role == "assistant" and IMAGE_PLACEHOLDER in turn.text:
                raise self._error(
                    f"an answer contains {IMAGE_PLACEHOLDER}; move it to the question"
                )
        if not turns or len(turns) % 2:
            raise self._error("does not end with an answer; add it or remove the last question")
        placeholders = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
        if placeholders != len(self.images):
            more = f"more {IMAGE_PLACEHOLDER} placeholders than images"
            if placeholders < len(self.images):
                more = f"more images than {IMAGE_PLACEHOLDER} placeholders"
            raise self._error(
                f"has {more} ({placeholders} placeholders, {len(self.images)} images); match them"
            )
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
        ConversationError: there is nothing of these, turns do not alternate, one is empty, or
            placeholders and images differ in number.
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

    What tools give back in several turns is one turn of the user, and so are several first turns of
    system and developer.

    Raises:
        ConversationError: other objects, or other roles than the module names.
    """
    turns: list[Turn] = []
    tools = False
    for item in items:
        turn, after_tools = _turn(item, where), tools
        tools = _speaker(item) in _RESULTS
        joins = after_tools if tools else turn.role == "system"
        if joins and turns and turns[-1].role == turn.role:
            between = "\n" if tools else "\n\n"
            turns[-1] = Turn(role=turn.role, text=turns[-1].text + between + turn.text)
        elif turn.role == "system" and turns:
            raise ConversationError(
                f"{where} has a turn of {_speaker(item)} after others; put it first, or remove it"
            )
        else:
            turns.append(turn)
    return turns


def split_system(turns: Sequence[Turn]) -> tuple[str | None, Sequence[Turn]]:
    """The system text, None if there is no such turn, and the turns after it."""
    if turns and turns[0].role == "system":
        return turns[0].text, turns[1:]
    return None, turns


def of_pairs(row: Row) -> bool:
    """Whether `conversation` makes it of pairs, which do not depend on each other."""
    extras = row.extras
    return bool(extras.get("pairs")) and all(extras.get(name) is None for name in CONVERSATIONS)


def _turns(row: Row, prompt: str, choice: int) -> list[Turn]:
    """The turns as the data has them, not checked against each other."""
    extras = row.extras
    for name in CONVERSATIONS:
        if extras.get(name) is not None:
            turns = turns_of(_list(row, name), f"{row.where}: {name}")
            told = extras.get("system")
            if isinstance(told, str) and told and turns[0].role != "system":
                return [Turn(role="system", text=told), *turns]
            return turns
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
    """The same turns; if there are images but no placeholder, placeholders come before the first
    question."""
    if not images or not turns or any(IMAGE_PLACEHOLDER in turn.text for turn in turns):
        return list(turns)
    begin = int(turns[0].role == "system")
    if begin == len(turns):
        return list(turns)
    first = f"{IMAGE_PLACEHOLDER}\n" * images + turns[begin].text
    return [*turns[:begin], Turn(role=turns[begin].role, text=first), *turns[begin + 1 :]]


def _exchange(question: str, answer: str) -> list[Turn]:
    return [Turn(role="user", text=question), Turn(role="assistant", text=answer)]


def _speaker(item: dict[str, Any]) -> Any:
    said_by = item.get("from")
    return item.get("role") if said_by is None else said_by


def _turn(item: Any, where: str) -> Turn:
    if not isinstance(item, dict):
        raise ConversationError(f"{where} must hold objects, not {type(item).__name__}")
    speaker, content = _speaker(item), content_of(item)
    if not isinstance(speaker, str) or speaker not in (*_ROLES, *_RESULTS, *_CALLS):
        raise ConversationError(
            f"{where} has a turn of {printable(repr(speaker), 40)}; use human and gpt, or user and"
            " assistant; also system, tool, function, observation and function_call are known"
        )
    calls = item.get("tool_calls")
    if speaker in _CALLS or (calls and _ROLES.get(speaker) == "assistant"):
        return Turn(role="assistant", text=_called(content, calls, f"{where}, {speaker}"))
    content = _joined(content)
    if speaker in _RESULTS and isinstance(content, dict | list):
        content = json.dumps(content, ensure_ascii=False)
    text = _text(content, f"{where}, {speaker}")
    if speaker in _RESULTS:
        return Turn(role="user", text=f"<tool_response>\n{text}\n</tool_response>")
    return Turn(role=_ROLES[speaker], text=text)


def _called(content: Any, calls: Any, where: str) -> str:
    """What an assistant says that calls tools: its words, then a block for each call."""
    said, wanted = ("", [content]) if calls is None else (content or "", calls)
    pieces = [_text(_joined(said), where)] if said else []
    for call in wanted if isinstance(wanted, list) else [wanted]:
        call = call.get("function", call) if isinstance(call, dict) else call
        if isinstance(call, dict):
            kept = {name: call[name] for name in ("name", "arguments") if name in call}
            if isinstance(kept.get("arguments"), str):  # JSON within JSON, as some write it
                try:
                    kept["arguments"] = json.loads(kept["arguments"])
                except (ValueError, RecursionError):
                    pass
            call = json.dumps(kept or call, ensure_ascii=False)
        pieces.append(f"<tool_call>\n{_text(call, where)}\n</tool_call>")
    return "\n".join(pieces)


def _joined(content: Any) -> Any:
    """Content in parts of text and images as one text; other content as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = [IMAGE_PLACEHOLDER if is_image_part(part) else part.get("text") for part in content]
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
