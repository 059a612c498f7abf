"""Conversations to token ids and labels, and many of them packed into one sequence.

The format is ChatML, as Qwen2.5 uses it, unless the tokenizer brings a chat template of another
one (`chat_template.py`):

    <|im_start|>user\\n<image>\\nWhat is it?<|im_end|>\\n<|im_start|>assistant\\nA cup.<|im_end|>\\n

A system text comes before, as a turn of its own: the one of the sample if it has any, even an empty
one, else that of `ChatConfig`. Labels stand on the tokens of each answer and on the `<|im_end|>`
that closes it, nowhere else. (The official code also scores "assistant", two line breaks: an offset
it inherited.) An image takes as many places as it has tokens (`viq.core.types.language_tokens`);
they hold `IMAGE_TOKEN`, which a model replaces by visual vectors. Text that spells out a special
token is read as plain letters.

L = tokens of a sequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from viq.core.types import IGNORE, IMAGE_TOKEN
from viq.data.text.chat_template import (
    END,
    IMAGE_PAD,
    START,
    OwnTemplate,
    encode_rendered,
    own_template,
)
from viq.data.text.conversations import IMAGE_PLACEHOLDER, ConversationError, Turn, split_system

_SPECIAL_TOKENS = (START, END, IMAGE_PAD)
# Between the two signs that each of them begins with.
_SPECIAL_TOKEN = re.compile(
    "|".join(f"(?<=<)(?={re.escape(mark[1:])})" for mark in _SPECIAL_TOKENS)
)


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How conversations become tokens."""

    system: str = "You are a helpful assistant."  # "": no system turn
    max_length: int = 4096  # tokens of one sample; the rule for longer ones: `encode_chat`


@dataclass(frozen=True, kw_only=True)
class EncodedChat:
    """One conversation as tokens.

    Attributes:
        ids: vocabulary ids, IMAGE_TOKEN where visual vectors go.
        labels: the id itself where a token is scored, else IGNORE; same length.
        images: how many of the images are left in it, always the first ones.
        cut: how many question-answer pairs were left out.
    """

    ids: list[int]
    labels: list[int]
    images: int
    cut: int = 0


