"""What comes from files, folders and servers of others, checked before anything is made of it.

The user's command line is trusted; no name, number or text inside a file is. Every name that
becomes a file name, every digest, every JSON text and every line that is shown goes through one of
these functions. docs/security.md has the whole list, with the bounds.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from viq.core.errors import ViqError

# Bytes of the JSON files that are read whole; the largest that is known to be needed is a tenth.
CONFIG_BYTES = 16 * 2**20
INDEX_BYTES = 256 * 2**20  # 1.6 million shards

_MAX_LEVELS, _MAX_CODES = 16, 1 << 16

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Control characters are of category Cc; these turn or hide the text around them.
_HIDING = frozenset("\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e"
                    "\u2060\u2066\u2067\u2068\u2069\ufeff")  # fmt: skip


class UntrustedError(ViqError):
    """A file of somebody else asks for what it may not have. One line: what, where, why not."""


def file_name(name: Any, where: str, pattern: re.Pattern[str] = _FILE_NAME) -> str:
    """A name from a file that is to be that of a file: one plain part of a path.

    Args:
        pattern: that the whole name must match.

    Raises:
        UntrustedError: it is none; names `where`.
    """
    if not isinstance(name, str) or not pattern.fullmatch(name) or ".." in name:
        raise UntrustedError(f"{where}: {_quoted(name)} is no name of a file there can be")
    return name


def fingerprint(value: Any, where: str) -> str:
    """16 hex digits, or "" for an unknown tokenizer. Raises `UntrustedError`."""
    return _digits(value, _FINGERPRINT, "fingerprint", where)


def sha256(value: Any, where: str) -> str:
    """64 hex digits, or "" for an unknown file. Raises `UntrustedError`."""
    return _digits(value, _SHA256, "SHA-256", where)


def whole_number(value: Any, where: str, least: int = 0, most: int = 2**53) -> int:
    """An integer between two bounds, both included. Raises `UntrustedError`."""
    if type(value) is not int or not least <= value <= most:
        raise UntrustedError(f"{where}: {_quoted(value)} is no whole number from {least} to {most}")
    return value


def fraction(value: Any, where: str) -> float:
    """A number from 0 to 1. Raises `UntrustedError`."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UntrustedError(f"{where}: {_quoted(value)} is no number from 0 to 1")
    return float(value)


def levels_of(value: Any, where: str) -> tuple[int, ...]:
    """FSQ levels: few, and their product within what ids can tell apart. Raises `UntrustedError`.

    () where they are unknown.
    """
    if not isinstance(value, list) or len(value) > _MAX_LEVELS:
        raise UntrustedError(f"{where}: FSQ levels are a list of up to {_MAX_LEVELS} numbers")
    levels = tuple(whole_number(level, f"{where}, levels", 1, _MAX_CODES) for level in value)
    if math.prod(levels) > _MAX_CODES:
        raise UntrustedError(f"{where}: FSQ levels {levels} make more than {_MAX_CODES} codes")
    return levels


def shape(config: Any, **most: int) -> None:
    """See that numbers of a config, by name, are whole and from 1 to a bound.

    Raises:
        UntrustedError: one is not; names it.
    """
    for name, bound in most.items():
        whole_number(getattr(config, name), name, 1, bound)


def ratio(config: Any, name: str, most: float = 64.0) -> None:
    """See that a number of a config is above 0 and at most so much. Raises `UntrustedError`."""
    value = getattr(config, name)
    if type(value) not in (int, float) or not 0 < value <= most:
        raise UntrustedError(f"{name}: {_quoted(value)} is no number above 0, at most {most:g}")


def below(root: Path, name: str, where: str) -> Path:
    """The path `name` below `root`, where it stays when all links are followed.

    A snapshot in the cache of the Hugging Face hub is made of links into the folder `blobs` of its
    repository; these may be followed too.

    Raises:
        UntrustedError: it is absolute, leads out of `root`, or is no path at all.
    """
    try:
        path = root / name
        # realpath, as Path.resolve refuses loops of links with an error of its own
        real, home = Path(os.path.realpath(path)), Path(os.path.realpath(root))
        blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
        inside = real.is_relative_to(home) or real.is_relative_to(blobs)
    except (ValueError, OSError):  # a NUL, half a character, a name that is too long
        raise UntrustedError(f"{where}: {_quoted(name)} is no path there can be") from None
    if os.path.isabs(name) or not inside:
        raise UntrustedError(
            f"{where}: {_quoted(name)} lies outside of {printable(str(root))}, the folder of the "
            "data"
        )
    return path


def parse_json(data: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        UntrustedError: no JSON, or nested too deeply; names `where`.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise UntrustedError(f"{where}: is nested too deeply to be read") from None
    except ValueError as error:  # also text that is no UTF-8, and numbers of too many digits
        raise UntrustedError(f"{where}: is not JSON ({' '.join(str(error).split())})") from None


def printable(text: str, limit: int | None = None, kept: str = "") -> str:
    """The text with everything that could act on a terminal spelt out; without `kept`, one line.

    Args:
        limit: characters at most; longer text loses its middle.
        kept: control characters that stay as they are.
    """
    if not text.isascii() or not text.isprintable():
        text = "".join(c if c in kept else _plain(c) for c in text)
    if limit is None or len(text) <= limit:
        return text
    head = (limit - 3) // 2
    return text[:head] + "..." + text[head + 3 - limit :]


def _plain(character: str) -> str:
    hides = character in _HIDING or unicodedata.category(character) in ("Cc", "Cs")
    return character.encode("unicode_escape").decode() if hides else character


def _digits(value: Any, pattern: re.Pattern[str], what: str, where: str) -> str:
    if value == "" or (isinstance(value, str) and pattern.fullmatch(value)):
        return value
    raise UntrustedError(f"{where}: {_quoted(value)} is no {what}")


def _quoted(value: Any) -> str:
    return f"'{printable(str(value), 80)}'"
