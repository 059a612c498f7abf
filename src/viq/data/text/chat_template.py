"""Conversations in a language model's own format: by the chat template that its tokenizer brings.

Llama, Gemma, Phi, Mistral and others have no ChatML. A template is a program that may do anything
with the turns, so it is run twice, on marks in place of what is said and on the text itself. The
first tells where each turn lies, the second must be the first with the text filled in, or the
conversation is refused. Tokens are those of the whole text, as transformers gives them; labels
stand on what the assistant says and on the special token that closes it.

Text that spells out a special token is read as plain letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from viq.core.errors import first_line
from viq.core.types import IGNORE, IMAGE_TOKEN, ViqError
from viq.data.text.conversations import IMAGE_PLACEHOLDER, ConversationError, Turn, split_system

START, END = "<|im_start|>", "<|im_end|>"  # of ChatML
IMAGE_PAD = "<|image_pad|>"  # Qwen2.5 has it; other tokenizers get it

# Of the private use area: what is said in a turn, and a special token that somebody spells out.
_TURN, _SPELLED = "\ue000{}\ue001", "\ue002{}\ue003"
_IN_TURN, _IN_SPELLED = re.compile("\ue000(\\d+)\ue001"), re.compile("\ue002(\\d+)\ue003")
_PRIVATE = re.compile("[\ue000-\ue003]")


@dataclass(frozen=True)
class Rendered:
    """A conversation as one text.

    Attributes:
        text: with `IMAGE_PAD` where an image goes, and marks for what is in `spelled`.
        answers: (begin, end) in it of what is scored of each answer.
        last: where what the last turn says ends.
        spelled: special tokens that are letters here.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    last: int
    spelled: tuple[str, ...]


@dataclass(frozen=True)
class OwnTemplate:
    """A chat template, and what of it can be told beforehand.

    Attributes:
        source: in jinja.
        takes_system: whether it has a place for a system text; else it goes before the question.
        stripped: roles whose text loses the blanks around it.
        ends: special tokens that close an answer, that of the last one first.
        lead: stands before an answer and not in the head of one, so a model has to write it.
        openings: special tokens that a prompt may begin with.
        special: finds special tokens in a text.
    """

    source: str
    takes_system: bool
    stripped: frozenset[str]
    ends: tuple[str, ...]
    lead: str
    openings: tuple[str, ...]
    special: re.Pattern[str]

    def render(
        self, turns: Sequence[Turn], tokenizer: Any, system: str, *, head: bool, where: str
    ) -> Rendered:
        """Turns as one text.

        Args:
            system: the system text, unless the first turn is one.
            head: whether the head of an answer follows.
            where: names the sample in errors.

        Raises:
            ConversationError: the template refuses the turns, or does with them what is not known.
        """
        spelled: list[str] = []
        turns = self._with_system(turns, system)
        said = [self._said(turn, spelled, where) for turn in turns]
        marks = [_TURN.format(number) for number in range(len(turns))]
        plan = self._run(turns, marks, tokenizer, head, where)
        text = self._run(turns, said, tokenizer, head, where)
        pieces = _IN_TURN.split(plan)  # template, number, template, number, ..., template
        filled, answers, last = pieces[0], [], 0
        for number, after in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
            begin = len(filled)
            filled += said[number]
            last = len(filled)
            if turns[number].role == "assistant":
                closing = _closing(after, self.special)
                begin -= len(self.lead) if filled[:begin].endswith(self.lead) else 0
                answers.append((begin, last + (closing.end() if closing else 0)))
            filled += after
        if filled != text or len(pieces) // 2 != len(turns):
            raise ConversationError(
                f"{where}: the chat template of the language model changes what the turns say, so "
                "answers cannot be told from the rest; give it a plain template"
            )
        return Rendered(text, tuple(answers), last, tuple(spelled))

    def _with_system(self, turns: Sequence[Turn], system: str) -> list[Turn]:
        own, rest = split_system(turns)
        text = (system if own is None else own).strip()
        if not text:
            return list(rest)
        if self.takes_system or not rest:
            return [Turn(role="system", text=text), *rest]
        first = Turn(role=rest[0].role, text=f"{text}\n\n{rest[0].text}")
        return [first, *rest[1:]]

    def _said(self, turn: Turn, spelled: list[str], where: str) -> str:
        if _PRIVATE.search(turn.text):
            raise ConversationError(
                f"{where}: a turn of {turn.role} has characters from U+E000 to U+E003, which are "
                "used as marks here; remove them"
            )

        def mark(found: re.Match[str]) -> str:
            spelled.append(found[0])
            return _SPELLED.format(len(spelled) - 1)

        text = self.special.sub(mark, turn.text).replace(IMAGE_PLACEHOLDER, IMAGE_PAD)
        return text.strip() if turn.role in self.stripped else text

    def _run(
        self, turns: Sequence[Turn], said: Sequence[str], tokenizer: Any, head: bool, where: str
    ) -> str:
        messages = [
            {"role": turn.role, "content": text} for turn, text in zip(turns, said, strict=True)
        ]
        try:
            return _run(tokenizer, self.source, messages, head)
        except Exception as error:  # what a template raises is its own
            raise ConversationError(
                f"{where}: the chat template of the language model refuses it ({first_line(error)})"
            ) from None


