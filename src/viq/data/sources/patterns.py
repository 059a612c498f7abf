"""Names of files by patterns with {a,b}, {000..123}, * and ?."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from viq.data.sources.base import SourceError, place

_BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
_NAMES = 1_000_000  # that one pattern may stand for


def matching(pattern: str) -> list[Path]:
    """The files that a pattern with {a,b}, {000..123}, * or ? stands for. Raises `SourceError`."""
    paths: list[Path] = []
    for text in expanded(pattern):
        found = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not found:
            raise SourceError(f"{place(text)}: does not exist; check the path")
        paths += map(Path, found)
    return paths


def _choices(braces: re.Match[str]) -> Sequence[int] | list[str]:
    first, last, words = braces.groups()
    return words.split(",") if words is not None else range(int(first), int(last) + 1)


def _count(pattern: str) -> int:
    """At most how many names `_each` gives, without making them."""
    count = 1
    while braces := _BRACES.search(pattern):
        # What stands within a choice is counted as if it stood beside it, which is no less.
        count *= max(1, len(_choices(braces)))
        pattern = pattern[: braces.start()] + pattern[braces.end() :]
        if count > _NAMES:
            break
    return count


def expanded(pattern: str) -> Iterator[str]:
    """Replace {a,b} and {000..123}, the first braces varying slowest.

    Raises:
        SourceError: it stands for too many names; before any is made.
    """
    if _count(pattern) > _NAMES:
        raise SourceError(f"{place(pattern)}: stands for more than {_NAMES:,} names; use *")
    return _each(pattern)


def _each(pattern: str) -> Iterator[str]:
    braces = _BRACES.search(pattern)
    if not braces:
        yield pattern
        return
    width = len(braces.group(1) or "")
    for choice in _choices(braces):
        text = choice if isinstance(choice, str) else f"{choice:0{width}}"
        yield from _each(pattern[: braces.start()] + text + pattern[braces.end() :])
