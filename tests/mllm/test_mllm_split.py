"""The model in its parts: base and head, auto classes, weights and adapters of release 0.1."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_mllm
import torch
from chat_formats import language
from mllm_parts import Parts
from tiny_mllm import picture

import viq
from viq.core.files import BUNDLED
from viq.core.types import IGNORE, ViqError, language_tokens
from viq.mllm import ViQModel, generation
from viq.mllm.generation import CodeGenerator, CodeGeneratorConfig, Sampling
from viq.mllm.loading import load_mllm
from viq.mllm.modeling import ViQForConditionalGeneration
from viq.mllm.old_weights import current_name
from viq.models.language.heads import check_head, final_logits
from viq.models.tokenizer.embedder import CodeEmbedder
from viq.weights import checkpoint

CHAT = BUNDLED / "viq-tiny-chat"  # saved by release 0.1


def test_the_base_model_gives_what_the_head_reads(parts: Parts) -> None:
    model, processor, tokenizer = parts
    inputs = processor(text="<image>What?", codes=tokenizer.encode(picture(40, 50)))
    assert model.base_model is model.model and model.base_model_prefix == "model"
    hidden = model.model(**inputs).last_hidden_state
    assert hidden.shape == (1, inputs["input_ids"].shape[1], 32)
    assert torch.equal(model.lm_head(hidden), model(**inputs).logits)
    assert torch.equal(model(**inputs, logits_to_keep=1).logits, model.lm_head(hidden[:, -1:]))
    assert model.language_model is model.model.language_model is model.get_decoder()
    assert model(**inputs, return_dict=False)[0].shape == model(**inputs).logits.shape


def test_image_features_are_what_the_language_model_reads(parts: Parts) -> None:
    model, processor, tokenizer = parts
    images = [picture(40, 50), picture(16, 90, 1)]
    inputs = processor(text="<image>and<image>?", images=images)
    ids = processor(text="<image>and<image>?", codes=tokenizer.encode(images))
    found: Any = model.get_image_features(inputs["pixel_values"], inputs["image_grid_hw"])
    again: Any = model.get_image_features(image_grid_hw=ids["image_grid_hw"], codes=ids["codes"])
    grids = [tuple(grid) for grid in ids["image_grid_hw"].tolist()]
    assert [len(one) for one in found.pooler_output] == [language_tokens(grid) for grid in grids]
    assert all(map(torch.equal, found.pooler_output, again.pooler_output))
    places = ids["input_ids"][0] == processor.image_token_id
    read = model.model.embed(ids["input_ids"], ids["codes"], None, ids["image_grid_hw"])[0]
    assert torch.equal(read[places], torch.cat(found.pooler_output))
    with pytest.raises(ViqError, match="needs codes or pixel_values, and image_grid_hw"):
        model.get_image_features()


def test_weights_of_release_01_load_everywhere_and_are_saved_under_new_names(
    tmp_path: Path,
) -> None:
    from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

    model, processor = load_mllm(CHAT)
    inputs = processor(text="What is this?", images=picture(64, 48))
    wanted = model(**inputs)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    old = checkpoint.read_weights(CHAT / "model.safetensors")
    new = checkpoint.read_weights(tmp_path / "model.safetensors")
    assert {current_name(name) for name in old} == set(new)
    assert not any(name.startswith("model.") or name == "lm_head.weight" for name in old)
    for folder in (CHAT, tmp_path):
        for kind in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
            found = kind.from_pretrained(folder, dtype=torch.float32)
            assert type(found) is ViQForConditionalGeneration
            assert torch.equal(found(**inputs).logits, wanted.logits)
            assert found.lm_head.weight is found.get_input_embeddings().weight
        base = AutoModel.from_pretrained(folder, dtype=torch.float32)
        assert type(base) is ViQModel
        assert torch.equal(model.lm_head(base(**inputs).last_hidden_state), wanted.logits)


def test_auto_classes_of_processors(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor

    _, processor = load_mllm(CHAT)
    processor.save_pretrained(tmp_path)
    image = picture(300, 200)
    wanted = processor(text="?", images=image)
    for folder in (CHAT, tmp_path):
        found = AutoProcessor.from_pretrained(folder)
        assert type(found) is viq.ViQProcessor and found.chat_format == "chatml"
        images: Any = AutoImageProcessor.from_pretrained(folder)
        seen = images([image], return_tensors="np")
        assert seen["image_grid_hw"].tolist() == wanted["image_grid_hw"].tolist()
        assert (torch.from_numpy(seen["pixel_values"]) == wanted["pixel_values"]).all()
    assert AutoConfig.from_pretrained(CHAT).model_type == "viq"
    with pytest.raises(ViqError, match="^max_pixel: no argument of ViQImageProcessor.preprocess"):
        images(image, max_pixel=3)


def test_without_the_import_transformers_names_the_model_type() -> None:
    """What docs/integrations.md says of a folder that is loaded without `import viq.mllm`."""
    code = (
        "import sys, transformers as t\n"
        "try: t.AutoModelForImageTextToText.from_pretrained(sys.argv[1])\n"
        "except ValueError as error: print(str(error).splitlines()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(CHAT)], capture_output=True, text=True, check=True
    )
    assert "has model type `viq`" in done.stdout


def test_adapters_of_release_01_still_fit(parts: Parts, tmp_path: Path) -> None:
    import peft
    from safetensors.torch import load_file, save_file

    folder = Path(parts[0].config.embedder.tokenizer)
    model, processor = tiny_mllm.model_and_processor(folder)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    inputs = processor(text="What?")
    wanted = wrapped.eval()(**inputs).logits
    wrapped.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    old = {re.sub(r"model\.model\.language_model\.", "model.language.model.", name): weight
           for name, weight in weights.items()}  # fmt: skip
    assert old.keys().isdisjoint(weights)
    save_file(old, file)
    base, _ = tiny_mllm.model_and_processor(folder)
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(again(**inputs).logits, wanted)
    merged: Any = again.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("gemma", {"final_logit_softcapping": 2.0}), ("cohere", {"logit_scale": 0.25}),
     ("granite", {"logits_scaling": 4.0}), ("mistral", {}), ("phi", {})],
)  # fmt: skip
def test_logits_are_those_of_the_causal_language_model(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    causal = language(name, 64, **changes)
    ids = torch.arange(6)[None]
    wanted = causal(input_ids=ids).logits
    plain = causal.get_output_embeddings()(causal.base_model(input_ids=ids).last_hidden_state)
    assert torch.equal(plain, wanted) == (not changes)
    tiny_mllm.saved_tokenizer(tmp_path / "tokenizer")
    embedder = CodeEmbedder.from_tokenizer(tmp_path / "tokenizer")
    model = ViQForConditionalGeneration.from_parts(causal, embedder, image_token_id=63).eval()
    torch.testing.assert_close(model(input_ids=ids).logits, wanted)
    model.save_pretrained(tmp_path / "model")
    again = ViQForConditionalGeneration.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(again(input_ids=ids).logits, wanted)
    tied = again.lm_head.weight is again.get_input_embeddings().weight
    assert tied == causal.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("name", "changes"),
    [("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 4.0}), ("mistral", {})],
)
def test_a_generator_of_codes_says_words_as_the_language_model_does(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    causal = language(name, 64, **changes)
    ids_L = torch.randint(2, 60, (12,), generator=torch.Generator().manual_seed(1))
    wanted = causal(input_ids=ids_L[None]).logits[0, :-1]
    nats = torch.nn.functional.cross_entropy(wanted, ids_L[1:], reduction="sum")
    config = CodeGeneratorConfig(levels=(8, 8, 8, 5, 5, 5), head_width=16)
    model = CodeGenerator(causal, config).eval()
    targets_L = torch.cat([ids_L[1:], torch.tensor([IGNORE])])
    none = torch.zeros(0, 4, dtype=torch.long)
    sums = model(ids_L, targets_L, [12], none, [], torch.zeros(0, dtype=torch.bool))
    torch.testing.assert_close(sums["text"], nats, rtol=1e-4, atol=0)  # packed attention
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        generation, "draw_level", lambda logits, *_: seen.append(*logits) or seen[-1].argmax(-1)
    )
    (words,) = model.generate_text([ids_L.tolist()], range(2, 63), 1, 1, Sampling())
    last = causal(input_ids=ids_L[None]).logits[0, -1, [*range(2, 63), 1]]
    torch.testing.assert_close(seen[0][0], last)
    assert words == [2 + int(last[:-1].argmax())]


def test_a_head_that_does_more_is_refused() -> None:
    causal = language("mistral", 64)
    causal.set_output_embeddings(None)
    with pytest.raises(ViqError, match="mistral: cannot be taken apart"):
        check_head(causal)
    causal = language("mistral", 64)
    forward = causal.forward

    def doubled(**given: Any) -> Any:
        output = forward(**given)
        output.logits = output.logits * 2
        return output

    causal.forward = doubled  # type: ignore[method-assign]
    with pytest.raises(ViqError, match="mistral: its head is more than a linear layer"):
        check_head(causal)
    assert final_logits(torch.ones(1), causal.config) == 1


def test_a_multimodal_model_is_no_language_model(parts: Parts, tmp_path: Path) -> None:
    from viq.models.language.vision_language import load_language

    model, processor, _ = parts
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ViqError, match="is a multimodal model on codes"):
        load_language(tmp_path)
