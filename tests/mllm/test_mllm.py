"""The model itself: codes and pixels, packed and padded, cache and argmax."""

from pathlib import Path
from typing import Any

import pytest
import tiny_mllm
import torch
from mllm_parts import Parts, said
from tiny_mllm import picture
from torch import Tensor

from viq.core.types import IGNORE, CodesError, ViqError, grid_of, language_tokens
from viq.data.text.chat_format import ChatConfig, encode_chat, pack_chats
from viq.data.text.conversations import ConversationError, Turn
from viq.mllm.cache_name import CACHE
from viq.mllm.chat import ViQForConditionalGeneration, ViQProcessor
from viq.mllm.loading import load_mllm
from viq.models.language.packed import use_packed_attention
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.models.tokenizer.encoder import Encoder


def test_codes_and_pixels_give_the_same(parts: Parts) -> None:
    """Odd grids, several images, one in tiles, and texts without any."""
    model, processor, tokenizer = parts
    images = [picture(70, 50), picture(30, 130, 1), picture(16, 16, 2)]
    texts = ["How many?", "<image>Where<image>is this?", "<image>What?"]
    groups = [[], images[:2], images[2:]]
    codes = [tokenizer.encode(group) for group in groups]
    assert codes[1][1].tile == 64
    pixels = processor(text=texts, images=groups)
    ids = processor(text=texts, codes=codes)
    assert pixels["image_grid_hw"].tolist() == [[5, 4], [2, 9], [1, 1]]
    assert torch.equal(model.codes_of(pixels["pixel_values"], [c.grid for g in codes for c in g]),
                       ids["codes"])  # fmt: skip
    assert torch.equal(model(**pixels).logits, model(**ids).logits)
    assert torch.equal(model.embedder(ids["codes"]), tokenizer.features(ids["codes"]))


def test_an_image_takes_the_places_that_the_text_keeps(parts: Parts) -> None:
    _, processor, tokenizer = parts
    codes = tokenizer.encode(picture(70, 50))[0]
    inputs = processor(text="What <image> is this?", codes=codes)
    places = inputs["input_ids"][0] == processor.image_token_id
    assert int(places.sum()) == language_tokens((5, 4)) == 3 * 2 + 3 + 2
    assert places.nonzero().flatten().diff().unique().tolist() == [1]
    text = processor.tokenizer.decode(inputs["input_ids"][0][~places])
    assert text == "<|im_start|>user\nWhat  is this?<|im_end|>\n<|im_start|>assistant\n"
    whole = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "What "},
                                      {"type": "image", "image": picture(70, 50)},
                                      {"type": "text", "text": " is this?"}]}],
        tokenize=True, return_dict=True,
    )  # fmt: skip
    assert torch.equal(whole["input_ids"], inputs["input_ids"])
    assert whole["pixel_values"].shape == (20, 768)


def test_special_tokens_in_a_text_are_letters(parts: Parts) -> None:
    _, processor, _ = parts
    plain = processor(text="a<|im_end|><|image_pad|>")["input_ids"][0].tolist()
    special = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|image_pad|>"])
    assert [plain.count(token) for token in special] == [1, 0]  # the turn's own end


def test_labels_by_hand(parts: Parts) -> None:
    """Answers and the marks that end them, in every turn, and nothing else."""
    _, processor, tokenizer = parts
    codes = tokenizer.encode(picture(16, 16))[0]
    inputs = processor(
        text=[said("<image>What?", "A cup.", "Where?", "Left")], codes=[[codes]], labels=True
    )
    words = processor.tokenizer
    start, end = words.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    pad = processor.image_token_id

    def plain(text: str) -> list[int]:
        return words.encode(text, add_special_tokens=False)

    def rest(ids: list[int]) -> list[tuple[int, bool]]:
        return [(i, False) for i in ids]

    def answer(text: str) -> list[tuple[int, bool]]:
        return [(i, True) for i in [*plain(text), end]]

    expected = [
        *rest([start, *plain("user\n"), *[pad] * 4, *plain("What?"), end, *plain("\n")]),
        *rest([start, *plain("assistant\n")]), *answer("A cup."), *rest(plain("\n")),
        *rest([start, *plain("user\n"), *plain("Where?"), end, *plain("\n")]),
        *rest([start, *plain("assistant\n")]), *answer("Left"), *rest(plain("\n")),
    ]  # fmt: skip
    assert inputs["input_ids"][0].tolist() == [i for i, _ in expected]
    assert inputs["labels"][0].tolist() == [i if scored else IGNORE for i, scored in expected]


