"""Files of answers: a JSON object {key, answer} a line, which a killed run leaves whole but one.

Lines are added as answers come, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from viq.core.files import open_regular
from viq.core.outputs import is_there
from viq.core.types import ViqError
from viq.core.untrusted import UntrustedError, parse_json


def answer_line(key: str, answer: str) -> bytes:
    """One line, whatever the text holds: JSON in ASCII."""
    return (json.dumps({"key": key, "answer": answer}) + "\n").encode()


@contextmanager
def added_to(out: Path, whole_bytes: int) -> Iterator[BinaryIO]:
    """The file to add lines to, without what a kill tore, as `read_answers` has found it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as file:
        file.truncate(whole_bytes)
        yield file


def read_answers(out: Path) -> tuple[dict[str, str], int]:
    """The answers of a file by their keys, and the bytes of its whole lines. Changes nothing.

    Raises:
        ViqError: it is no file of answers.
    """
    answers: dict[str, str] = {}
    whole_bytes = 0
    if not is_there(out):
        return answers, whole_bytes
    refusal = ViqError(f"{out}: is no file of answers; give another --out")
    if out.is_symlink():  # lines would be added to what it leads to
        raise ViqError(f"{out}: is a link; give the file that it leads to as --out")
    with open_regular(out) as file:
        for line in file:
            if not line.endswith(b"\n"):
                if not _is_torn(line, first=not answers):
                    raise refusal
                break
            try:
                values = parse_json(line, str(out))
            except UntrustedError:
                raise refusal from None
            if not isinstance(values, dict) or not all(
                isinstance(values.get(name), str) for name in ("key", "answer")
            ):
                raise refusal
            answers[values["key"]] = values["answer"]
            whole_bytes += len(line)
    return answers, whole_bytes


def _is_torn(line: bytes, first: bool) -> bool:
    """Whether this is the beginning of a line of `answer_line`, and not all of another one."""
    head = answer_line("", "")[:9]  # {"key": "
    if not line.startswith(head):
        return not first and head.startswith(line)
    try:
        return set(parse_json(line, "")) == {"key", "answer"}
    except UntrustedError:
        return True
