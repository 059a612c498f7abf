"""The errors of the project, and those of libraries told as ours. All are one line: what, where,
how to mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ViqError(ValueError):
    """Something is wrong with what the user gave. One line: what, where, how to mend."""


class Stopped(ViqError):
    """Asked to stop: what was done is saved, and the same command goes on."""


class CodesError(ViqError):
    """Codes that are damaged, inconsistent, or made by another tokenizer. One line."""


def first_line(error: BaseException, limit: int | None = 200) -> str:
    """What an error of a library says, as part of a line of ours: printable, without the name of
    the file that we name ourselves, at most `limit` characters."""
    from viq.core.untrusted import printable  # a module that itself needs ours

    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = words.strip().splitlines() or [type(error).__name__]
    return printable(lines[0].rstrip(), limit)


@contextmanager
def require(module: str, extra: str, what: str, kind: type[ViqError] = ViqError) -> Iterator[None]:
    """Imports of an optional library: `with require("peft", "train", "a language model"): ...`.

    Args:
        module: as `import` calls it.
        extra: of viq, which installs it.
        what: in the message "WHAT needs MODULE: pip install 'viq[EXTRA]'".
        kind: of the error.

    Raises:
        ViqError: it is not installed.
    """
    try:
        yield
    except ImportError:
        raise kind(f"{what} needs {module}: pip install 'viq[{extra}]'") from None
