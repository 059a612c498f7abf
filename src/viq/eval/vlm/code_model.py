"""A multimodal model on codes under evaluation: its vision encoder runs once, for a store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from viq.core.types import ViqError, language_tokens
from viq.data.sources.base import Source
from viq.data.text.conversations import IMAGE_PLACEHOLDER
from viq.eval.vlm.models import Loaded, Question, Report, decoded, greedy
from viq.eval.vlm.picture_codes import Encoded, Pictures, codes_of
from viq.eval.vlm.tasks.base import Task
from viq.mllm.loading import load_mllm
from viq.models.tokenizer.loading import load
from viq.models.tokenizer.tokenizer import VisualTokenizer

_SPELT = "<image >"  # a text that spells out the placeholder of an image has no image there
_LETTERS = 4  # of text in a token, roughly: for sorting by length alone


class CodeModel:
    """A model of `viq train mllm`, as `Model` has it.

    Args:
        name: bundled name, run folder, model folder or hub id.
        codes: folder of the stores of codes, one a task; made where it is missing.
        tokenizer: name or folder of the tokenizer; by default the one that the model names.

    Raises:
        ViqError: no model there.
    """

    window = 64

    def __init__(
        self,
        name: str,
        codes: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: str | None = None,
    ) -> None:
        self.name, self._folder, self._device = name, codes, device
        self._model, self._processor = load_mllm(name, device=device, dtype=dtype)
        self.folder = Path(self._model.config.name_or_path or name)
        self._tokenizer_name = tokenizer or self._model.config.embedder.tokenizer
        self._encoded = Encoded({}, {})
        self.pictures = (
            f"shrunk to at most {self._processor.max_pixels:,} pixels, then codes of "
            f"{self._processor.fingerprint or 'an unnamed tokenizer'}"
        )

    def prepare(self, task: Task, identity: str, source: Source, rows: int, report: Report) -> None:
        fingerprint, most = self._processor.fingerprint, self._processor.max_pixels
        told = hashlib.sha256(f"{identity} {fingerprint} {most}".encode()).hexdigest()[:16]
        self._encoded = codes_of(
            Pictures(task, source),
            self._folder / f"{task.name}-{told}",
            rows,
            fingerprint=fingerprint,
            max_pixels=most,
            tokenizer=self._loaded_tokenizer,
            report=report,
            what=task.name,
        )

    def load(self, question: Question) -> Loaded:
        if reason := self._encoded.failed.get(question.number):
            raise ViqError(reason)
        codes = self._encoded.codes.get(question.number, ())
        shown = tuple(codes[part] for part in question.parts if isinstance(part, int))
        letters = sum(len(part) for part in question.parts if isinstance(part, str))
        places = sum(language_tokens(one.grid, self._processor.merge_size) for one in shown)
        return Loaded(question=question, pictures=shown, size=places + letters // _LETTERS)

    def answers(self, loaded: Sequence[Loaded], most_tokens: int, stop: Sequence[str]) -> list[str]:
        inputs = self._processor(
            # As messages: a text that spells out turns would be read as such.
            text=[[{"role": "user", "content": _content(one.question)}] for one in loaded],
            codes=[list(one.pictures) for one in loaded],
            keys=[one.question.where for one in loaded],
        ).to(self._device)
        prompt, words = inputs["input_ids"].shape[1], self._processor.tokenizer
        with torch.inference_mode():
            ids = self._model.generate(**inputs, **greedy(words, prompt, most_tokens, stop))
        return decoded(words, ids[:, prompt:], stop)

    def facts(self) -> dict[str, Any]:
        return {"codes_per_picture": round(self._encoded.mean(), 1)}

    def _loaded_tokenizer(self) -> VisualTokenizer:
        tokenizer = load(self._tokenizer_name, device=self._device)
        self._model.require(tokenizer.fingerprint)
        return tokenizer


def _content(question: Question) -> str:
    """The prompt with a placeholder for each picture; those that come before any text have a line
    each, as in training."""
    texts, leads = [], True
    for part in question.parts:
        if isinstance(part, int):
            texts.append(IMAGE_PLACEHOLDER + ("\n" if leads else ""))
        else:
            leads = False
            texts.append(part.replace(IMAGE_PLACEHOLDER, _SPELT))
    return "".join(texts)
