"""Whether an answer is right."""

from __future__ import annotations

import re
from collections import Counter


def words_f1(true: str, answer: str) -> float:
    """Harmonic mean of precision and recall of the words of an answer, 0 to 1."""
    wanted, given = _words(true), _words(answer)
    if not wanted or not given:
        return float(wanted == given)
    both = sum((Counter(wanted) & Counter(given)).values())
    return 2 * both / (len(wanted) + len(given))


def is_right(true: str, answer: str) -> bool:
    """Whether two answers are equal but for case, spaces and a full stop at the end."""
    return _plain(true) == _plain(answer)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
