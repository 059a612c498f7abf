"""Silence for what libraries would say about their own work while one of our commands runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that transformers draws while it loads and saves weights.

    The bars of downloads, which tell why a command takes so long, stay; so does, afterwards,
    whatever was set before.
    """
    from transformers.utils import logging

    def nothing(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return logging.EmptyTqdm(*args, **kwargs)

    before = logging.set_tqdm_hook(nothing)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
