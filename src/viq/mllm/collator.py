"""Rows of a store, or samples of `viq.CodeDataset`, to batches for trainers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from viq.core.codes import Codes
from viq.core.types import ViqError
from viq.data.sources.base import ImageRef, Row
from viq.data.text.conversations import Conversation, ConversationError, conversation
from viq.mllm.processing import ViQProcessor
from viq.mllm.visuals import as_codes, is_codes
from viq.store.views import CodeSample


class CodesCollator:
    """Codes and what is said about them as `input_ids`, `labels` and the rest.

    A row has `codes`, `rows` and `cols`, or `images`, a list of such; or it is a sample of
    `viq.CodeDataset`. What is said stands in `messages`, `conversations`, `pairs` or a caption, as
    in the stores that `viq train mllm` reads; answers are scored, nothing else.

    Args:
        processor: of the model.
        prompt: the question that captions answer.
    """

    def __init__(self, processor: ViQProcessor, prompt: str = "Describe the image.") -> None:
        self.processor, self.prompt = processor, prompt

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """A batch of (B, L) tensors, padded on the right, with `codes` and `image_grid_hw`.

        Raises:
            ViqError: a row without codes or without words; names it.
        """
        chats = [self._chat(row, f"row {number}") for number, row in enumerate(rows)]
        inputs = self.processor(
            text=[
                [{"role": turn.role, "content": turn.text} for turn in chat.turns] for chat in chats
            ],
            codes=[list(chat.images) for chat in chats],
            keys=[chat.where for chat in chats],
            labels=True,
            padding_side="right",  # positions then begin at 0, also where they are learned
        )
        return dict(inputs)

    def _chat(self, row: Any, name: str) -> Conversation:
        if isinstance(row, CodeSample):
            codes, extras, name = row.codes, dict(row.extras), row.key
        elif isinstance(row, Mapping):
            extras, name = dict(row), str(row.get("key") or name)
            codes = _codes_in(extras, name)
        else:
            raise ViqError(f"{name}: {type(row).__name__} is no row of a store and no CodeSample")
        extras = {field: value for field, value in extras.items() if value is not None}
        images = cast(tuple[ImageRef, ...], codes)  # they stand for the images here
        return conversation(
            Row(key=name, images=images, extras=extras, where=name), prompt=self.prompt
        )


def _codes_in(row: dict[str, Any], name: str) -> tuple[Codes, ...]:
    """The codes of a row, which loses them."""
    if (images := row.pop("images", None)) is not None:
        if not all(map(is_codes, images)):
            raise ConversationError(
                f"{name}: images holds pictures where codes are wanted; encode them (viq encode)"
            )
        return tuple(as_codes(image, name) for image in images)
    found = as_codes(row, name) if is_codes(row) and row["rows"] else None
    row.pop("codes", None)
    return () if found is None else (found,)
