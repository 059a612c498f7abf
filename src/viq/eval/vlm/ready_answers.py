"""Answers that somebody else's model gave, from a file, to be scored.

`{"chartqa": ["12.5", "yes", ...], ...}` in the order of the rows; or JSON lines of one answer each:
`{"task": "chartqa", "answer": "12.5"}` in the order of the rows, with `"doc_id": 3` of that row, or
`{"key": "chartqa/3", "answer": "12.5"}` as `viq eval vlm` writes them. Of a file that is cut off,
what is whole counts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viq.core.errors import first_line
from viq.core.files import read_bytes
from viq.core.types import ViqError
from viq.core.untrusted import INDEX_BYTES, UntrustedError, parse_json, printable
from viq.eval.vlm.tasks import TASKS

_KEY = re.compile(r"(\w+)/(\d{1,9})")
_SPACE = re.compile(r"\s*")


@dataclass
class Ready:
    """Answers by task and number of the row, and a line for all that could not be read.

    Attributes:
        following: the row after the last, of each task.
    """

    tasks: dict[str, dict[int, str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    following: Counter[str] = field(default_factory=Counter)

    def add(self, task: str, answer: Any, number: int | None, where: str) -> None:
        """Add an answer, or none, to a row: by default the one after the last."""
        answers = self.tasks.setdefault(task, {})
        number = self.following[task] if number is None else number
        self.following[task] = number + 1
        if isinstance(answer, str):
            answers[number] = answer
        elif answer is not None:
            self.failed.append(f"{where}: an answer is {type(answer).__name__} instead of text")


def read_ready(path: Path) -> Ready:
    """Read a file of answers.

    Raises:
        ViqError: it cannot be read, or holds no answers.
    """
    try:
        text = read_bytes(path, INDEX_BYTES).decode()
    except OSError as error:
        raise ViqError(f"--answers {path}: cannot be read ({first_line(error)})") from None
    except UnicodeDecodeError:
        raise ViqError(f"--answers {path}: is no text in UTF-8; write it again") from None
    found = Ready()
    if _is_lines(text):
        _read_lines(text, path, found)
    else:
        _read_lists(text, path, found)
    for name in [name for name in found.tasks if name not in TASKS]:
        del found.tasks[name]
        found.failed.append(
            f"{path}: {printable(name, 80)} is no task; the names are {', '.join(TASKS)}"
        )
    if not found.tasks:
        raise ViqError(found.failed[0] if found.failed else f"--answers {path}: holds no answers")
    return found


def _is_lines(text: str) -> bool:
    """Whether the first line is an object of its own, of one answer."""
    try:
        value = json.loads(text.split("\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "answer" in value


def _read_lines(text: str, path: Path, found: Ready) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            value = parse_json(line, where)
        except UntrustedError as error:
            found.failed.append(f"{error}; it may be cut off")
            continue
        match value:
            case {"task": str(task), "answer": answer, "doc_id": int(row)} if row >= 0:
                found.add(task, answer, row, where)
            case {"task": str(task), "answer": answer} if "doc_id" not in value:
                found.add(task, answer, None, where)
            case {"key": str(key), "answer": answer} if named := _KEY.fullmatch(key):
                found.add(named[1], answer, int(named[2]), where)
            case _:
                found.failed.append(f"{where}: has no task and answer; give both")


def _read_lists(text: str, path: Path, found: Ready) -> None:
    reader = _Reader(text)
    try:
        for task, answers in reader.lists():
            found.tasks.setdefault(task, {})
            for number, answer in enumerate(answers):
                found.add(task, answer, number, f"{path}: {printable(task, 80)}, row {number}")
    except (ValueError, RecursionError):
        last = next(reversed(found.tasks), None)
        within = f" in {printable(last, 80)}" if last else ""
        found.failed.append(
            f"{path}: is not JSON from character {reader.place} on{within}: it may be cut off; "
            "what is before counts"
        )


class _Reader:
    """Objects of lists, read value by value: what is before a fault is not lost."""

    def __init__(self, text: str) -> None:
        self._text, self.place = text, 0
        self._decoder = json.JSONDecoder()

    def lists(self) -> Iterator[tuple[str, Iterator[Any]]]:
        """Each name, and its values, which are to be taken before the next name.

        Raises:
            ValueError: the text is none of this form.
        """
        while not self._at_end():
            self._expect("{")
            while not self._at("}"):
                name = self._value()
                if not isinstance(name, str):
                    raise ValueError
                self._expect(":")
                yield name, self._values()
                if not self._at(","):
                    self._expect("}")
                    break

    def _values(self) -> Iterator[Any]:
        self._expect("[")
        while not self._at("]"):
            yield self._value()
            if not self._at(","):
                self._expect("]")
                return

    def _value(self) -> Any:
        self._skip()
        value, self.place = self._decoder.raw_decode(self._text, self.place)
        return value

    def _at_end(self) -> bool:
        self._skip()
        return self.place == len(self._text)

    def _at(self, mark: str) -> bool:
        """Whether this comes next; it is passed then."""
        self._skip()
        found = self._text.startswith(mark, self.place)
        self.place += len(mark) * found
        return found

    def _expect(self, mark: str) -> None:
        if not self._at(mark):
            raise ValueError

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self.place)
        self.place = space.end() if space else self.place


def require_fits(path: Path, task: str, answers: Sequence[int], rows: int) -> None:
    """Refuse answers to rows that a task does not have: they are those of other data.

    Raises:
        ViqError: names the file and both numbers.
    """
    if answers and max(answers) >= rows:
        raise ViqError(
            f"{path}: has an answer to row {max(answers)} of {task}, but its data have {rows} "
            "rows; give the answers to these data"
        )