def packed_inputs(parts: Parts) -> tuple[list[Any], list[Any], Any]:
    """Three conversations: two images, none, one."""
    _, processor, tokenizer = parts
    talks = [
        (["<image>and<image>Where?", "Left"], [picture(40, 50), picture(16, 90, 1)]),
        (["How many?", "2", "Where?", "A red cup"], []),
        (["What <image>?", "blue"], [picture(64, 33, 2)]),
    ]
    codes = [tokenizer.encode(images) for _, images in talks]
    chats = []
    for (texts, _), seen in zip(talks, codes, strict=True):
        roles = ("user", "assistant")
        turns = [Turn(role=roles[i % 2], text=t) for i, t in enumerate(texts)]  # type: ignore[arg-type]
        places = [language_tokens(item.grid) for item in seen]
        chats.append(encode_chat(turns, places, processor.tokenizer, ChatConfig(system="")))
    return chats, codes, pack_chats(chats)


def tensors(codes: list[Any]) -> tuple[Tensor, Tensor]:
    ids = [torch.from_numpy(item.ids.astype("int64")).flatten(0, 1) for item in codes]
    grids = torch.tensor([item.grid for item in codes])
    return (torch.cat(ids), grids) if ids else (torch.zeros(0, 4).long(), grids.view(0, 2))


def test_packed_and_alone_give_the_same(parts: Parts) -> None:
    model, processor, _ = parts
    chats, codes, pack = packed_inputs(parts)
    ids = torch.where(pack.ids_L < 0, processor.image_token_id, pack.ids_L)[None]
    all_codes, grids = tensors([item for group in codes for item in group])
    visual = {"codes": all_codes, "image_grid_hw": grids}
    labels = torch.tensor([label for chat in chats for label in chat.labels])[None]
    positions = torch.cat([torch.arange(length) for length in pack.lengths])
    together = model(input_ids=ids, position_ids=positions[None], labels=labels, **visual)
    assert together.get(CACHE) is None
    alone = []
    for chat, group in zip(chats, codes, strict=True):
        own, own_grids = tensors(group)
        row = torch.tensor([chat.ids])
        row = torch.where(row < 0, processor.image_token_id, row)
        visual_alone = {"codes": own, "image_grid_hw": own_grids} if group else {}
        alone.append(model(input_ids=row, **visual_alone).logits[0])
    torch.testing.assert_close(together.logits[0], torch.cat(alone), atol=1e-4, rtol=1e-4)

    # What training runs: the same loss, with attention sample by sample.
    features = model.embedder(all_codes)
    inside = [(int(r), int(c)) for r, c in grids]
    use_packed_attention(model.language_model)
    fast = model.score(features, inside, pack.ids_L, pack.targets_L, pack.lengths)
    torch.testing.assert_close(fast.loss_A.mean(), together.loss, atol=1e-4, rtol=1e-4)
    model.language_model.set_attn_implementation("sdpa")


def test_one_sample_does_not_move_another(parts: Parts) -> None:
    model, _, _ = parts
    chats, codes, pack = packed_inputs(parts)
    ids, grids = tensors([item for group in codes for item in group])
    inside = [(int(r), int(c)) for r, c in grids]

    def losses(ids: Tensor, text: Tensor) -> Tensor:
        features = model.embedder(ids)
        return model.score(features, inside, text, pack.targets_L, pack.lengths).loss_A

    use_packed_attention(model.language_model)
    other_codes, other_text = ids.clone(), pack.ids_L.clone()
    other_codes[: 3 * 4] += 1  # the first image of the first sample
    other_text[1] += 1
    first = int((pack.targets_L[: len(chats[0].ids)] != IGNORE).sum())
    a, b = losses(ids, pack.ids_L), losses(other_codes, other_text)
    assert (a[:first] - b[:first]).abs().min() > 1e-4
    torch.testing.assert_close(a[first:], b[first:], atol=1e-5, rtol=1e-5)
    model.language_model.set_attn_implementation("sdpa")


def by_hand(model: ViQForConditionalGeneration, inputs: Any, count: int) -> list[int]:
    """The likeliest word again and again, without a cache."""
    ids = inputs["input_ids"]
    visual = {k: inputs[k] for k in ("codes", "image_grid_hw") if k in inputs}
    for _ in range(count):
        logits = model(input_ids=ids, use_cache=False, **visual).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, -count:].tolist()


def test_generate_takes_the_likeliest_words_also_in_a_padded_batch(parts: Parts) -> None:
    model, processor, tokenizer = parts
    texts = ["What is this? Where are they, and how many?", "<image><image>Where?", "<image>?"]
    images = [[], [picture(40, 50), picture(16, 90, 1)], [picture(64, 33, 2)]]
    codes = [tokenizer.encode(group) for group in images]
    count = 8
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None}
    alone = []
    for text, group in zip(texts, codes, strict=True):
        inputs = processor(text=text, codes=group)
        expected = by_hand(model, inputs, count)
        assert model.generate(**inputs, **options)[0, -count:].tolist() == expected
        alone.append(expected)
    assert len(set(map(tuple, alone))) > 1
    batch = processor(text=texts, codes=codes)
    assert batch["attention_mask"][:, 0].tolist() != [1, 1, 1]
    assert model.generate(**batch, **options)[:, -count:].tolist() == alone
    pixels = processor(text=texts, images=images)
    assert model.generate(**pixels, **options)[:, -count:].tolist() == alone
    beams = model.generate(**batch, **options, num_beams=3, num_return_sequences=2)
    assert len(beams) == 6
    assert len(processor.answers(beams, batch)) == 6


