"""Models that answer the questions of a benchmark: what they have in common.

A model is handed questions by the batch and answers them greedily. It decides itself how pictures
come to it: as codes from a store (`code_model`), or as pixels (`pixel_model`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import StoppingCriteriaList

from viq.core.types import ViqError
from viq.data.sources.base import ImageRef, Row, Source
from viq.eval.vlm.stop_texts import StopTexts, cut
from viq.eval.vlm.tasks.base import Part, Task

# Shows how far a job is: what it does and of how many; gives what is called at each.
Report = Callable[[str, int], AbstractContextManager[Callable[[], Any]]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of a task, to be asked.

    Attributes:
        number: of the row.
        parts: of the prompt: text, or the number of one of `images`.
    """

    number: int
    parts: tuple[Part, ...]
    images: tuple[ImageRef, ...]
    where: str

    def row(self) -> Row:
        """Its pictures as a row, which opens them within bounds."""
        return Row(key=str(self.number), images=self.images, where=self.where)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A question with its pictures.

    Attributes:
        pictures: codes or PIL images, in the order of the parts that stand for them.
        size: what its length grows with, for batches of like with like.
    """

    question: Question
    pictures: tuple[Any, ...]
    size: int

    @property
    def number(self) -> int:
        return self.question.number


class Model(Protocol):
    """A model under evaluation.

    Attributes:
        name: as the user gave it.
        folder: of its files; of a model of the hub there is no such folder.
        window: batches' worth of questions that are loaded, and sorted by length, at a time.
        pictures: how pictures are made smaller, in words.
    """

    name: str
    folder: Path
    window: int
    pictures: str

    def prepare(self, task: Task, identity: str, source: Source, rows: int, report: Report) -> None:
        """Get ready for the first `rows` rows of a task."""
        ...

    def load(self, question: Question) -> Loaded:
        """Read the pictures. Raises `ViqError` if one cannot be read."""
        ...

    def answers(self, loaded: Sequence[Loaded], most_tokens: int, stop: Sequence[str]) -> list[str]:
        """Greedy answers, cut at the first stop text. Raises `ViqError`."""
        ...

    def facts(self) -> dict[str, Any]:
        """What belongs beside a score of the task last prepared; JSON-able."""
        ...


def is_ours(name: str | Path) -> bool:
    """Whether a name stands for a model of this project: bundled, in a folder, or on the hub.

    Raises:
        ViqError: a folder without a config, or with that of a tokenizer.
    """
    from viq.core.files import bundled
    from viq.metrics.run_log import RECIPE
    from viq.mllm.modeling import ViQConfig
    from viq.models.tokenizer.config import MODEL_TYPE
    from viq.weights import checkpoint

    folder = bundled(name) or Path(name)
    if folder.is_dir():
        if (folder / RECIPE).is_file():
            return True
        kind = checkpoint.read_config(folder).get("model_type")
        if kind in (None, MODEL_TYPE):  # of a tokenizer, before or since it is one of transformers
            raise ViqError(f"{name}: holds no language model; give one that answers questions")
        return kind == ViQConfig.model_type
    try:
        config, _ = ViQConfig.get_config_dict(str(name))
    except Exception:  # there is none; whoever loads the model says so
        return False
    return config.get("model_type") == ViQConfig.model_type


def greedy(tokenizer: Any, prompt_tokens: int, most_tokens: int, stop: Sequence[str]) -> dict:
    """Arguments of `generate`: greedy, with the cache, until each answer has a stop text."""
    criteria = StoppingCriteriaList([StopTexts(tokenizer, stop, prompt_tokens)] if stop else [])
    return {
        "max_new_tokens": most_tokens, "do_sample": False, "num_beams": 1, "use_cache": True,
        "temperature": None, "top_p": None, "top_k": None, "stopping_criteria": criteria,
    }  # fmt: skip


def decoded(tokenizer: Any, new_tokens: torch.Tensor, stop: Sequence[str]) -> list[str]:
    """Texts of generated tokens (B, L), cut at the first stop text, without outer white space."""
    texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return [cut(text, stop) for text in texts]
