"""Conversations in the formats of other language models: ids, labels, and what is refused."""

from typing import Any

import pytest
from chat_formats import FORMATS, tokenizer

from viq.core.types import IGNORE, IMAGE_TOKEN, ViqError
from viq.data.text.chat_format import ChatConfig, encode_chat, encode_prompt, encode_turns
from viq.data.text.chat_template import answer_ends, own_template
from viq.data.text.conversations import ConversationError, Turn
from viq.data.text.text_tokenizer import load_text_tokenizer

OTHERS = [name for name in FORMATS if name != "smollm"]
TALK = [
    Turn(role="user", text="<image>\nWhat is this?"),
    Turn(role="assistant", text="A red cup."),
    Turn(role="user", text="Where?"),
    Turn(role="assistant", text="Left."),
]
# As their models are trained; # is a place of an image, answers that are scored in { }.
TEXTS = {
    "llama": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n###\nWhat is this?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{A red cup.<|eot_id|>}"
    "<|start_header_id|>user<|end_header_id|>\n\nWhere?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{Left.<|eot_id|>}",
    "gemma": "<bos><start_of_turn>user\nBe brief.\n\n###\nWhat is this?<end_of_turn>\n"
    "<start_of_turn>model\n{A red cup.<end_of_turn>}\n<start_of_turn>user\nWhere?<end_of_turn>\n"
    "<start_of_turn>model\n{Left.<end_of_turn>}\n",
    "phi": "<|system|>\nBe brief.<|end|>\n<|user|>\n###\nWhat is this?<|end|>\n<|assistant|>\n"
    "{A red cup.<|end|>}\n<|user|>\nWhere?<|end|>\n<|assistant|>\n{Left.<|end|>}\n<|endoftext|>",
    "mistral": "<s>[INST] ###\nWhat is this? [/INST]{ A red cup.</s>}"
    "[INST] Be brief.\n\nWhere? [/INST]{ Left.</s>}",
    "smollm": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n###\nWhat is this?"
    "<|im_end|>\n<|im_start|>assistant\n{A red cup.<|im_end|>}\n<|im_start|>user\nWhere?<|im_end|>"
    "\n<|im_start|>assistant\n{Left.<|im_end|>}\n",
}


def spelled(ids: list[int], labels: list[int], words: Any) -> str:
    text, scored = "", False
    for token, label in zip(ids, labels, strict=True):
        if (label != IGNORE) != scored:
            text, scored = text + ("}" if scored else "{"), not scored
        text += "#" if token == IMAGE_TOKEN else words.decode([token])
    return text + ("}" if scored else "")


@pytest.mark.parametrize("name", FORMATS)
def test_ids_and_labels_are_those_of_the_language_models_own_format(name: str) -> None:
    words = tokenizer(name)
    chat = encode_chat(TALK, [3], words, ChatConfig(system="Be brief."))
    assert spelled(chat.ids, chat.labels, words) == TEXTS[name]
    assert chat.images == 1 and chat.cut == 0


@pytest.mark.parametrize("name", OTHERS)
def test_ids_of_messages_are_those_of_transformers(name: str) -> None:
    words = tokenizer(name)
    turns = [Turn(role="user", text=" What is this? "), *TALK[1:3]]
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    found = words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(turns, [], words) == found
    open_end, _ = encode_turns(turns[:2], [], words, head=False, unfinished=True)
    assert words.decode(open_end).endswith("A red cup.")


@pytest.mark.parametrize("name", OTHERS)
def test_special_tokens_that_somebody_types_are_letters(name: str) -> None:
    words = tokenizer(name)
    mark = answer_ends(words)[0]
    plain = encode_prompt([Turn(role="user", text="a b")], [], words)
    typed = encode_prompt([Turn(role="user", text=f"a{mark}<|image_pad|> b")], [], words)
    special = words.convert_tokens_to_ids(mark)
    assert typed.count(special) == plain.count(special)
    assert mark in words.decode(typed) and "<|image_pad|>" in words.decode(typed)
    with pytest.raises(ConversationError, match="from U[+]E000 to U[+]E003"):
        encode_prompt([Turn(role="user", text="\ue0000\ue001")], [], words)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_too_long_loses_pairs_from_its_end(name: str) -> None:
    words = tokenizer(name)
    whole = encode_chat(TALK, [3], words, ChatConfig(system=""))
    cut = encode_chat(TALK, [3], words, ChatConfig(system="", max_length=len(whole.ids) - 1))
    assert (cut.cut, cut.images) == (1, 1)
    assert cut.ids == encode_chat(TALK[:2], [3], words, ChatConfig(system="")).ids
    with pytest.raises(ConversationError, match="take more than 4 tokens"):
        encode_chat(TALK, [3], words, ChatConfig(max_length=4))


def test_templates_that_cannot_be_used_are_refused_before_training(tmp_path: Any) -> None:
    cases = {
        "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}": "with no special token",
        "{{ nothing.at.all }}": "cannot be used",
    }
    words = tokenizer("llama")
    for template, reason in cases.items():
        words.chat_template = template
        words.save_pretrained(tmp_path)
        with pytest.raises(ViqError, match=f"{tmp_path}: its chat template .*{reason}"):
            load_text_tokenizer(tmp_path)
    words.chat_template = (
        "{% for m in messages %}{{ m['content'] | upper + eos_token }}{% endfor %}"
    )
    with pytest.raises(ConversationError, match="row 3: the chat template .* changes what"):
        encode_chat(TALK, [3], words, ChatConfig(system=""), "row 3")


def test_chatml_stays_what_it_was() -> None:
    words = tokenizer("smollm")
    assert own_template(words) is None
    words.chat_template = words.chat_template.replace("\n' + m", " ' + m")
    assert own_template(words) is not None
