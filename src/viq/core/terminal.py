"""Text on a terminal: what keys, names and answers of others hold can be read, but never acts.

While a command runs, `plain_streams` stands in for stdout and stderr. A control character is spelt
out (`\\x1b`), and so is what the encoding of the stream does not have. Bars, which do move the
cursor, are drawn on the stream below: `raw`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, TextIO, cast

from viq.core.untrusted import printable


class PlainStream:
    """A text stream that spells out what could act on a terminal.

    Args:
        raw: where the text goes.
        kept: control characters that go through.
    """

    def __init__(self, raw: TextIO, kept: str = "\n\t") -> None:
        self.raw = raw
        self._kept = kept

    def write(self, text: str) -> int:
        """Gives the number of characters of `text`, as files do."""
        plain = printable(text, kept=self._kept)
        encoding = self.raw.encoding or "utf-8"
        self.raw.write(plain.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> TextIO:
    """The stream itself, for what draws on a terminal and shows no text of others."""
    return stream.raw if isinstance(stream, PlainStream) else stream


@contextmanager
def plain_streams() -> Iterator[None]:
    """Show only plain text on stdout and stderr while the block runs."""
    before = sys.stdout, sys.stderr
    if not any(isinstance(stream, PlainStream) for stream in before):
        sys.stdout = cast(TextIO, PlainStream(sys.stdout))
        # Bars of libraries go back to the begin of a line.
        sys.stderr = cast(TextIO, PlainStream(sys.stderr, kept="\n\t\r"))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def make_plain() -> None:
    """Prepare this process for a command: outside of `plain_streams`, too, no text of others acts.

    Help, warnings and faults spell out what the encoding lacks; a traceback also what could act,
    as it may quote a file.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # not a stream of Python's own making
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.excepthook = _show_fault


def _show_fault(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    import traceback

    text = "".join(traceback.format_exception(kind, error, where))
    with suppress(OSError, ValueError):
        sys.stderr.write(printable(text, kept="\n"))


def give_up_on(stream: Any) -> None:
    """Throw away what can no longer be written to: Python would try again at its end and complain.

    A full disk or a reader that has gone leave text in the buffer.
    """
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, raw(stream).fileno())
        os.close(nowhere)
