"""The model `viq` of lmms-eval: our multimodal language models under its tasks.

    lmms-eval --model viq --model_args pretrained=runs/mllm --tasks chartqa --batch_size 16

Docs: docs/lmms_eval.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from viq.core.errors import require
from viq.core.process import place_among
from viq.core.types import ViqError
from viq.core.untrusted import printable, whole_number
from viq.eval.vlm.lmms_requests import (
    MOST_TOKENS,
    Request,
    batches,
    chat,
    request_of,
)
from viq.eval.vlm.stop_texts import StopTexts, cut
from viq.mllm.loading import load_mllm

with require("lmms_eval", "lmms", "the model viq of lmms-eval"):
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
    from lmms_eval.protocol import ChatMessages  # pyright: ignore[reportMissingImports]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ViQ(lmms):
    """Answers the requests of lmms-eval with a multimodal language model on codes.

    Arguments are those of `--model_args`, and of `--batch_size` and `--device`.

    Args:
        pretrained: a run folder of `viq train mllm`, a folder of `save_pretrained`, a hub id, or
            "viq-tiny-chat".
        batch_size: questions at a time.
        device: by default the first CUDA device, of several processes the one of each, else "cpu".
        dtype: float32, bfloat16, float16 or auto: bfloat16 where a CUDA device has it.
        max_new_tokens: of an answer, where the task names no number.
        max_pixels: images with a larger area are shrunk to it; by default as the model was trained.
        system_prompt: text of the system turn, "" for none; by default that of the model.

    Raises:
        ViqError: no such argument, a value out of its range, no model there, or no such device.
    """

    is_simple = False  # requests come in chat form

    def __init__(
        self,
        pretrained: Any = None,
        batch_size: Any = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: Any = 1024,
        max_pixels: Any = None,
        system_prompt: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _refuse(kwargs)
        place = place_among()
        self._rank, self._world_size = place.rank, place.world
        self._batch_size = _whole(batch_size, "batch_size", 2**16)
        self._max_new_tokens = _whole(max_new_tokens, "max_new_tokens", MOST_TOKENS)
        self._device = _device(device, place.local)
        name = _folder(pretrained)
        self._model, self._processor = load_mllm(
            name, device=self._device, dtype=_dtype(dtype, self._device)
        )
        if max_pixels is not None:
            self._processor.max_pixels = _whole(max_pixels, "max_pixels", 2**40)
        if system_prompt is not None:
            self._processor.system = str(system_prompt)

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers over processes there."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Questions at a time."""
        return self._batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests.

        Raises:
            ViqError: a request is of another form, or its images cannot be read.
        """
        asked = [request_of(request.args, self._max_new_tokens) for request in requests]
        answers = [""] * len(asked)
        with tqdm(total=len(asked), disable=self.rank != 0, desc="viq") as bar:
            for numbers in batches(asked, self._batch_size):
                group = [asked[number] for number in numbers]
                for number, answer in zip(numbers, self._answer(group), strict=True):
                    answers[number] = answer
                    settings = dict(asked[number].settings)
                    request = (asked[number].text, settings)
                    self.cache_hook.add_partial("generate_until", request, answer)
                bar.update(len(group))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not there: tasks that compare probabilities of given answers."""
        raise NotImplementedError("the model viq generates answers; choose a task that does, too")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not there: tasks of several rounds."""
        raise NotImplementedError("the model viq answers once; choose a task of one round")

    @torch.inference_mode()
    def _answer(self, group: Sequence[Request]) -> list[str]:
        """Answers to requests with the same generation settings."""
        generation = group[0].generation
        inputs = self._processor(
            text=[self._messages(request) for request in group],
            keys=[request.key for request in group],
        ).to(self._device)
        length = inputs["input_ids"].shape[1]
        options: dict[str, Any] = dict(generation.options)
        if generation.until and options.get("num_beams", 1) == 1:
            stop = StopTexts(self._processor.tokenizer, generation.until, length)
            options["stopping_criteria"] = [stop]
        ids_BL = self._model.generate(**inputs, **options)
        texts = self._processor.tokenizer.batch_decode(ids_BL[:, length:], skip_special_tokens=True)
        return [cut(text, generation.until) for text in texts]

    def _messages(self, request: Request) -> list[dict[str, Any]]:
        row = self.task_dict[request.task][request.split][request.row]
        messages = ChatMessages(messages=request.messages_of(row))
        return chat(messages.messages, request.key)


def _refuse(unknown: dict[str, Any]) -> None:
    """Refuse arguments that there are none of, by name."""
    if not unknown:
        return
    parameters = inspect.signature(ViQ.__init__).parameters.values()
    known = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    names = printable(", ".join(unknown), 200)
    raise ViqError(f"--model_args {names}: no argument of the model viq, which takes "
                   f"{', '.join(known)}")  # fmt: skip


def _whole(value: Any, name: str, most: int) -> int:
    """A whole number from 1, which lmms-eval may have read as text or, of 1e6, as a float."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return whole_number(value, f"--model_args {name}", 1, most)


def _folder(pretrained: Any) -> str:
    if pretrained is None:
        raise ViqError("--model_args pretrained: is missing; name a run folder of viq train mllm")
    if not isinstance(pretrained, str):
        raise ViqError(
            f"--model_args pretrained={pretrained}: lmms-eval reads it as a number; write the "
            "folder with its path, such as ./007"
        )
    return pretrained


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half else torch.float32
    if name not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ViqError(f"--model_args dtype={printable(str(name), 40)}: give auto, {known}")
    return _DTYPES[name]


def _device(name: str | None, local_rank: int) -> torch.device:
    """The device of this process; "cuda" is a device for each process of a machine."""
    count = torch.cuda.device_count()
    if name in (None, "auto"):
        name = "cuda" if count else "cpu"
    if name == "cuda" and count:
        name = f"cuda:{local_rank % count}"
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError):
        shown = printable(str(name), 40)
        raise ViqError(f"--device {shown}: not available here; see viq doctor") from None
