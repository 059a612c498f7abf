"""Conversations about a picture, word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import StoppingCriteria, TextStreamer

from viq.core.codes import Codes
from viq.image.open import open_image
from viq.mllm.chat import ask
from viq.mllm.loading import load_mllm
from viq.web.pictures import Seen
from viq.web.work import Work


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
        """The answer, told to `work` as it is written; what there is of it when it is stopped."""
        look: Any = seen.codes
        if not self.reads(seen.codes):
            look = open_image(seen.files.get("original", seen.files["viq"]), name=seen.name)
        streamer = _Told(self._processor.tokenizer, work)
        return ask(
            self._model, self._processor, [look], question, before=before, streamer=streamer,
            stopping_criteria=[_Over(work)], max_new_tokens=tokens, do_sample=False,
        )  # fmt: skip


class _Told(TextStreamer):
    """Words of an answer as events."""

    def __init__(self, tokenizer: Any, work: Work) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._work = work

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._work.tell(text=text)


class _Over(StoppingCriteria):
    """Ends the answer when the visitor stops it, or after its time."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        return torch.full((len(input_ids),), self._work.is_over, device=input_ids.device)
