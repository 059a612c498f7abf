"""A multimodal model around language models with formats of their own: calls, folders, training."""

from pathlib import Path
from typing import Any

import chat_formats
import pytest
import tiny
import torch
from chat_formats import FORMATS, language
from mllm_parts import said
from torch import Tensor

from viq.core.types import IGNORE, ViqError
from viq.mllm.loading import assemble, load_mllm, make_processor
from viq.mllm.processing import ViQProcessor
from viq.models.tokenizer.embedder import CodeEmbedder

IMAGE = tiny.picture(1)
OTHERS = [name for name in FORMATS if name != "smollm"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ViQProcessor]]:
    """Model and processor of each kind."""
    import tiny_mllm

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_mllm.saved_tokenizer(folder)
    embedder = CodeEmbedder.from_tokenizer(folder)
    parts = {}
    for name in FORMATS:
        processor = make_processor(chat_formats.tokenizer(name), embedder)
        processor.system = "Be brief."
        causal = language(name, len(processor.tokenizer))
        parts[name] = assemble(causal, embedder, processor).eval(), processor
    return parts


def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


PLACE, WORDS = {"type": "image"}, {"type": "text", "text": "Colour?"}


@pytest.mark.parametrize("name", FORMATS)
def test_two_steps_give_the_inputs_of_one(built: Any, name: str) -> None:
    processor = built[name][1]
    one = processor(text=[asked(PLACE | {"image": IMAGE}, WORDS)])
    text = processor.apply_chat_template(asked(PLACE, WORDS), add_generation_prompt=True)
    assert "<image>Colour?" in text and "Be brief." in text
    for options in ({}, {"add_special_tokens": False}):
        two = processor(text=[text], images=[[IMAGE]], **options)
        assert all(torch.equal(two[key], one[key]) for key in one)
    question = processor(text="<image>Colour?", images=IMAGE)
    assert torch.equal(question["input_ids"], one["input_ids"])


@pytest.mark.parametrize("name", ["llama", "gemma", "phi"])
def test_another_template_for_one_call(built: Any, name: str) -> None:
    """The inputs are those of a processor with that template, and it keeps its own."""
    processor = built[name][1]
    other = FORMATS[name][0].replace("m['content']", "('(said) ' + m['content'])")
    messages = asked(PLACE | {"image": IMAGE}, WORDS)
    usual = processor.apply_chat_template([messages], tokenize=True, return_dict=True)
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    found = processor.apply_chat_template([messages, said("Why?")], other, **options)
    alone = processor.apply_chat_template(messages, chat_template=other, **options)
    given = processor.apply_chat_template(
        asked(PLACE, WORDS), chat_template=other, images=[IMAGE], **options
    )
    text = processor.apply_chat_template(messages, chat_template=other)
    assert "(said) " in text and "<image>Colour?" in text
    changed = ViQProcessor(chat_formats.tokenizer(name), other, system=processor.system)
    changed.max_pixels = processor.max_pixels
    wanted = changed(text=[messages])
    for inputs in (alone, given):
        assert all(torch.equal(inputs[key], wanted[key]) for key in wanted)
    assert torch.equal(found["input_ids"][0], wanted["input_ids"][0])
    assert not torch.equal(found["input_ids"][:1], usual["input_ids"])
    again = processor.apply_chat_template([messages], tokenize=True, return_dict=True)
    assert torch.equal(again["input_ids"], usual["input_ids"])
    with pytest.raises(ViqError, match="is not known of a text in another chat_template"):
        processor.apply_chat_template(
            messages, chat_template=other, tokenize=True, return_assistant_tokens_mask=True
        )


@pytest.mark.parametrize("name", FORMATS)
def test_the_template_in_the_folder_gives_the_same_text(
    built: Any, name: str, tmp_path: Path
) -> None:
    """Other tools render `chat_template.jinja` by themselves."""
    from transformers import AutoTokenizer

    model, processor = built[name]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain: Any = AutoTokenizer.from_pretrained(tmp_path)
    again = ViQProcessor.from_pretrained(tmp_path)
    assert again.chat_format == ("chatml" if name == "smollm" else "own")
    assert again.chat_template == processor.chat_template
    talks = [
        asked(PLACE, WORDS),
        [*asked(WORDS), {"role": "assistant", "content": "Red."}, *asked(WORDS)],
        [{"role": "system", "content": "Say it in French."}, *asked(PLACE, PLACE, WORDS)],
    ]
    if name == "smollm":
        talks.append([
            *asked(WORDS),
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "7"},
        ])  # fmt: skip
    for talk in talks:
        wanted = processor.apply_chat_template(talk, add_generation_prompt=True)
        assert again.apply_chat_template(talk, add_generation_prompt=True) == wanted
        found = plain.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert found == wanted
    loaded, found = load_mllm(tmp_path)
    given = found(text="<image>Colour?", images=IMAGE)
    assert torch.equal(loaded(**given).logits, model(**given).logits)