def encode_chat(
    turns: Sequence[Turn],
    image_tokens: Sequence[int],
    tokenizer: Any,
    config: ChatConfig,
    where: str = "conversation",
) -> EncodedChat:
    """Tokens of one conversation.

    A conversation that is too long loses whole question-answer pairs from its end until it fits.

    Args:
        turns: perhaps a system turn, then question, answer, question, answer, ...
        image_tokens: places that each image takes, one an image placeholder, in order.
        where: names the sample in errors.
        tokenizer: a fast Hugging Face tokenizer that knows the two special tokens of ChatML, or has
            a chat template.

    Raises:
        ConversationError: not even the first pair fits, or image placeholders and images do not
            agree.
    """
    marks = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if marks != len(image_tokens):
        raise ConversationError(
            f"{where}: {marks} {IMAGE_PLACEHOLDER} placeholders, but {len(image_tokens)} "
            "images; match them"
        )
    if (own := own_template(tokenizer)) is not None:
        return _encode_own(turns, image_tokens, tokenizer, own, config, where)
    ids, turns = _begin(turns, config.system, tokenizer)
    labels, used, kept = [IGNORE] * len(ids), 0, 0
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        pair_ids, pair_labels, marks = _pair(question, answer, image_tokens[used:], tokenizer)
        if len(ids) + len(pair_ids) > config.max_length:
            break
        ids, labels, used = ids + pair_ids, labels + pair_labels, used + marks
        kept += 1
    if all(label == IGNORE for label in labels):
        raise _too_long(config, where)
    return EncodedChat(ids=ids, labels=labels, images=used, cut=len(turns) // 2 - kept)


def _encode_own(
    turns: Sequence[Turn],
    image_tokens: Sequence[int],
    tokenizer: Any,
    own: OwnTemplate,
    config: ChatConfig,
    where: str,
) -> EncodedChat:
    """`encode_chat` by a chat template."""
    first = len(turns) % 2  # a system turn
    for kept in range(len(turns) // 2, 0, -1):
        left = turns[: first + 2 * kept]
        used = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in left)
        rendered = own.render(left, tokenizer, config.system, head=False, where=where)
        ids, labels = encode_rendered(rendered, image_tokens[:used], tokenizer)
        if len(ids) <= config.max_length:
            return EncodedChat(ids=ids, labels=labels, images=used, cut=len(turns) // 2 - kept)
    raise _too_long(config, where)


def _too_long(config: ChatConfig, where: str) -> ConversationError:
    return ConversationError(
        f"{where}: its first question and answer take more than "
        f"{config.max_length} tokens: raise max_length or make the image smaller"
    )


def encode_prompt(
    turns: Sequence[Turn], image_tokens: Sequence[int], tokenizer: Any, system: str = ""
) -> list[int]:
    """Ids of turns that end with a question, and of the head of the answer to be generated.

    Args:
        system: the system text, unless the first turn is one.
    """
    return encode_turns(turns, image_tokens, tokenizer, system)[0]


def encode_turns(
    turns: Sequence[Turn],
    image_tokens: Sequence[int],
    tokenizer: Any,
    system: str = "",
    *,
    head: bool = True,
    unfinished: bool = False,
    where: str = "conversation",
) -> tuple[list[int], list[int]]:
    """Ids and labels of turns, whoever speaks last.

    Args:
        system: the system text, unless the first turn is one.
        head: whether the head of an answer follows.
        unfinished: the last turn goes on: leave out what closes it.
    """
    if (own := own_template(tokenizer)) is not None:
        rendered = own.render(turns, tokenizer, system, head=head, where=where)
        if unfinished:
            rendered = replace(rendered, text=rendered.text[: rendered.last])
        return encode_rendered(rendered, image_tokens, tokenizer)
    used = 0
    ids, turns = _begin(turns, system, tokenizer)
    labels = [IGNORE] * len(ids)
    for turn in turns:
        text, begun = _text(turn.text, image_tokens[used:], tokenizer), _head(turn.role, tokenizer)
        used += turn.text.count(IMAGE_PLACEHOLDER)
        end, newline = _tail(tokenizer)[:1], _tail(tokenizer)[1:]
        if unfinished and turn is turns[-1]:
            end = newline = []
        ids += [*begun, *text, *end, *newline]
        scored = [*text, *end] if turn.role == "assistant" else [IGNORE] * len(text + end)
        labels += [*[IGNORE] * len(begun), *scored, *[IGNORE] * len(newline)]
    begun = _head("assistant", tokenizer) if head else []
    return [*ids, *begun], [*labels, *[IGNORE] * len(begun)]


def _begin(turns: Sequence[Turn], system: str, tokenizer: Any) -> tuple[list[int], Sequence[Turn]]:
    """Ids of the system text, that of the turns or else `system`, and the turns after it."""
    own, turns = split_system(turns)
    text = system if own is None else own
    return (_turn(START, "system\n" + text, tokenizer) if text else []), turns


def _pair(
    question: Turn, answer: Turn, image_tokens: Sequence[int], tokenizer: Any
) -> tuple[list[int], list[int], int]:
    """Ids, labels and number of images of one question and its answer."""
    asked = [
        *_head("user", tokenizer),
        *_text(question.text, image_tokens, tokenizer),
        *_tail(tokenizer),
        *_head("assistant", tokenizer),
    ]
    end, newline = _tail(tokenizer)[0], _tail(tokenizer)[1:]
    said = [*_plain(answer.text, tokenizer), end]
    ids = [*asked, *said, *newline]
    labels = [*[IGNORE] * len(asked), *said, *[IGNORE] * len(newline)]
    return ids, labels, question.text.count(IMAGE_PLACEHOLDER)


def _text(text: str, image_tokens: Sequence[int], tokenizer: Any) -> list[int]:
    """Ids of text in which each image placeholder becomes that image's places."""
    pieces = text.split(IMAGE_PLACEHOLDER)
    if len(pieces) - 1 > len(image_tokens):
        raise ConversationError(
            f"{len(pieces) - 1} image placeholders, {len(image_tokens)} images left"
        )
    ids = _plain(pieces[0], tokenizer)
    for count, piece in zip(image_tokens, pieces[1:], strict=False):
        ids += [*[IMAGE_TOKEN] * count, *_plain(piece, tokenizer)]
    return ids


def _turn(start: str, text: str, tokenizer: Any) -> list[int]:
    return [
        tokenizer.convert_tokens_to_ids(start),
        *_plain(text, tokenizer),
        *_tail(tokenizer),
    ]


def _head(role: str, tokenizer: Any) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(START), *_plain(role + "\n", tokenizer)]


def _tail(tokenizer: Any) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(END), *_plain("\n", tokenizer)]


def _plain(text: str, tokenizer: Any) -> list[int]:
    """Ids of text as letters, whatever it spells out."""
    if not text:
        return []
    pieces = [text]
    spelled = [mark for mark in _SPECIAL_TOKENS if mark in text]
    if spelled and not _are_special(spelled, tokenizer):
        # The option below splits only what the tokenizer holds for special.
        pieces = _SPECIAL_TOKEN.split(text)
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
    return ids


def _are_special(marks: Sequence[str], tokenizer: Any) -> bool:
    added = tokenizer.added_tokens_decoder.values()
    return {*marks} <= {token.content for token in added if token.special}


@dataclass(frozen=True, kw_only=True)
class TextPack:
    """Conversations packed into one sequence, none of which sees another.

    Attributes:
        ids_L: int64, IMAGE_TOKEN where visual vectors go.
        targets_L: int64, the token to predict at each place (that is, the next one's label), or
            IGNORE; never across two conversations.
        lengths: tokens of each conversation.
    """

    ids_L: Tensor
    targets_L: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> TextPack:
        """The same on another device."""
        return TextPack(
            ids_L=self.ids_L.to(device),
            targets_L=self.targets_L.to(device),
            lengths=self.lengths,
        )

    @property
    def answers(self) -> int:
        """How many tokens are scored."""
        return int((self.targets_L != IGNORE).sum())


def pack_chats(chats: Sequence[EncodedChat]) -> TextPack:
    """Join encoded conversations; at least one."""
    return TextPack(
        ids_L=torch.tensor([i for chat in chats for i in chat.ids]),
        targets_L=torch.tensor([label for chat in chats for label in (*chat.labels[1:], IGNORE)]),
        lengths=tuple(len(chat.ids) for chat in chats),
    )
