"""How sure a model is of its answers, and answers that are withheld."""

import weakref
from typing import Any

import pytest
import torch
from mllm_parts import Parts
from PIL import Image
from tiny_mllm import picture
from transformers import LogitsProcessor, TextIteratorStreamer

from viq.core.untrusted import UntrustedError
from viq.mllm import ViQProcessor
from viq.mllm.chat import ask
from viq.mllm.confidence import UNKNOWN, generate_with_confidence

GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


@torch.no_grad()
def test_it_is_the_mean_probability_of_the_tokens_up_to_the_end(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor, tokenizer = parts[:3]
    codes = [tokenizer.encode(picture(40, 50)), []]
    texts = ["<image>What?", "What is this, and how many?"]
    batch = processor(text=texts, codes=codes)
    first = model.generate(**batch, **GREEDY, eos_token_id=None)[:, batch["input_ids"].shape[1] :]
    end = int(first[0, 2])  # one answer ends at its third token
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    ids, found = generate_with_confidence(model, batch, **GREEDY)
    for row in range(2):
        alone = processor(text=texts[row], codes=codes[row] or None)
        start = alone["input_ids"].shape[1]
        new = ids[row, batch["input_ids"].shape[1] :].tolist()
        new = new[: new.index(end) + 1] if end in new else new
        whole = torch.cat([alone["input_ids"], torch.tensor([new])], 1)
        rest = {k: v for k, v in alone.items() if k not in ("input_ids", "attention_mask")}
        logs = model(input_ids=whole, **rest).logits[0].log_softmax(-1)
        said = [logs[start - 1 + place, token] for place, token in enumerate(new)]
        assert float(found[row]) == pytest.approx(float(torch.stack(said).mean().exp()), rel=1e-4)
    assert len({len(new) for new in ids.tolist()}) == 1 and 0 < float(found.min()) < 1


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.7},  # scores are no longer the logits
        {"do_sample": True, "temperature": 0.5, "top_k": 4},
        {"do_sample": False, "prompt_lookup_num_tokens": 3},
    ],
    ids=["greedy", "penalty", "drawn", "assisted"],
)
def test_it_is_what_logits_of_the_whole_answer_say(parts: Parts, options: dict[str, Any]) -> None:
    processor, tokenizer = parts[1:3]
    model: Any = parts[0]
    texts, codes = ["<image>What?", "What is it?"], [tokenizer.encode(picture(40, 50)), []]
    if "prompt_lookup_num_tokens" in options:  # one answer at a time
        texts, codes = texts[:1], codes[:1]
    batch, options = processor(text=texts, codes=codes), {"max_new_tokens": 6, **options}
    torch.manual_seed(1)
    whole = model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
    torch.manual_seed(1)
    ids, found = generate_with_confidence(model, batch, **options)
    assert torch.equal(ids, whole.sequences)
    logs = model.compute_transition_scores(ids, whole.logits, normalize_logits=True)
    ends = torch.as_tensor(model.generation_config.eos_token_id).reshape(-1)
    for row, new in enumerate(ids[:, batch["input_ids"].shape[1] :]):
        ended = torch.isin(new, ends).nonzero()
        said = logs[row, : int(ended[0]) + 1 if len(ended) else None]
        assert float(found[row]) == pytest.approx(float(said.mean().exp()), rel=1e-6)


class Alive(LogitsProcessor):
    """The most logits of earlier steps that are still in memory."""

    def __init__(self) -> None:
        self.seen: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, sum(ref() is not None for ref in self.seen))
        self.seen.append(weakref.ref(scores))
        return scores


def test_logits_of_earlier_steps_are_not_kept(parts: Parts) -> None:
    model, processor = parts[:2]
    batch, alive = processor(text=["What is this?", "And this?"]), Alive()
    options = {**GREEDY, "eos_token_id": None}
    generate_with_confidence(model, batch, **options, logits_processor=[alive])
    assert len(alive.seen) == GREEDY["max_new_tokens"] and alive.most <= 1


def test_an_unsure_answer_is_withheld(parts: Parts, tmp_path: Any, capsys: Any) -> None:
    model, processor = parts[:2]
    Image.fromarray(picture(40, 50)).save(tmp_path / "a.png")
    asked: Any = (model, processor, [tmp_path / "a.png"], "What is this?")
    answer = ask(*asked, **GREEDY)
    assert answer != UNKNOWN and ask(*asked, min_confidence=1e-9, **GREEDY) == answer
    assert ask(*asked, min_confidence=1.0, stream=True, **GREEDY) == UNKNOWN
    assert capsys.readouterr().out == f"{UNKNOWN}\n"
    told = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    assert ask(*asked, min_confidence=1.0, streamer=told, **GREEDY) == UNKNOWN
    assert list(told) == [UNKNOWN]  # and no word of what is withheld
    sure = ViQProcessor(processor.tokenizer, min_confidence=1.0)
    sure.save_pretrained(tmp_path)
    assert ViQProcessor.from_pretrained(tmp_path).min_confidence == 1.0
    with pytest.raises(UntrustedError, match="min_confidence: '2' is no number from 0 to 1"):
        ViQProcessor(processor.tokenizer, min_confidence=2)
