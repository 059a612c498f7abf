"""A Chromium of the system for tests: `playwright install` is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Without a sandbox, as root in a container has none to offer; and without requests of its own.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium(playwright: Any, path: str) -> Iterator[Any]:
    browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
    try:
        yield browser
    finally:
        browser.close()
