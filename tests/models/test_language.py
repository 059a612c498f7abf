"""A language model that reads features: no leak between packed conversations, places and visual
tokens counted, adapters train alone.
"""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from viq.core.types import IGNORE, Grid, ViqError, language_tokens
from viq.data.text.chat_format import ChatConfig, EncodedChat, encode_chat, pack_chats
from viq.data.text.conversations import Turn
from viq.data.text.text_tokenizer import load_text_tokenizer
from viq.models.language.packed import packed_hidden
from viq.models.language.vision_language import (
    AdapterConfig,
    VisionLanguageModel,
    add_adapters,
    load_language,
    recompute_activations,
)

LETTERS = tiny.letters()
GRIDS: list[Grid] = [(2, 3), (4, 2), (1, 1)]
WIDTH = 12


def chat(question: str, answer: str, *grids: Grid) -> EncodedChat:
    turns = [Turn(role="user", text=question), Turn(role="assistant", text=answer)]
    tokens = [language_tokens(grid) for grid in grids]
    return encode_chat(turns, tokens, LETTERS, ChatConfig(system=""))


CHATS = [
    chat("<image>What?", "A cup", GRIDS[0]),
    chat("How?", "Well"),
    chat("<image>or<image>", "The second.", GRIDS[1], GRIDS[2]),
]
GRIDS_OF = [GRIDS[:1], [], GRIDS[1:]]


def reader(language: Any = None) -> VisionLanguageModel:
    torch.manual_seed(0)
    return VisionLanguageModel(language or tiny.language(), features=WIDTH)


def features(grids: list[Grid]) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(sum(r * c for r, c in GRIDS), WIDTH)


def logits(
    model: VisionLanguageModel, chats: list[EncodedChat], seen: Tensor, grids: Any
) -> Tensor:
    pack = pack_chats(chats)
    hidden = packed_hidden(model.language, model.inputs(pack.ids_L, seen, grids), pack.lengths)
    return model.language.get_output_embeddings()(hidden)


def test_packed_conversations_do_not_see_each_other() -> None:
    model, seen = reader(), features(GRIDS)
    together = logits(model, CHATS, seen, GRIDS)
    alone, start = [], 0
    for one, grids in zip(CHATS, GRIDS_OF, strict=True):
        count = sum(r * c for r, c in grids)
        alone.append(logits(model, [one], seen[start : start + count], grids))
        start += count
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    # As one conversation, the second would see the first: the check can fail.
    pack = pack_chats(CHATS)
    inputs = model.inputs(pack.ids_L, seen, GRIDS)
    leaking = packed_hidden(model.language, inputs, [len(pack.ids_L)])
    leaked = model.language.get_output_embeddings()(leaking)
    assert (leaked - together)[len(CHATS[0].ids) :].abs().max().item() > 1e-3


def test_losses_of_a_pack_are_those_of_its_conversations() -> None:
    model, seen = reader(), features(GRIDS)
    pack = pack_chats(CHATS)
    score = model(seen, GRIDS, pack.ids_L, pack.targets_L, pack.lengths)
    assert len(score.loss_A) == pack.answers == len("A cup}Well}The second.}")
    by_hand = torch.log_softmax(logits(model, CHATS, seen, GRIDS), -1)
    places = (pack.targets_L != IGNORE).nonzero().flatten().tolist()
    expected = torch.stack([-by_hand[p, pack.targets_L[p]] for p in places])
    torch.testing.assert_close(score.loss_A, expected)
    hits = [int(by_hand[p].argmax()) == int(pack.targets_L[p]) for p in places]
    assert score.correct_A.tolist() == hits
    only = pack_chats(CHATS[:1])
    first = model(seen[:6], GRIDS[:1], only.ids_L, only.targets_L, only.lengths)
    torch.testing.assert_close(first.loss_A, score.loss_A[:6], atol=1e-5, rtol=1e-5)


def test_visual_vectors_stand_in_their_places() -> None:
    model, seen = reader(), features(GRIDS)
    pack = pack_chats(CHATS)
    inputs = model.inputs(pack.ids_L, seen, GRIDS)
    words = model.language.get_input_embeddings().weight
    visual = torch.cat(model.projector(seen, GRIDS))
    for place, i in enumerate(pack.ids_L.tolist()):
        if i >= 0:
            assert torch.equal(inputs[place], words[i])
    assert torch.equal(inputs[pack.ids_L < 0], visual)


