"""The trainers of TRL, with pictures and with stored codes."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny_mllm
from mllm_parts import Parts, said
from PIL import Image
from tiny_mllm import picture

import viq
from viq.mllm import CodesCollator

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None, reason="trl is not installed: pip install trl"
    ),
    pytest.mark.filterwarnings("ignore"),  # what TRL, peft and datasets say of their own work
]


@pytest.fixture(scope="module")
def saved(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model: TRL loads the reference model of DPO from it."""
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny_mllm.model_and_processor(Path(parts[0].config.embedder.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def visuals(parts: Parts, kind: str) -> list[Any]:
    images = [picture(40, 50), picture(64, 33, 2)]
    if kind == "pictures":
        return [Image.fromarray(image) for image in images]
    return [
        {"codes": codes.ids.ravel().tolist(), "rows": codes.grid[0], "cols": codes.grid[1]}
        for codes in parts[2].encode(images)
    ]


def columns(parts: Parts, kind: str) -> dict[str, list[Any]]:
    talks = [said("What?", "A red cup."), said("How many?", "2")]
    return {
        "messages": talks,
        "prompt": [talk[:1] for talk in talks],
        "completion": [talk[1:] for talk in talks],
        "chosen": [talk[1:] for talk in talks],
        "rejected": [said("", text)[1:] for text in ("No", "3 or 4")],
        "images": [[image] for image in visuals(parts, kind)],
    }


def losses(trainer_name: str, saved: Path, data: Any, out: Path, **options: Any) -> list[float]:
    """Of three steps."""
    trl: Any = importlib.import_module("trl")
    rest = {name: options.pop(name) for name in ("data_collator", "peft_config") if name in options}
    arguments = getattr(trl, f"{trainer_name}Config")(
        output_dir=str(out), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
        logging_steps=1, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    trainer = getattr(trl, f"{trainer_name}Trainer")(
        model=viq.ViQForConditionalGeneration.from_pretrained(str(saved)),
        args=arguments,
        train_dataset=data,
        processing_class=viq.ViQProcessor.from_pretrained(str(saved)),
        **rest,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("trainer", "names", "options"),
    [
        ("SFT", ("messages", "images"), {}),
        ("SFT", ("messages", "images"), {"assistant_only_loss": True}),
        ("SFT", ("prompt", "completion", "images"), {}),
        ("DPO", ("prompt", "chosen", "rejected", "images"), {}),
    ],
)
def test_pictures_and_codes_train_alike(
    parts: Parts, saved: Path, tmp_path: Path, trainer: str, names: Any, options: dict[str, Any]
) -> None:
    import datasets

    found = {}
    for kind in ("pictures", "codes"):
        all_columns = columns(parts, kind)
        data = datasets.Dataset.from_dict({name: all_columns[name] for name in names})
        found[kind] = losses(trainer, saved, data, tmp_path / kind, **options)
    assert found["codes"] == found["pictures"]
    assert found["codes"][-1] < found["codes"][0]


def test_the_loss_of_answers_is_that_of_our_labels(
    parts: Parts, saved: Path, tmp_path: Path
) -> None:
    """TRL's own collator with `assistant_only_loss`, ours, and the model itself."""
    import datasets

    all_columns = columns(parts, "codes")
    data = datasets.Dataset.from_dict({name: all_columns[name] for name in ("messages", "images")})
    theirs = losses("SFT", saved, data, tmp_path / "theirs", assistant_only_loss=True)
    processor = viq.ViQProcessor.from_pretrained(str(saved))
    talks = [said("<image>What?", "A red cup."), said("<image>How many?", "2")]  # as TRL has it
    data = datasets.Dataset.from_dict({"messages": talks, "images": all_columns["images"]})
    ours = losses(
        "SFT", saved, data, tmp_path / "ours", data_collator=CodesCollator(processor),
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    assert ours == pytest.approx(theirs, rel=1e-4)
    model = viq.ViQForConditionalGeneration.from_pretrained(str(saved))
    batch = CodesCollator(processor)(list(data))
    assert ours[0] == pytest.approx(float(model(**batch).loss.detach()), rel=1e-4)


def test_adapters_of_peft_are_trained(parts: Parts, saved: Path, tmp_path: Path) -> None:
    import datasets
    import peft

    all_columns = columns(parts, "codes")
    adapter = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, task_type="CAUSAL_LM")
    for trainer, names in (
        ("SFT", ("messages", "images")),
        ("DPO", ("prompt", "chosen", "rejected", "images")),
    ):
        data = datasets.Dataset.from_dict({name: all_columns[name] for name in names})
        found = losses(trainer, saved, data, tmp_path / trainer, peft_config=adapter)
        assert found[-1] < found[0]
