"""What an answer chooses: the letter of an option (MMStar, MMMU), or an open answer (MMMU).

As lmms-eval 0.7.3 finds it, but for one thing: where MMMU's rule finds no letter, lmms-eval draws
one at random, and here there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

# How an answer may be introduced; the order decides nothing.
_PHRASES = (
    "the answer is", "answer is", "the correct answer is", "correct answer is",
    "the best answer is", "best answer is", "the correct option is", "correct option is",
    "the best option is", "best option is", "the choice is", "choice is",
    "the correct choice is", "correct choice is", "i choose", "i select", "i pick",
    "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
_MARKED = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))  # and their rank
_START, _END, _PHRASE, _ANYWHERE = 10, 9, 7, 0  # ranks of the other ways to say a letter

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_BARE = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with commas between thousands
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # scientific
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # plain
)
_LONG = 5  # words; only longer answers are searched for the text of an option

Candidate = str | float


def stated_letter(prediction: str, letters: Sequence[str] = "ABCD") -> str:
    """MMStar: the letter that an answer states most clearly, or "".

    Of all ways in which letters occur the one of the highest rank counts, of these the last.
    """
    text = f" {_stripped(prediction.strip(), ',.!?;:' + chr(39) + chr(34))} "
    found = [*_marked(text, letters), *_after_phrases(text, letters), *_at_ends(text, letters)]
    if not found:
        found = [(_ANYWHERE, text.rfind(letter), letter) for letter in letters if letter in text]
    # `max` takes the first of equals.
    return max(found, key=lambda one: one[:2])[2] if found else ""


def chosen_letter(prediction: str, options: Mapping[str, str]) -> str | None:
    """MMMU: the letter of the option that an answer chooses; None if it names none.

    Args:
        options: their texts by letter, in order.
    """
    text = f" {_stripped(prediction.strip(), ',.!?;:' + chr(39))} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            return _last(found, lambda letter, at=place: text.rfind(at.format(letter)))
    if len(text.split()) <= _LONG:
        return None
    lower = text.lower()
    found = [letter for letter, option in options.items() if option.lower() in lower]
    return _last(found, lambda letter: lower.rfind(options[letter].lower())) if found else None


def open_candidates(prediction: str) -> list[Candidate]:
    """MMMU: what an open answer may mean, texts and numbers, each once."""
    pieces = _key_pieces(prediction.strip())
    texts = [*pieces, *(number for piece in pieces for number in numbers_in(piece))]
    return list(dict.fromkeys(value for text in texts for value in _values(text)))


def open_match(reference: str, candidates: Sequence[Candidate]) -> bool:
    """MMMU: whether any candidate is the number, or holds the text, of the reference."""
    wanted = _values(reference)
    for candidate in candidates:
        if isinstance(candidate, str):
            if any(isinstance(value, str) and value in candidate for value in wanted):
                return True
        elif any(candidate == value for value in wanted):  # a NaN equals nothing
            return True
    return False


def numbers_in(text: str) -> list[str]:
    """Numbers as they are written: with commas, then scientific, then plain ones."""
    return [number for pattern in _NUMBERS for number in pattern.findall(text)]


def _stripped(text: str, marks: str) -> str:
    """Without these marks at its ends; each is taken off once, in their order."""
    for mark in marks:
        text = text.strip(mark)
    return text


def _marked(text: str, letters: Sequence[str]) -> list[tuple[int, int, str]]:
    """(rank, last place, letter) of letters in brackets or before a mark."""
    return [
        (rank, text.rfind(form.format(letter)), letter)
        for form, rank in _MARKED
        for letter in letters
        if form.format(letter) in text
    ]


def _after_phrases(text: str, letters: Sequence[str]) -> list[tuple[int, int, str]]:
    """(rank, first place, letter) of letters that follow a phrase."""
    found, lower = [], text.lower()
    for phrase in _PHRASES:
        start = lower.find(phrase)
        if start < 0:
            continue
        places = ((text.find(letter, start + len(phrase)), letter) for letter in letters)
        found += [(_PHRASE, place, letter) for place, letter in places if place >= 0]
    return found


def _at_ends(text: str, letters: Sequence[str]) -> list[tuple[int, int, str]]:
    """(rank, place, letter) of a letter that begins or ends the text and is no part of a word."""
    bare, found = text.strip(), []
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            found.append((_START, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            found.append((_END, len(text) - 1, letter))
    return found


def _last(letters: Sequence[str], place: Callable[[str], int]) -> str:
    """The letter at the highest place; of several there, the first."""
    return max(letters, key=place)


def _key_pieces(answer: str) -> list[str]:
    """What stands behind the last key word of each line, or the whole answer, in lower case."""
    whole = answer.strip().strip(".").lower()
    lines = whole.split("\n")
    found = []
    for number, line in enumerate(lines):
        keys = (*_KEYS, "=") if number == len(lines) - 1 else _KEYS
        shortest = ""
        for tail in (line.split(key)[-1].strip() for key in keys if key in line):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _BARE:
            found.append(shortest)
    return found or [whole]


def _values(text: str) -> list[Candidate]:
    """A number rounded to two places, or the text; of one letter, that beside a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
    return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
