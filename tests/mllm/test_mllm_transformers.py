"""The multimodal model in tools of Hugging Face: pipeline, auto classes, peft, trainer."""

from pathlib import Path
from typing import Any

import pytest
import tiny_mllm
import torch
from mllm_parts import Parts, said
from PIL import Image
from tiny_mllm import picture
from torch import Tensor

from viq.mllm.chat import ViQForConditionalGeneration, ViQProcessor, ask
from viq.mllm.loading import load_mllm


def test_arguments_of_transformers_that_ask_for_what_is_done(parts: Parts) -> None:
    _, processor, tokenizer = parts
    texts, codes = ["<image>What?", "How many?"], [tokenizer.encode(picture(40, 50)), []]
    plain = processor(text=texts, codes=codes)
    same = processor(
        text=texts, codes=codes, return_tensors="pt", padding=True, padding_side="left",
        truncation=False, add_special_tokens=True, videos=None,
    )  # fmt: skip
    assert plain.keys() == same.keys() and all(torch.equal(plain[k], same[k]) for k in plain)
    inputs = processor.apply_chat_template(
        [said("What?"), said("How many?")], tools=None, continue_final_message=False,
        tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True},
    )  # fmt: skip
    assert len(inputs["input_ids"]) == 2


def test_a_pipeline_of_transformers(parts: Parts) -> None:
    from transformers import pipeline

    model, processor, _ = parts
    image = Image.fromarray(picture(40, 50))
    ask_it: Any = pipeline("image-text-to-text", model=model, processor=processor)
    likeliest = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    options = {"return_full_text": False, "generate_kwargs": likeliest}
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    (by_messages,) = ask_it(text=[{"role": "user", "content": content}], **options)
    (by_text,) = ask_it(images=image, text="<image>What?", **options)
    ids = model.generate(**processor(text="<image>What?", images=image), **likeliest)
    (expected,) = processor.tokenizer.batch_decode(ids[:, -4:], skip_special_tokens=True)
    assert by_messages["generated_text"] == expected
    assert by_text["generated_text"].endswith(expected)


def test_what_is_saved_comes_back_through_auto_classes(parts: Parts, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    model, processor, tokenizer = parts
    inputs = processor(text="<image>What?", codes=tokenizer.encode(picture(40, 50)))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is ViQForConditionalGeneration
    assert AutoConfig.from_pretrained(tmp_path).embedder == model.config.embedder
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    found = AutoProcessor.from_pretrained(tmp_path)
    assert type(found) is ViQProcessor
    assert (found.fingerprint, found.system) == (tokenizer.fingerprint, "")
    loaded, _ = load_mllm(tmp_path)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert ask(loaded, found, [], "What?", max_new_tokens=3) is not None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_adapters_are_trained_saved_and_loaded(parts: Parts, tmp_path: Path) -> None:
    import peft

    _, processor, tokenizer = parts
    folder = Path(parts[0].config.embedder.tokenizer)
    model, _ = tiny_mllm.model_and_processor(folder)
    inputs = processor(
        text=[said("<image>What?", "A cup.")], codes=[tokenizer.encode(picture(40, 50))],
        labels=True,
    )  # fmt: skip
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], 1e-2)
    before = wrapped(**inputs).loss
    before.backward()
    optimizer.step()
    after = wrapped.eval()(**inputs)
    assert after.loss < before
    assert wrapped.generate(**inputs.data | {"labels": None}, max_new_tokens=2).shape[0] == 1
    wrapped.save_pretrained(str(tmp_path))
    base, _ = tiny_mllm.model_and_processor(folder)
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(again(**inputs).logits, after.logits)


def test_transformers_trainer_takes_a_step(parts: Parts, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    _, processor, tokenizer = parts
    model, _ = tiny_mllm.model_and_processor(Path(parts[0].config.embedder.tokenizer))
    model.embedder.requires_grad_(False)
    rows = [(said("<image>What?", "A cup."), tokenizer.encode(picture(40, 50))),
            (said("How many?", "2"), [])]  # fmt: skip

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        return dict(processor(text=[r[0] for r in rows], codes=[r[1] for r in rows], labels=True))

    before = {name: p.clone() for name, p in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], save_strategy="no", use_cpu=True, remove_unused_columns=False,
        disable_tqdm=True, logging_steps=1, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=collate,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] < losses[0]
    changed = {
        n.split(".")[1] for n, p in model.named_parameters() if not torch.equal(p, before[n])
    }
    assert changed == {"projector", "language_model"}