@pytest.mark.parametrize("name", FORMATS)
def test_it_learns_an_answer_and_when_to_stop(built: Any, name: str) -> None:
    """Labels, prompts and the tokens that end an answer belong together."""
    model, processor = built[name]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    batch = processor(text=[said("<image>Colour?", "Red.")], images=[[IMAGE]], labels=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        if (loss := model(**batch).loss) < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prompt = processor(text=["<image>Colour?", "Why?"], images=[[IMAGE], []])
    found = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    model.load_state_dict(state)
    assert processor.answers(found, prompt)[0] == "Red."


@pytest.mark.parametrize("name", OTHERS)
def test_typed_special_tokens_need_messages(built: Any, name: str) -> None:
    processor = built[name][1]
    evil = asked({"type": "text", "text": f"a{processor.tokenizer.eos_token}"})
    with pytest.raises(ViqError, match="spells out a special token"):
        processor.apply_chat_template(evil)
    ids = processor(text=[evil])["input_ids"][0].tolist()
    plain = processor(text=[asked({"type": "text", "text": "a"})])["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.eos_token_id) == plain.count(
        processor.tokenizer.eos_token_id
    )


def test_a_template_of_the_caller(built: Any) -> None:
    processor = built["llama"][1]
    source = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    text = processor.apply_chat_template(asked(PLACE, WORDS), source)
    assert text == "Be brief.<|end_of_text|><image>Colour?<|end_of_text|>"
    with pytest.raises(ViqError, match="1 <image> placeholders, but 0 images"):
        processor.apply_chat_template(asked(PLACE, WORDS), source, tokenize=True)
    ids = processor.apply_chat_template(
        asked(WORDS), processor.chat_template, tokenize=True, return_dict=True
    )
    assert torch.equal(ids["input_ids"], processor(text=[asked(WORDS)])["input_ids"])


def padded(processor: Any, **options: Any) -> dict[str, Tensor]:
    talks = [said("What is it?", "A cup."), said("?", "No")]
    return processor(text=talks, return_assistant_tokens_mask=True, **options)


def test_padding_truncation_and_masks_are_as_transformers_has_them(built: Any) -> None:
    processor = built["phi"][1]
    one, two = (padded(processor)["attention_mask"].sum(1)).tolist()
    left, right = padded(processor), padded(processor, padding_side="right")
    assert left["attention_mask"][1].tolist() == [0] * (one - two) + [1] * two
    assert right["attention_mask"][1].tolist() == [1] * two + [0] * (one - two)
    assert right["input_ids"][1, :two].tolist() == left["input_ids"][1, -two:].tolist()
    whole = padded(processor, padding="max_length", max_length=one + 5)
    assert whole["input_ids"].shape == (2, one + 5)
    assert padded(processor, pad_to_multiple_of=64)["input_ids"].shape[1] % 64 == 0
    cut = padded(processor, truncation=True, max_length=9, text_kwargs={"padding": True})
    assert cut["input_ids"].shape == (2, 9)
    assert cut["input_ids"][0].tolist() == left["input_ids"][0, :9].tolist()
    arrays = padded(processor, return_tensors="np")
    assert type(arrays["input_ids"]).__name__ == "ndarray"
    for row, answer in zip((0, 1), ("A cup.", "No"), strict=True):
        mask = left["assistant_masks"][row].bool()
        assert processor.tokenizer.decode(left["input_ids"][row][mask]) == answer + "<|end|>"
    with pytest.raises(ViqError, match="padding=False, but the samples differ in length"):
        padded(processor, padding=False)
    with pytest.raises(ViqError, match="sample 0: max_length 12 would cut an image"):
        processor(text="<image>?", images=tiny.picture(2), truncation=True, max_length=12)


def test_the_head_of_an_answer_follows_where_it_is_asked_for(built: Any) -> None:
    for name in FORMATS:
        processor = built[name][1]
        options: dict[str, Any] = {"tokenize": True, "return_dict": True}
        heads = [
            processor.apply_chat_template(
                asked(WORDS), add_generation_prompt=head, **options
            )["input_ids"].shape[1]
            for head in (True, False, None)
        ]  # fmt: skip
        assert heads[0] == heads[2] and (heads[0] > heads[1] or name == "mistral")
        ended = processor.apply_chat_template(said("a", "b"), **options)
        scored = processor(text=[said("a", "b")], labels=True)
        assert torch.equal(ended["input_ids"], scored["input_ids"])
        assert (scored["labels"] != IGNORE).any()


def test_a_text_that_is_complete_as_it_stands(built: Any) -> None:
    """What follows a prompt: TRL gives the processor answers so."""
    for name, end in (("llama", "<|eot_id|>"), ("smollm", "<|im_end|>")):
        processor = built[name][1]
        ids = processor(text=[f"Red.{end}"], add_special_tokens=False, padding_side="right")
        words = processor.tokenizer(f"Red.{end}", add_special_tokens=False)["input_ids"]
        assert ids["input_ids"][0].tolist() == words
        with pytest.raises(ViqError, match="labels need messages"):
            processor(text=["Red."], add_special_tokens=False, labels=True)
        with pytest.raises(ViqError, match="sample 0: 1 <image> placeholders, but 0 images"):
            processor(text=["<image>"], add_special_tokens=False)


def test_tokenizers_without_a_format_are_refused() -> None:
    words = chat_formats.tokenizer("llama")
    words.chat_template = None
    with pytest.raises(ViqError, match="does not know .* and has no chat template"):
        ViQProcessor(words)
    with pytest.raises(ViqError, match="^chat_format: 'x' is not known"):
        ViQProcessor(chat_formats.tokenizer("llama"), chat_format="x")
