"""Requests of lmms-eval as our own prompts and options of `generate`. Needs no lmms-eval.

A request of a model in chat form has six arguments: the text, a function from a row to messages,
the generation settings of the task, the number of the row, the task and the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from viq.core.types import ViqError
from viq.core.untrusted import printable, whole_number
from viq.data.text.conversations import IMAGE_PLACEHOLDER

MOST_TOKENS = 2**20  # of an answer; more is a slip of the pen
_SAMPLING = ("temperature", "top_p", "top_k")
_OF_GENERATE = ("max_new_tokens", "do_sample", "num_beams", "repetition_penalty", *_SAMPLING)
_OF_OTHER_MODELS = ("image_aspect_ratio",)  # how LLaVA crops; our images keep their shape


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How an answer is generated; equal ones can share a batch.

    Attributes:
        options: of `generate`, as sorted pairs.
        until: stop texts; an answer ends before the first of them.
    """

    options: tuple[tuple[str, Any], ...]
    until: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, taken apart.

    Attributes:
        text: the question, without images.
        messages_of: a row of the data set to messages in the form of lmms-eval.
        settings: of generation, as the task gives them.
        row, task, split: where the row is.
        generation: what the settings ask for.
    """

    text: str
    messages_of: Callable[[Any], Any]
    settings: Mapping[str, Any]
    row: Any
    task: str
    split: str
    generation: Generation

    @property
    def key(self) -> str:
        """Names the row in errors."""
        return f"{self.task}/{self.split}/{self.row}"


def request_of(arguments: Sequence[Any], max_new_tokens: int) -> Request:
    """The six arguments of a request.

    Args:
        max_new_tokens: of tasks that name none.

    Raises:
        ViqError: another number of them, as of a model in simple form, or settings that are not
            known.
    """
    if len(arguments) != 6 or not callable(arguments[1]):
        raise ViqError(
            f"a request with {len(arguments)} arguments is not in the chat form of lmms-eval "
            "0.7.3: install that release, pip install 'viq[lmms]'"
        )
    text, messages_of, settings, row, task, split = arguments
    return Request(
        text=str(text),
        messages_of=messages_of,
        settings=settings or {},
        row=row,
        task=str(task),
        split=str(split),
        generation=generation_of(settings or {}, max_new_tokens, str(task)),
    )


def generation_of(settings: Mapping[str, Any], max_new_tokens: int, where: str) -> Generation:
    """Generation settings of a task as options of `generate`.

    Greedy, unless a temperature above 0, or `do_sample` without a temperature, asks for sampling.

    Args:
        max_new_tokens: where the settings have none.
        where: names the task in errors.

    Raises:
        ViqError: a setting that is not known, or has another type.
    """
    known = {name: value for name, value in settings.items() if value is not None}
    until = known.pop("until", [])
    unknown = [name for name in known if name not in (*_OF_GENERATE, *_OF_OTHER_MODELS)]
    if unknown:
        raise ViqError(
            f"{where}: {printable(', '.join(map(str, unknown)), 200)}: no generation setting of "
            f"the model viq, which takes until, {', '.join(_OF_GENERATE)}"
        )
    options = {name: known[name] for name in _OF_GENERATE if name in known}
    limit = options.get("max_new_tokens", max_new_tokens)
    options["max_new_tokens"] = whole_number(limit, f"{where}, max_new_tokens", 1, MOST_TOKENS)
    options["do_sample"] = _samples(options)
    if not options["do_sample"]:
        options = {name: value for name, value in options.items() if name not in _SAMPLING}
    return Generation(options=tuple(sorted(options.items())), until=_stop_texts(until, where))


def _samples(options: Mapping[str, Any]) -> bool:
    temperature = options.get("temperature")
    wanted = options.get("do_sample", temperature is not None)
    return bool(wanted) and (temperature is None or temperature > 0)


def _stop_texts(until: Any, where: str) -> tuple[str, ...]:
    texts = [until] if isinstance(until, str) else until
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ViqError(f"{where}, until: {printable(repr(until), 100)} is no list of texts")
    return tuple(text for text in texts if text)


def batches(requests: Sequence[Request], size: int) -> Iterator[list[int]]:
    """Numbers of requests, in groups with the same generation settings.

    The longest texts come first, as what runs out of memory should do so at once; texts of about
    the same length share a batch, so that little of it is padding.
    """
    by_settings: dict[Generation, list[int]] = {}
    for number, request in enumerate(requests):
        by_settings.setdefault(request.generation, []).append(number)
    for numbers in by_settings.values():
        numbers.sort(key=lambda number: -len(requests[number].text))
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def chat(messages: Any, where: str) -> list[dict[str, Any]]:
    """Messages of lmms-eval (`ChatMessages.messages`) as `ViQProcessor` takes them.

    Images that come before the first text of a turn are each followed by a line feed, as in every
    conversation that our models are trained on. Other images stay where they are.

    Raises:
        ViqError: a part is neither text nor a PIL image.
    """
    return [
        {"role": str(message.role), "content": _content(message.content, where)}
        for message in messages
    ]


def _content(parts: Sequence[Any], where: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    first = True
    for part in parts:
        first = first and part.type == "image"
        content.append(_part(part, where))
        if first:
            content.append({"type": "text", "text": "\n"})
    return content


def _part(part: Any, where: str) -> dict[str, Any]:
    if part.type == "text":
        # A question that spells out our placeholder has no image to go there.
        return {"type": "text", "text": part.text.replace(IMAGE_PLACEHOLDER, "<image >")}
    if part.type == "image" and isinstance(part.url, Image.Image):
        return {"type": "image", "image": part.url}
    kind = f"{part.type} in the form of {type(part.url).__name__}"
    raise ViqError(f"{where}: {printable(kind, 100)}: the model viq reads text and PIL images")
