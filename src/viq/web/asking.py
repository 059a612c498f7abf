"""Conversations about a picture, word by word."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from transformers import StoppingCriteria, TextStreamer

from viq.core.codes import Codes
from viq.image.open import open_image
from viq.mllm.chat import ask
from viq.mllm.loading import load_mllm
from viq.web.pictures import Seen
from viq.web.work import Work

_EVERY = 0.5  # seconds between two counts of an answer that is not shown yet


class Talker:
    """A multimodal language model that is loaded.

    Raises:
        ViqError: no model there.
    """

    def __init__(self, name: str, device: str) -> None:
        self._model, self._processor = load_mllm(name, device=device)

    def reads(self, codes: Codes) -> bool:
        """Whether it reads these codes, rather than its own of the picture, which it shrinks where
        it was trained on smaller ones."""
        height, width = codes.size
        fits = height * width <= self._processor.max_pixels
        return fits and codes.fingerprint == self._processor.fingerprint

    def answer(
        self, seen: Seen, before: Sequence[dict[str, str]], question: str, tokens: int, work: Work
    ) -> str:
        """The answer, told to `work` as it is written; what there is of it when it is stopped.

        Of a model that says "I don't know." where it is unsure, in one piece: how sure it is of an
        answer is known after its last token only, and no word of one that is withheld is shown.

        Raises:
            Stopped: before it is known whether the answer is withheld.
        """
        look: Any = seen.codes
        if not self.reads(seen.codes):
            look = open_image(seen.files.get("original", seen.files["viq"]), name=seen.name)
        whole = self._processor.min_confidence > 0
        work.tell(stage="answering")
        said = ask(
            self._model, self._processor, [look], question, before=before,
            streamer=None if whole else _Told(self._processor.tokenizer, work),
            stopping_criteria=[_Over(work, counts=whole)], max_new_tokens=tokens, do_sample=False,
        )  # fmt: skip
        if whole:
            work.check()
            work.tell(text=said)
        return said


class _Told(TextStreamer):
    """Words of an answer as events."""

    def __init__(self, tokenizer: Any, work: Work) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._work = work

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._work.tell(text=text)


class _Over(StoppingCriteria):
    """Ends the answer when the visitor stops it, or after its time.

    Args:
        counts: tell how many tokens there are, every half second.
    """

    def __init__(self, work: Work, counts: bool) -> None:
        self._work, self._counts = work, counts
        self._written, self._told = 0, time.monotonic()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        self._written += 1
        if self._counts and time.monotonic() - self._told > _EVERY:
            self._told = time.monotonic()
            self._work.tell(stage=f"answering, {self._written} tokens so far")
        return torch.full((len(input_ids),), self._work.is_over, device=input_ids.device)