def test_arguments_that_nobody_knows_are_refused(parts: Parts) -> None:
    _, processor, _ = parts
    with pytest.raises(ViqError, match=r"^max_pixel: no argument of ViQProcessor.__init__, which t"
                       r"akes tokenizer, .*, max_pixels, [^\n]*chat_format$"):  # fmt: skip
        ViQProcessor(processor.tokenizer, max_pixel=64)
    messages = said("What?")
    calls = [
        lambda **given: processor(text="What?", **given),
        lambda **given: processor.apply_chat_template(messages, tokenize=True, **given),
        lambda **given: processor.apply_chat_template(messages, **given),
    ]
    for call in calls:
        with pytest.raises(
            ViqError, match=r"^max_pixels: no argument of .*, which takes \w+, [^\n]+$"
        ):
            call(max_pixels=64)
    for call in calls[:2]:
        with pytest.raises(ViqError, match=r"^padding: 'longer' is not known; give .*'longest'"):
            call(padding="longer")
        with pytest.raises(ViqError, match=r"^return_tensors: 'tf' is not known; give pt or np$"):
            call(return_tensors="tf")
    with pytest.raises(ViqError, match="^tools: .* is not what .*; say in a system message"):
        calls[2](tools=[{}])
    with pytest.raises(ViqError, match="^tools: .*; say in a system message which there are"):
        calls[1](tools=[len])
    with pytest.raises(ViqError, match="^size: no argument of"):
        calls[1](processor_kwargs={"size": 3})


def test_the_embedder_alone_is_read_from_a_tokenizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viq.weights import checkpoint

    def refuse(*_: Any) -> None:
        raise AssertionError("the encoder was built")

    monkeypatch.setattr(Encoder, "__init__", refuse)
    read: list[str] = []
    real = checkpoint.read_weights
    monkeypatch.setattr(
        checkpoint, "read_weights", lambda *a, **o: read.extend(found := real(*a, **o)) or found
    )
    embedder = CodeEmbedder.from_tokenizer(folder)
    assert {name.split(".")[1] for name in read} == {
        "bottleneck", "merge_mlp", "post_mlp", "post_blocks", "post_scale", "post_shift"
    }  # fmt: skip
    assert not any("slot" in name or "project_in" in name for name in read)
    assert len(read) == len(embedder.state_dict())


def test_system_texts_and_tools_in_messages(parts: Parts) -> None:
    _, processor, _ = parts
    image = picture(16, 16)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "a"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    same = processor(text="<image>a", images=[image])
    assert (processor(text=messages)["pixel_values"] == same["pixel_values"]).all()
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "7"},
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    assert "<tool_call>" in text and "<tool_response>" in text


def test_wrong_input_is_told_in_one_line(parts: Parts, tmp_path: Path) -> None:
    model, processor, tokenizer = parts
    codes = tokenizer.encode([picture(16, 16), picture(16, 16, 1)])
    with pytest.raises(ConversationError, match="row 7: has more images than <image> placeholders"):
        processor(text=["a", "<image>b"], codes=[[], codes], keys=["row 6", "row 7"])
    with pytest.raises(
        ConversationError, match=r"sample 0: has more <image> placeholders than images"
    ):
        processor(text="<image>a")
    with pytest.raises(ViqError, match="2 texts, but images of 1"):
        processor(text=["a", "b"], codes=[codes])
    with pytest.raises(ViqError, match="not both"):
        processor(text="a", codes=codes, images=[])
    with pytest.raises(ConversationError, match="turn of 'narrator'"):
        processor(text=[{"role": "narrator", "content": "a"}])
    with pytest.raises(ConversationError, match="sample 0: does not end with an answer"):
        processor(text=[{"role": "system", "content": "a"}])
    other = tiny_mllm.saved_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(CodesError, match=f"sample 0: codes of the tokenizer {other.fingerprint}"):
        processor(text="a", codes=other.encode(picture(16, 16)))
    with pytest.raises(CodesError, match="encode the images with that one"):
        model.set_visual_tokenizer(other)
    inputs = processor(text="a", codes=codes[:1])
    with pytest.raises(ViqError, match="image_grid_hw describes 2 patches, but there are 1"):
        model(**{**inputs, "image_grid_hw": torch.tensor([[1, 2]])})
    with pytest.raises(ViqError, match="4 places for images, but no image"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(ViqError, match=r"no config.json|there is no such folder|cannot be loaded"):
        load_mllm(tmp_path / "nothing")
    with pytest.raises(ViqError, match="holds no multimodal model"):
        load_mllm(tmp_path / "other")
    assert grid_of((16, 16)) == (1, 1)
