"""Talk to a multimodal language model: ask about images, caption a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TextStreamer

from viq.core.codes import Codes
from viq.core.types import ViqError
from viq.mllm.answer_lines import added_to, answer_line, read_answers
from viq.mllm.confidence import UNKNOWN, generate_with_confidence
from viq.mllm.modeling import ViQForConditionalGeneration
from viq.mllm.processing import ViQProcessor
from viq.store.dataset import CodeDataset
from viq.store.folder import SINGLE, read_single
from viq.store.views import CodeSample

Look = str | Path | Codes | Image.Image  # where an image or codes are, or these themselves


def look(place: Look) -> Path | Codes | Image.Image:
    """An image file, or the codes of a .viq file, as the processor takes it."""
    if isinstance(place, Codes | Image.Image):
        return place
    path = Path(place)
    return read_single(path) if path.suffix == SINGLE else path


def ask(
    model: ViQForConditionalGeneration,
    processor: ViQProcessor,
    places: Sequence[Look],
    question: str,
    *,
    before: Sequence[dict[str, str]] = (),
    stream: bool = False,
    min_confidence: float | None = None,
    **generation: Any,
) -> str:
    """The answer to one question about images or codes, in files or at hand, all of one kind.

    Args:
        before: turns of the same conversation, {role, content}, in which images come first.
        stream: also print the answer while it is made, or at once where it may be withheld.
        min_confidence: "I don't know." instead of an answer of which the model is less sure
            (`viq.mllm.confidence`), from 0 to 1; None: that of the processor.
        generation: options of `generate`; a `streamer`, too, is told at once what may be withheld.

    Raises:
        ViqError: images that cannot be read, codes of another tokenizer, marks that do not match.
    """
    seen = [look(place) for place in places]
    codes = [one for one in seen if isinstance(one, Codes)]
    if codes and len(codes) < len(seen):
        raise ViqError("images and .viq files together: encode the images first (viq encode)")
    visuals: dict[str, Any] = {"codes" if codes else "images": seen} if seen else {}
    name = ", ".join(str(place) for place in places if isinstance(place, str | Path)) or "question"
    messages = [*before, {"role": "user", "content": question}]
    inputs = processor(text=messages, keys=[name], **visuals).to(model.device)
    streamer = generation.pop("streamer", None)
    if stream:
        streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    least = processor.min_confidence if min_confidence is None else min_confidence
    if least > 0:
        ids, confidences = generate_with_confidence(model, inputs, **generation)
        sure = float(confidences[0]) >= least
        answer = processor.answers(ids, inputs)[0] if sure else UNKNOWN
        if streamer is not None:
            streamer.on_finalized_text(answer, stream_end=True)
        return answer
    ids = model.generate(**inputs, **generation, streamer=streamer)
    return processor.answers(ids, inputs)[0]


def answer_store(
    model: ViQForConditionalGeneration,
    processor: ViQProcessor,
    store: str | Path,
    out: Path,
    *,
    prompt: str = "Describe the image.",
    batch: int = 8,
    limit: int | None = None,
    progress: Callable[[], None] = lambda: None,
    **generation: Any,
) -> dict[str, int]:
    """Ask the same of every sample of a store; lines of {key, answer} go to `out`.

    Samples that `out` has already are left as they are, so the same command goes on. No tokenizer
    is loaded: images are codes.

    Raises:
        ViqError: no store, codes of another tokenizer, or `out` is there and no file of answers.
    """
    data = CodeDataset(store, columns=())
    model.require(data.info.fingerprint)
    known, whole_bytes = read_answers(out)
    wanted = [n for n, key in enumerate(data.keys()) if key not in known]
    wanted = wanted if limit is None else wanted[:limit]
    answered = 0
    if not wanted:
        return {"answered": 0, "known": len(known), "no_image": 0}
    with added_to(out, whole_bytes) as file:
        for samples in _batches(data, wanted, batch):
            inputs = processor(
                # As messages: a text that spells out turns would be read as such.
                text=[[{"role": "user", "content": prompt}]] * len(samples),
                codes=[sample.codes for sample in samples],
                keys=[sample.key for sample in samples],
            ).to(model.device)
            answers = processor.answers(model.generate(**inputs, **generation), inputs)
            for sample, answer in zip(samples, answers, strict=True):
                file.write(answer_line(sample.key, answer))
                progress()
            file.flush()
            answered += len(samples)
    return {"answered": answered, "known": len(known), "no_image": len(wanted) - answered}


def sampling(temperature: float) -> dict[str, Any]:
    """Options of `generate` for a temperature; 0 is greedy."""
    return {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}


def _batches(data: CodeDataset, wanted: Sequence[int], size: int) -> Iterator[list[CodeSample]]:
    """Samples with images, in groups."""
    held: list[CodeSample] = []
    for number in wanted:
        sample = data[number]
        held += [sample] if sample.codes else []
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
