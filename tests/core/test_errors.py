"""Errors of libraries, told as ours."""

import errno
import os

import pytest

from viq.core.errors import ViqError, first_line, require


class OfAKind(ViqError):
    """An error of one part of the project."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("\n  no such key \nTraceback ..."), "no such key"),
        (KeyError(), "KeyError"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/a/b"),
         "No such file or directory"),
        (RuntimeError("red \x1b[31m"), r"red \x1b[31m"),
    ],
)  # fmt: skip
def test_an_error_of_a_library_is_part_of_a_line(error: Exception, told: str) -> None:
    assert first_line(error) == told


def test_long_errors_lose_their_middle() -> None:
    error = ValueError("a" * 300 + "b" * 300)
    assert len(first_line(error)) == 200 and len(first_line(error, None)) == 600


def test_missing_libraries_are_told_with_what_installs_them() -> None:
    with pytest.raises(OfAKind, match=r"^a page needs nothing_like: pip install 'viq\[web\]'$"):
        with require("nothing_like", "web", "a page", OfAKind):
            __import__("nothing_like")
    with pytest.raises(OSError), require("os", "web", "a page"):
        raise OSError
