"""Tokens that know their place: built, saved, loaded, and off where nothing is said."""

from pathlib import Path

import torch

from viq.mllm.loading import assemble, load_mllm, make_processor
from viq.mllm.modeling import ViQForConditionalGeneration
from viq.models.tokenizer.embedder import CodeEmbedder


def test_a_model_with_positions_is_saved_and_loaded(parts, tmp_path: Path) -> None:
    model, processor, tokenizer = parts
    assert not model.config.image_positions
    assert not any("place" in name for name in model.state_dict())
    torch.manual_seed(0)
    embedder = CodeEmbedder(model.config.embedder)
    embedder.load_state_dict(model.model.embedder.state_dict())
    language = _language(model)
    made = assemble(
        language, embedder, make_processor(processor.tokenizer, embedder), image_positions=True
    ).eval()
    codes = tokenizer.encode(torch.zeros(64, 96, 3, dtype=torch.uint8).numpy())
    inputs = processor(text="where?", codes=codes)
    before = made(**inputs).logits
    made.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_mllm(tmp_path)
    assert again.config.image_positions
    torch.testing.assert_close(again(**inputs).logits, before)
    weight = made.model.projector.place
    assert weight is not None
    weight.weight.data.zero_()
    assert not torch.equal(made(**inputs).logits, before)


def _language(model: ViQForConditionalGeneration):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(model.config.text_config)
