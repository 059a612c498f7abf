"""Questions and messages of a call of the processor, and the images that belong to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from viq.core.types import ViqError
from viq.data.sources.json_fields import is_image_part, part_source
from viq.data.text.conversations import Conversation, Turn, marked, turns_of
from viq.mllm.visuals import is_codes


def wants_head(turns: Sequence[Turn], asked: bool | None, unfinished: bool) -> bool:
    """Whether the head of an answer follows."""
    if asked and unfinished:
        raise ViqError("add_generation_prompt and continue_final_message: give one of them")
    if asked is None:
        return not unfinished and bool(turns) and turns[-1].role != "assistant"
    return asked


def is_one(text: Any) -> bool:
    """Whether this is one text rather than a batch of them."""
    return isinstance(text, str) or bool(text) and isinstance(text[0], dict)


def grouped(given: Any, samples: int, is_one: bool) -> list[list[Any]]:
    """Images of each sample."""
    if given is None:
        return [[] for _ in range(samples)]
    if is_one:
        return [_listed(given)]
    groups = [_listed(group) for group in _listed(given)]
    if len(groups) != samples:
        raise ViqError(
            f"{samples} texts, but images of {len(groups)}: give a list of images for each text"
        )
    return groups


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def checked_turns(sample: Any, images: list[Any], name: str) -> tuple[list[Turn], list[Any]]:
    """Checked turns of one sample, and its images, which messages may bring along."""
    if isinstance(sample, str):
        turns = [Turn(role="user", text=sample)]
    else:
        turns = turns_of(sample, name)
        images = images or [image for message in sample for image in _images_in(message)]
    turns = marked(turns, len(images))
    # Checked as training data are, which end with an answer.
    said = [turn for turn in turns if turn.role != "system"]
    answer = [Turn(role="assistant", text="?")] if len(said) % 2 else []
    Conversation(
        turns=(*turns, *answer), images=tuple(images), resize=(None,) * len(images), key=name,
        where=name,
    )  # fmt: skip
    return turns, images


def images_in(conversation: Any) -> Any:
    """The images that messages bring along: of one sample, or a list for each; None for none."""
    samples = [conversation] if is_one(conversation) else list(conversation)
    found = [
        [] if isinstance(sample, str) else [image for m in sample for image in _images_in(m)]
        for sample in samples
    ]
    return None if not any(found) else found[0] if is_one(conversation) else found


def turns_alone(sample: Any, name: str) -> list[Turn]:
    """Turns of one sample whose images may come later."""
    if isinstance(sample, str):
        return [Turn(role="user", text=sample)]
    return marked(turns_of(sample, name), _unmarked(sample))


def _unmarked(sample: Any) -> int:
    """Images that messages bring along."""
    return sum(len(_images_in(message)) for message in sample)


def _images_in(message: dict[str, Any]) -> list[Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    images = [part for part in parts if isinstance(part, dict) and is_image_part(part)]
    found = [part["image"] if is_codes(part.get("image")) else part_source(part) for part in images]
    return [] if all(image is None for image in found) else found
