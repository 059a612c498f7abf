"""A language model on codes whose linear maps are more than their weights: quantized, adapted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_mllm
import torch
from mllm_parts import Parts
from tiny_mllm import picture
from torch import Tensor, nn

from viq.mllm import ViQForConditionalGeneration

ROUNDING = 0.05  # of eight bits, relative to the largest logit; measured 0.01 to 0.04


def saved(parts: Parts, folder: Path) -> tuple[Path, Any]:
    model, processor, tokenizer = parts
    model.save_pretrained(folder)
    return folder, processor(text="<image>What?", codes=tokenizer.encode(picture(40, 50)))


def require_near(quantized: Any, parts: Parts, inputs: Any) -> None:
    """Other logits than before, but nearly the same; and it answers."""
    wanted, found = parts[0](**inputs).logits, quantized(**inputs).logits
    apart = (found - wanted).abs().max() / wanted.abs().max()
    assert 0 < apart < ROUNDING
    assert quantized.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.filterwarnings("ignore")  # it is deprecated
@pytest.mark.parametrize("whole", [True, False])
def test_dynamic_int8_of_pytorch(parts: Parts, whole: bool, tmp_path: Path) -> None:
    if not hasattr(torch.ao.quantization, "quantize_dynamic"):
        pytest.skip("this PyTorch has no dynamic quantization any more: torchao has")
    folder, inputs = saved(parts, tmp_path)
    model: Any = ViQForConditionalGeneration.from_pretrained(folder)
    place = "" if whole else language_place(model)
    quantized = torch.ao.quantization.quantize_dynamic(
        model.get_submodule(place), {nn.Linear}, dtype=torch.qint8
    )
    if not whole:
        model.set_submodule(place, quantized)
    require_near(quantized if whole else model, parts, inputs)


def iter_linear(model: nn.Module) -> Iterator[nn.Linear]:
    return (module for module in model.modules() if isinstance(module, nn.Linear))


def language_place(model: nn.Module) -> str:
    """Where the language model is in the model."""
    return next(n for n, m in model.named_modules() if type(m).__name__.startswith("Qwen2"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("skipped", [None, ["model.embedder", "model.projector", "lm_head"]])
def test_torchao_int8_weights(parts: Parts, skipped: list[str] | None, tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import AutoModelForImageTextToText, TorchAoConfig

    folder, inputs = saved(parts, tmp_path)
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)
    language = model.get_submodule(language_place(model))
    assert hasattr(next(iter_linear(language)).weight, "__tensor_flatten__")
    for others in (model.embedder.merge_mlp.fc1, next(iter_linear(model.projector))):
        assert hasattr(others.weight, "__tensor_flatten__") is not bool(skipped)
    assert not hasattr(model.lm_head.weight, "__tensor_flatten__")
    require_near(model, parts, inputs)


def test_adapters_on_the_embedder_take_part(parts: Parts) -> None:
    import peft

    embedder = tiny_mllm.model_and_processor(Path(parts[0].config.embedder.tokenizer))[0].embedder
    codes_TS = torch.randint(0, 100, (7, 4))
    before: Tensor = embedder(codes_TS)
    wrapped = peft.get_peft_model(embedder, peft.LoraConfig(target_modules=["fc1"], r=2))
    torch.testing.assert_close(wrapped(codes_TS), before)
    for name, weight in wrapped.named_parameters():
        if "merge_mlp.fc1.lora_B" in name:
            nn.init.ones_(weight)
    assert not torch.allclose(wrapped(codes_TS), before)
