"""Keyword arguments that transformers passes on: ask for what is done anyway, or are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from viq.core.types import ViqError
from viq.core.untrusted import printable

# Values that ask a call of the processor for what it gives. Pipelines and trainers pass them.
OF_CALL: Mapping[str, tuple[Any, ...]] = {
    "add_special_tokens": (False, True, None),
    "videos": (None,),
    "audio": (None,),
}
OF_TEMPLATE: Mapping[str, tuple[Any, ...]] = {
    "tools": (None,),
    "documents": (None,),
    "load_audio_from_video": (False, None),
    "sanitize_control_tokens": (True, False, None),  # what is said is letters anyway
}
# Why others are not followed.
_REASONS = {
    "tools": "say in a system message which there are; calls and results in messages are read",
    "documents": "put what they say into a message",
}
_GROUPS = ("text_kwargs", "common_kwargs")


def flattened(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a call without the dictionaries in which transformers groups them."""
    flat = {name: value for name, value in given.items() if name not in _GROUPS}
    for group in _GROUPS:
        flat |= given.get(group) or {}
    return flat


def check_keywords(
    given: Mapping[str, Any],
    function: Callable[..., Any],
    harmless: Mapping[str, tuple[Any, ...]] | None = None,
) -> None:
    """See that nothing that a caller asks for is passed over.

    Args:
        given: keyword arguments that `function` has no parameter for.
        function: what was called, in the error with its parameters.
        harmless: values by name of others that change nothing.

    Raises:
        ViqError: another name, or another value.
    """
    for name, value in given.items():
        values = (harmless or {}).get(name)
        if values is None:
            raise ViqError(
                f"{printable(name, 100)}: no argument of {function.__qualname__}, which takes "
                + ", ".join(_parameters(function))
            )
        if not any(type(value) is type(known) and value == known for known in values):
            mend = _REASONS.get(name) or f"leave it out, or give {' or '.join(map(repr, values))}"
            raise ViqError(
                f"{name}: {printable(repr(value), 100)} is not what {function.__qualname__} does; "
                f"{mend}"
            )


def _parameters(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    named = (p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD)
    return [name for name in named if name != "self"]