def own_template(tokenizer: Any, source: str | None = None) -> OwnTemplate | None:
    """The template by which this tokenizer's conversations become text; None if that is ChatML.

    Args:
        source: a template in jinja instead of the tokenizer's.

    Raises:
        ViqError: a template that cannot be used.
    """
    known = _KNOWN.setdefault(tokenizer, {})
    key = (source or _default(tokenizer), len(tokenizer))
    if key not in known:
        known[key] = _look_at(tokenizer, key[0])
    return known[key]


def answer_ends(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens that close an answer: of a conversation's last one, and of others."""
    own = own_template(tokenizer)
    return (END,) if own is None else own.ends


def image_token_id(tokenizer: Any) -> int:
    """The id of `IMAGE_PAD`, which a tokenizer gets that has none."""
    from transformers import AddedToken

    if not knows(tokenizer, IMAGE_PAD):
        tokenizer.add_tokens([AddedToken(IMAGE_PAD, special=True)], special_tokens=True)
    return tokenizer.convert_tokens_to_ids(IMAGE_PAD)


def encode_rendered(
    rendered: Rendered, image_tokens: Sequence[int], tokenizer: Any
) -> tuple[list[int], list[int]]:
    """Ids and labels of a text: IMAGE_TOKEN for images, IGNORE where nothing is scored.

    Args:
        image_tokens: places that each image takes, one an `IMAGE_PAD`, in order.

    Raises:
        ConversationError: more marks for images than images.
    """
    ids: list[int] = []
    labels: list[int] = []
    image, left = image_token_id(tokenizer), list(image_tokens)
    if (marks := rendered.text.count(IMAGE_PAD)) != len(left):
        raise ConversationError(
            f"{marks} {IMAGE_PLACEHOLDER} placeholders, but {len(left)} images; match them"
        )
    for token, begin, end in _tokens(rendered, tokenizer):
        if token == image:
            count = left.pop(0)
            ids += [IMAGE_TOKEN] * count
            labels += [IGNORE] * count
            continue
        ids.append(token)
        labels.append(token if _scored(begin, end, rendered.answers) else IGNORE)
    return ids, labels


def encode_text(text: str, image_tokens: Sequence[int], tokenizer: Any) -> list[int]:
    """Ids of a text as it stands: special tokens that it spells out are special tokens."""
    text = text.replace(IMAGE_PLACEHOLDER, IMAGE_PAD)
    return encode_rendered(Rendered(text, (), 0, ()), image_tokens, tokenizer)[0]


# Tokens


def _tokens(rendered: Rendered, tokenizer: Any) -> Iterator[tuple[int, int, int]]:
    """Each token with the places in the text that it stands for."""
    at = 0
    for number, piece in enumerate(_IN_SPELLED.split(rendered.text)):
        if number % 2:
            size = len(_SPELLED.format(piece))
            letters = rendered.spelled[int(piece)]
            for token in tokenizer.encode(
                letters, add_special_tokens=False, split_special_tokens=True
            ):
                yield token, at, at + size
            at += size
            continue
        found = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        for token, (begin, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            yield token, at + begin, at + end
        at += len(piece)


def _scored(begin: int, end: int, answers: Sequence[tuple[int, int]]) -> bool:
    if begin == end:  # blanks, which some tokenizers cut away from their places
        return any(first < begin < last for first, last in answers)
    return any(begin < last and end > first for first, last in answers)


# What a template does


_KNOWN: WeakKeyDictionary[Any, dict[tuple[str | None, int], OwnTemplate | None]] = (
    WeakKeyDictionary()
)
_Q, _A = _TURN.format(0), _TURN.format(1)


def _default(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def knows(tokenizer: Any, token: str) -> bool:
    """Whether a tokenizer has this token."""
    found = tokenizer.convert_tokens_to_ids(token)
    return found is not None and found != tokenizer.unk_token_id


def _run(tokenizer: Any, source: str, messages: list[dict[str, str]], head: bool) -> str:
    return tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=head
    )


def _messages(*said: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def _is_chatml(tokenizer: Any, source: str | None) -> bool:
    if not (knows(tokenizer, START) and knows(tokenizer, END)):
        return source is None
    if source is None:
        return True
    try:
        text = _run(tokenizer, source, _messages(_Q, _A, _Q), True)
    except Exception:  # what a template raises is its own; ChatML was always read without it
        return True
    turns = "".join(
        f"{START}{role}\n{said}{END}\n"
        for role, said in (("user", _Q), ("assistant", _A), ("user", _Q))
    )
    system = rf"({re.escape(START)}system\n.*?{re.escape(END)}\n)?"
    head = f"({re.escape(f'{START}assistant')}\n)?"  # some templates leave it to the caller
    return bool(re.fullmatch(system + re.escape(turns) + head, text, re.DOTALL))


def _look_at(tokenizer: Any, source: str | None) -> OwnTemplate | None:
    if source is None or _is_chatml(tokenizer, source):
        return None
    if not getattr(tokenizer, "is_fast", False):
        raise ViqError(
            "its tokenizer does not tell places of tokens in a text: give one with tokenizer.json"
        )
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = sorted({*tokens, *tokenizer.all_special_tokens, IMAGE_PAD}, key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, tokens)))
    try:
        asked = _run(tokenizer, source, _messages(_Q), True)
        answered = _run(tokenizer, source, _messages(_Q, _A, _Q), False)
        ended = _run(tokenizer, source, _messages(_Q, _A), False)
        blanks = _run(tokenizer, source, _messages(f" \n{_Q}\n ", f" \n{_A}\n "), False)
    except Exception as error:  # what a template raises is its own
        raise ViqError(
            f"its chat template cannot be used ({first_line(error)}); give another language model"
        ) from None
    texts = (text.partition(_A)[2] for text in (ended, answered))
    last, within = (_closing(after, special) for after in texts)
    if last is None:
        raise ViqError(
            "its chat template closes answers with no special token, so a model could not learn to "
            "stop; give one that does, such as an instruct model"
        )
    told = _told(tokenizer, source)
    head, before = asked.partition(_Q)[2], ended.partition(_Q)[2].partition(_A)[0]
    begun = (special.match(text) for text in (asked, told or ""))
    roles = (("user", _Q), ("assistant", _A))
    return OwnTemplate(
        source=source,
        takes_system=told is not None,
        stripped=frozenset(role for role, mark in roles if f" \n{mark}\n " not in blanks)
        | ({"system"} if told and f" \n{_A}\n " not in told else set()),
        ends=tuple(dict.fromkeys(found[1] for found in (last, within) if found)),
        lead=before.removeprefix(head) if before.startswith(head) else "",
        openings=tuple({match[0] for match in begun if match}),
        special=special,
    )


def _closing(after: str, special: re.Pattern[str]) -> re.Match[str] | None:
    """The special token that comes next after an answer."""
    return re.match(rf"\s*({special.pattern})", after)


def _told(tokenizer: Any, source: str) -> str | None:
    """A prompt with a system text; None if the template refuses one or leaves it out."""
    try:
        text = _run(tokenizer, source, _messages(_Q, system=f" \n{_A}\n "), True)
    except Exception:  # what a template raises is its own
        return None
    return text if _A in text else None