def test_places_and_visual_tokens_are_counted_against_each_other() -> None:
    model, seen = reader(), features(GRIDS)
    ids = pack_chats(CHATS).ids_L
    with pytest.raises(ViqError, match="11 visual tokens of 2 images, but the text keeps 15 pla"):
        model.inputs(ids, seen[:14], GRIDS[:2])
    with pytest.raises(ViqError, match="15 places for images, but no image"):
        model.inputs(ids, None, [])
    only_text = pack_chats(CHATS[1:2]).ids_L
    with pytest.raises(ViqError, match="5 visual tokens of 1 images, but the text keeps 0 places"):
        model.inputs(only_text, seen[:6], GRIDS[:1])
    assert torch.equal(
        model.inputs(only_text, None, []), model.language.get_input_embeddings()(only_text)
    )


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_train_alone_beside_the_projector(dora: bool) -> None:
    base = tiny.language()
    adapters = AdapterConfig(rank=2, alpha=4, dropout=0.0, dora=dora)
    model = reader(add_adapters(base, adapters))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == model.own
    assert {n for n in trained if "lora_" not in n} == {
        f"projector.{n}" for n, _ in model.projector.named_parameters()
    }
    adapted = {n.split(".lora_")[0].rpartition(".")[2] for n in trained if "lora_" in n}
    assert adapted == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert any("magnitude" in n for n in trained) == dora
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    pack = pack_chats(CHATS)
    for _ in range(2):  # after the first step B is no longer zero, and A learns too
        score = model(features(GRIDS), GRIDS, pack.ids_L, pack.targets_L, pack.lengths)
        score.loss_A.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == trained - {"projector.weigh.fc2.bias"} or changed == trained


def test_new_adapters_change_nothing() -> None:
    base = tiny.language()
    seen, pack = features(GRIDS), pack_chats(CHATS)
    plain = reader(base)
    before = plain(seen, GRIDS, pack.ids_L, pack.targets_L, pack.lengths).loss_A
    plain.language = add_adapters(base, AdapterConfig())
    plain.eval()  # dropout of adapters
    after = plain(seen, GRIDS, pack.ids_L, pack.targets_L, pack.lengths).loss_A
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        base = add_adapters(tiny.language(), AdapterConfig(rank=2, dropout=0.5))
        if checkpointing:
            recompute_activations(base)
        model = reader(base).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.01)
        seen, pack = features(GRIDS).requires_grad_(), pack_chats(CHATS)
        torch.manual_seed(3)  # of the dropout
        score = model(seen, GRIDS, pack.ids_L, pack.targets_L, pack.lengths)
        score.loss_A.mean().backward()
        gradients.append([seen.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert all(g is not None for pair in gradients for g in pair)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_a_folder_is_loaded_by_its_path(tmp_path: Path) -> None:
    base = tiny.language()
    base.save_pretrained(tmp_path)
    LETTERS.save_pretrained(tmp_path)
    loaded, words = load_language(tmp_path), load_text_tokenizer(tmp_path)
    text = "A cup <|im_end|> 42"
    assert words.encode(text, split_special_tokens=True) == LETTERS.encode(
        text, split_special_tokens=True
    )
    assert {n: p.dtype for n, p in loaded.named_parameters()} == dict.fromkeys(
        (n for n, _ in base.named_parameters()), torch.float32
    )
    seen, pack = features(GRIDS), pack_chats(CHATS)
    one, other = (
        reader(m)(seen, GRIDS, pack.ids_L, pack.targets_L, pack.lengths).loss_A
        for m in (base, loaded)
    )
    assert torch.equal(one, other)


def test_folders_without_a_language_model(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="no causal language model can be loaded") as error:
        load_language(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_missing_libraries_are_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.language()
    monkeypatch.setitem(__import__("sys").modules, library, None)
    calls = {
        "peft": [lambda: add_adapters(base, AdapterConfig())],
        "transformers": [
            tiny.language,
            lambda: load_language("x"),
            lambda: load_text_tokenizer("x"),
        ],
    }
    extra = {"peft": "train", "transformers": "chat"}[library]
    for call in calls[library]:
        with pytest.raises(ViqError, match=rf"{library}: pip install 'viq\[{extra}\]'"):
            call()
