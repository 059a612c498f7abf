"""Each way in which transformers generates, with images and in batches: answers are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mllm_parts import Parts, said
from PIL import Image
from tiny_mllm import picture
from torch import Tensor

from viq.core.types import ViqError

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def inputs(parts: Parts) -> Any:
    """A question about two images, repeated so that much can be looked up in it."""
    text = "<image>What<image>is this? What is this? What is this?"
    return parts[1](text=text, codes=parts[2].encode([picture(40, 50), picture(16, 90, 1)]))


def batch(parts: Parts) -> Any:
    """Left-padded: one image, none."""
    codes = [parts[2].encode(picture(40, 50)), []]
    return parts[1](text=["<image>What?", "What is this, and how many are there?"], codes=codes)


@pytest.mark.parametrize(
    "way",
    [
        {"prompt_lookup_num_tokens": 3},
        {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 1},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_beams": 1},
    ],
)
def test_other_ways_give_the_greedy_words(parts: Parts, inputs: Any, way: dict[str, Any]) -> None:
    model = parts[0]
    wanted = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, **way), wanted)
    alone = parts[1](text="How many? How many? How many?")
    wanted = model.generate(**alone, **GREEDY)
    assert torch.equal(model.generate(**alone, **GREEDY, **way), wanted)


def test_pixels_are_read_once_for_candidates(parts: Parts, inputs: Any) -> None:
    images = [picture(40, 50), picture(16, 90, 1)]
    text = "<image>What<image>is this? What is this? What is this?"
    pixels = parts[1](text=text, images=images)
    found = parts[0].generate(**pixels, **GREEDY, prompt_lookup_num_tokens=3)
    assert torch.equal(found, parts[0].generate(**inputs, **GREEDY))


def test_an_assistant_gives_the_greedy_words_or_is_refused(
    parts: Parts, inputs: Any, tmp_path: Any
) -> None:
    import tiny_mllm

    model = parts[0]
    folder = Path(model.config.embedder.tokenizer)
    wanted = model.generate(**inputs, **GREEDY)
    for assistant in (model, tiny_mllm.model_and_processor(folder, seed=3)[0]):
        found = model.generate(**inputs, **GREEDY, assistant_model=assistant)
        assert torch.equal(found, wanted)
    from chat_formats import language

    words = len(parts[1].tokenizer)
    with pytest.raises(ViqError, match="^assistant_model: LlamaForCausalLM cannot read the codes"):
        model.generate(**inputs, **GREEDY, assistant_model=language("llama", words))
    other, _ = tiny_mllm.model_and_processor(folder)
    other.config.image_token_id = 1
    with pytest.raises(ViqError, match="^assistant_model: has another image_token_id"):
        model.generate(**inputs, **GREEDY, assistant_model=other)


def test_places_without_images_are_refused_in_every_way(parts: Parts, inputs: Any) -> None:
    ways: list[dict[str, Any]] = [{}, {"prompt_lookup_num_tokens": 3}]
    for way in ways:
        with pytest.raises(ViqError, match="places for images, but no image"):
            parts[0].generate(inputs["input_ids"], **GREEDY, **way)


def test_an_image_token_that_the_model_writes_is_a_word(parts: Parts, inputs: Any) -> None:
    model, processor, _ = parts

    def only_image(_: int, ids: Tensor) -> list[int]:
        return [processor.image_token_id]

    found = model.generate(**inputs, **GREEDY, prefix_allowed_tokens_fn=only_image)
    assert found[0, -8:].tolist() == [processor.image_token_id] * 8


def test_sampling_beams_and_scores_of_a_padded_batch(parts: Parts) -> None:
    model, processor, _ = parts
    given = batch(parts)
    torch.manual_seed(0)
    drawn = model.generate(**given, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    torch.manual_seed(0)
    again = model.generate(**given, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert drawn.shape[0] == 6 and torch.equal(drawn, again)
    beams = model.generate(
        **given, **GREEDY, num_beams=3, return_dict_in_generate=True, output_scores=True
    )
    assert len(processor.answers(beams.sequences, given)) == 2
    assert torch.isfinite(beams.sequences_scores).all()


def test_a_streamer_gets_the_words_of_the_answer(parts: Parts, inputs: Any) -> None:
    from transformers import TextIteratorStreamer

    streamer: Any = TextIteratorStreamer(parts[1].tokenizer, skip_prompt=True)
    out = parts[0].generate(**inputs, **GREEDY, streamer=streamer)
    assert "".join(streamer) == parts[1].tokenizer.decode(out[0, -8:])


def test_bfloat16_answers_alike_from_codes_and_pixels(parts: Parts) -> None:
    import tiny_mllm

    found: Any = tiny_mllm.model_and_processor(Path(parts[0].config.embedder.tokenizer))
    model, processor = found[0].to(torch.bfloat16), found[1]
    pixels = processor(text="<image>?", images=picture(40, 50)).to(torch.bfloat16)
    codes = processor(text="<image>?", codes=parts[2].encode(picture(40, 50)))
    found = model.generate(**pixels, **GREEDY)
    assert torch.equal(found, model.generate(**codes, **GREEDY))
    assert model(**codes).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_pipeline_takes_batches(parts: Parts, size: int) -> None:
    from transformers import pipeline

    model, processor, _ = parts
    ask: Any = pipeline("image-text-to-text", model=model, processor=processor)
    chats = [
        [{"role": "user", "content": [
            {"type": "image", "image": Image.fromarray(picture(40 + 20 * n, 50, n))},
            {"type": "text", "text": "What is it?" * (n + 1)}]}]
        for n in range(3)
    ]  # fmt: skip
    found = ask(text=chats, batch_size=size, return_full_text=False, generate_kwargs=GREEDY)
    texts = [(one[0] if isinstance(one, list) else one)["generated_text"] for one in found]
    for chat, text in zip(chats, texts, strict=True):
        given = processor(text=[chat])
        ids = model.generate(**given, **GREEDY)[:, -8:]
        assert text == processor.tokenizer.decode(ids[0], skip_special_tokens=True)


def test_an_answer_is_gone_on_with(parts: Parts) -> None:
    processor = parts[1]
    messages = said("What?", "A red")
    text = processor.apply_chat_template(messages, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nA red")
    ids = processor.apply_chat_template(messages, tokenize=True, continue_final_message=True)
    assert processor.tokenizer.decode(ids[0]) == text
    with pytest.raises(ViqError, match="give one of them"):
        processor.apply_chat_template(
            messages, continue_final_message=True, add_generation_prompt=True
        )
