"""Texts at which an answer ends, as benchmarks name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


def cut(text: str, until: Sequence[str]) -> str:
    """The answer: what comes before the first stop text, without outer white space."""
    ends = [text.find(stop) for stop in until if stop in text]
    return text[: min(ends, default=len(text))].strip()


class StopTexts(StoppingCriteria):
    """Ends each sequence once a stop text was generated, so that no time is spent behind it.

    It looks at the last tokens alone, as `cut` decides in the end. The criterion of transformers
    would also see a stop text that begins in the prompt, whose last character is a line feed.

    Args:
        tokenizer: of the language model.
        until: stop texts.
        prompt_length: tokens of the prompt, which come first in each sequence.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._until = tuple(until)
        self._prompt_length = prompt_length
        # A token is at least a byte; one more may begin before the stop text.
        self._last = 1 + max(len(stop.encode()) for stop in until)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each sequence of (B, L) is done: (B,) bool."""
        new_BL = input_ids[:, self._prompt_length :][:, -self._last :]
        texts = self._tokenizer.batch_decode(new_BL, skip_special_tokens=True)
        done = [any(stop in text for stop in self._until) for text in texts]
        return torch.tensor(done, device=input_ids.device)
