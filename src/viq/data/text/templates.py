"""A conversation as one text, and back: the customary two calls of transformers.

    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[images])

The text holds `<image>` wherever an image goes. ChatML is read back strictly: a text that is not a
whole prompt of this form is a question like any other, and its marks are plain letters. With a chat
template of its own, a prompt is a text that begins as those of the template do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from viq.core.types import ViqError
from viq.data.text.chat_template import END, IMAGE_PAD, START, OwnTemplate, knows, own_template
from viq.data.text.conversations import IMAGE_PLACEHOLDER, Turn

_TURN = re.compile(
    rf"{re.escape(START)}(\w+)\n((?:(?!{re.escape(START)}|{re.escape(END)}).)*){re.escape(END)}\n",
    re.DOTALL,
)
_HEAD = f"{START}assistant\n"


@dataclass(frozen=True)
class Prompt:
    """What a text in ChatML says.

    Attributes:
        messages: {role, content}, without a system turn at the begin.
        system: its text; "" without one.
        head: whether the text ends with the head of an answer.
    """

    messages: list[dict[str, str]]
    system: str
    head: bool


def template_of(tokenizer: Any) -> OwnTemplate | None:
    """The chat template of a processor's tokenizer, None for ChatML.

    Raises:
        ViqError: it has neither, or a template that cannot be used.
    """
    own = own_template(tokenizer)
    if own is None and not (knows(tokenizer, START) and knows(tokenizer, END)):
        raise ViqError(
            f"the tokenizer does not know {START} and {END} and has no chat template: use that of "
            "an instruct model, or give chat_template"
        )
    return own


def is_prompt(text: str, tokenizer: Any) -> bool:
    """Whether a text begins as the chat template of a tokenizer begins a prompt."""
    own = template_of(tokenizer)
    return own is not None and text.startswith(own.openings) and bool(own.openings)


def formatted(
    turns: Sequence[Turn],
    system: str,
    tokenizer: Any,
    *,
    head: bool,
    unfinished: bool = False,
    source: str | None = None,
) -> str:
    """Turns as one text that `parsed` or `is_prompt` knows again.

    Args:
        head: whether the head of an answer follows.
        unfinished: leave out what closes the last turn.
        source: a chat template instead of that of the tokenizer.

    Raises:
        ViqError: a turn spells out a special token.
    """
    if (own := own_template(tokenizer, source)) is not None:
        rendered = own.render(turns, tokenizer, system, head=head, where="conversation")
        if rendered.spelled:
            raise _spells("conversation")
        text = rendered.text[: rendered.last] if unfinished else rendered.text
        return text.replace(IMAGE_PAD, IMAGE_PLACEHOLDER)
    if turns and str(turns[0].role) == "system":
        system, turns = turns[0].text, turns[1:]
    said = [("system", system)] if system else []
    said += [(str(turn.role), turn.text) for turn in turns]
    for role, text in said:
        if START in text or END in text:
            raise _spells(f"the turn of {role}")
    body = "".join(f"{START}{role}\n{text}{END}\n" for role, text in said)
    return body.removesuffix(f"{END}\n") if unfinished else body + (_HEAD if head else "")


def _spells(what: str) -> ViqError:
    return ViqError(
        f"{what} spells out a special token, which a prompt in one text could not tell from its "
        "own: give the messages themselves, processor(text=messages)"
    )


def parsed(text: str) -> Prompt | None:
    """What a text in ChatML says; None for a text that is not one from begin to end."""
    if not text.startswith(START):
        return None
    turns, at = [], 0
    while found := _TURN.match(text, at):
        turns.append((found[1], found[2]))
        at = found.end()
    if not turns or text[at:] not in ("", _HEAD):
        return None
    system = turns.pop(0)[1] if turns[0][0] == "system" else ""
    messages = [{"role": role, "content": content} for role, content in turns]
    return Prompt(messages, system, head=text[at:] == _HEAD) if messages else None
