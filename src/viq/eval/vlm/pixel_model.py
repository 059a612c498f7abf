"""An image-text-to-text model of transformers under evaluation: any that has a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from viq.core.errors import first_line
from viq.core.types import ViqError
from viq.core.untrusted import printable
from viq.data.sources.base import Source
from viq.eval.vlm.models import Loaded, Question, Report, decoded, greedy
from viq.eval.vlm.tasks.base import Task
from viq.weights.checkpoint import CheckpointError
from viq.weights.pretrained import checked_config, load_pretrained

_PIXELS = 28**2  # of a picture in a token, roughly: for sorting by length alone
_LETTERS = 4  # of text in a token
_SIZES = ("size", "max_pixels", "min_pixels", "crop_size", "do_resize", "max_image_size")


class PixelModel:
    """A model of `AutoModelForImageTextToText`, as `Model` has it; its processor sees pixels.

    Args:
        name: folder, or hub id.

    Raises:
        ViqError: no model there, one that is not whole, or none that chats.
    """

    window = 4  # pictures of a window are in memory

    def __init__(
        self, name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.name, self.folder, self._device = name, Path(name), device
        self._model = _loaded(name, dtype).to(device).eval()
        self._processor = _processor(name)
        self._words = self._processor.tokenizer
        self._words.padding_side = "left"
        if self._words.pad_token is None:
            self._words.pad_token = self._words.eos_token
        self._tokens, self._asked = 0, 0
        self.pictures = _rule(self._processor)

    def prepare(self, task: Task, identity: str, source: Source, rows: int, report: Report) -> None:
        self._tokens, self._asked = 0, 0

    def load(self, question: Question) -> Loaded:
        row = question.row()
        opened = [row.open(number) for number in range(len(row.images))]
        shown = tuple(opened[part] for part in question.parts if isinstance(part, int))
        letters = sum(len(part) for part in question.parts if isinstance(part, str))
        pixels = sum(image.width * image.height for image in shown)
        return Loaded(
            question=question, pictures=shown, size=pixels // _PIXELS + letters // _LETTERS
        )

    def answers(self, loaded: Sequence[Loaded], most_tokens: int, stop: Sequence[str]) -> list[str]:
        try:
            inputs = self._processor.apply_chat_template(
                [_messages(one) for one in loaded],
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            ).to(self._device, dtype=self._model.dtype)
            prompt = inputs["input_ids"].shape[1]
            with torch.inference_mode():
                ids = self._model.generate(
                    **inputs, **greedy(self._words, prompt, most_tokens, stop)
                )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a processor makes of a picture is anyone's guess
            where = loaded[0].question.where
            raise ViqError(f"{where}: {self.name} cannot be asked ({first_line(error)})") from None
        self._tokens += int(inputs["attention_mask"].sum())
        self._asked += len(loaded)
        return decoded(self._words, ids[:, prompt:], stop)

    def facts(self) -> dict[str, Any]:
        mean = round(self._tokens / self._asked, 1) if self._asked else None
        return {"tokens_per_prompt": mean}


def _loaded(name: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForImageTextToText

    def build(config: Any) -> Any:
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)

    load = AutoModelForImageTextToText.from_pretrained
    return load_pretrained(load, build, name, dtype=dtype, trust_remote_code=False)


def _processor(name: str) -> Any:
    from transformers import AutoProcessor

    if Path(name).is_dir():
        checked_config(Path(name))
    try:
        # The model that the user names, at its newest, without code of its own.
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)  # nosec B615
    except Exception as error:  # what damage makes transformers raise is anyone's guess
        raise CheckpointError(
            f"{name}: its processor cannot be loaded ({first_line(error)})"
        ) from None
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise ViqError(f"{name}: its processor has no {part}; give a model that reads pictures")
    if processor.chat_template is None:
        raise ViqError(f"{name}: has no chat template; save one beside its processor")
    return processor


def _rule(processor: Any) -> str:
    """How the image processor resizes, as its config says it."""
    config = processor.image_processor.to_dict()
    said = ", ".join(
        f"{name} {_set(config[name])}" for name in _SIZES if config.get(name) is not None
    )
    return printable(f"{type(processor.image_processor).__name__}: {said}", 200)


def _set(value: Any) -> Any:
    """Of a mapping, what is set."""
    if not isinstance(value, Mapping):
        return value
    return {name: inner for name, inner in value.items() if inner is not None}


def _messages(loaded: Loaded) -> list[dict[str, Any]]:
    """One turn of the user, in parts of text and pictures."""
    pictures = iter(loaded.pictures)
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": next(pictures)}
        for part in loaded.question.parts
    ]
    return [{"role": "user", "content": content}]
