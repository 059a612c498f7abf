"""A conversation as one text in ChatML, and back: the customary two calls of transformers.

    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[images])

The text holds `<image>` wherever an image goes. It is read back strictly: a text that is not a
whole prompt of this form is a question like any other, and its marks are plain letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from viq.core.types import ViqError
from viq.data.text.chat_format import END, START
from viq.data.text.conversations import Turn

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


def formatted(turns: Sequence[Turn], system: str, *, head: bool) -> str:
    """Turns as one text that `parsed` reads back.

    Raises:
        ViqError: a turn spells out a special token of ChatML.
    """
    if turns and str(turns[0].role) == "system":
        system, turns = turns[0].text, turns[1:]
    said = [("system", system)] if system else []
    said += [(str(turn.role), turn.text) for turn in turns]
    for role, text in said:
        if START in text or END in text:
            raise ViqError(
                f"the turn of {role} spells out a special token of ChatML, which a prompt "
                "in one text could not tell from its own: give the messages themselves, "
                "processor(text=messages)"
            )
    body = "".join(f"{START}{role}\n{text}{END}\n" for role, text in said)
    return body + (_HEAD if head else "")


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
