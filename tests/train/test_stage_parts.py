"""What one stage reads, trains and hands on, and stages that cannot run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from debug_stages import ALIGN, DEBUG, NAMED, recipe, run, same_weights, stage

from viq.core.types import ViqError
from viq.data.corpora.corpora import open_corpora
from viq.models.language.vision_language import AdapterConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.train.tokenizer.handover import begin
from viq.train.tokenizer.objectives import AlignObjective
from viq.train.tokenizer.recipe import StageConfig, TokenizerRecipe
from viq.train.tokenizer.run import TokenizerRun, TrainingData
from viq.weights.checkpoint import read_weights


def test_plain_pictures_are_cropped_and_not_asked_about(tmp_path: Path) -> None:
    for number in range(12):
        tiny.picture(number).save(tmp_path / f"{number}.png")
    data = TrainingData.of(open_corpora([tmp_path], "train"))
    assert data.rows == [] and len(data.photos) >= 9


def test_data_without_plain_pictures_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_chats(tmp_path / "talk.jsonl", [(1, ("<image>What?", "A picture."))] * 20)
    data = TrainingData.of(open_corpora([tmp_path / "talk.jsonl"], "train"))
    no_crops, crops = replace(ALIGN, name="first"), stage("2-2-fsq", steps=1)
    assert no_crops.data.crops is None and crops.data.crops is not None
    for chosen, told in ((recipe(no_crops), False), (recipe(crops), True)):
        out = tmp_path / chosen.stages[0].name
        for _ in range(2):  # nothing is said of a stage that has ended
            run(out, chosen, data)
            line = "2-2-fsq: crops are cut from synthetic pictures alone, as all data have text"
            assert (line in capsys.readouterr().err) == told
            told = False


def frozen_reader(losses: dict[str, float] | None = None) -> StageConfig:
    return replace(stage("2-2-fsq", losses, parts=("encoder",), steps=1), name="middle")


@pytest.mark.parametrize("losses", [None, {"rmse": 1.0}])
def test_a_stage_that_leaves_the_reader_alone_hands_it_on(
    tmp_path: Path, losses: dict[str, float] | None
) -> None:
    """Whether it reads text with a frozen reader, or no text at all."""
    run(tmp_path, recipe(replace(ALIGN, loop=replace(ALIGN.loop, steps=1)), frozen_reader(losses)))
    first, second = (tmp_path / name / "reader.safetensors" for name in ("1a-align", "middle"))
    assert same_weights(first, second) and read_weights(first)


@pytest.mark.parametrize("crops", [True, False])
def test_fsq_begins_where_the_proximal_stage_ended(tmp_path: Path, crops: bool) -> None:
    """Fitted on crops or, in a stage without, on the images of its conversations."""
    changes = {} if crops else {"crops": None}
    proximal = stage("2-1-proximal", {"rmse": 1.0}, steps=1, **changes)
    fsq = stage("2-2-fsq", {"rmse": 1.0}, **changes)
    begun = TokenizerRun(recipe(proximal, fsq), TrainingData(), tmp_path, hidden=True)
    begun._stage(proximal, 0, None)
    previous = VisualTokenizer.from_pretrained(tmp_path / proximal.name / "model")
    images = begun._first_images(replace(fsq, data=replace(fsq.data, crops=None)), 77)
    assert len(images) == 4 and all(len(batch.grids_hw) > 1 for batch in images)

    def error(model: VisualTokenizer) -> float:
        with torch.no_grad():
            return sum(
                float((model(batch).features_TC - previous(batch).features_TC).square().mean())
                for batch in images
            )

    objective = begun.objective(fsq, tmp_path / proximal.name, 0)
    assert isinstance(objective, AlignObjective)
    drawn = begin(DEBUG.model, "fsq", previous, 0)
    assert error(objective.tokenizer) < 0.7 * error(drawn)
    assert objective.tokenizer.device.type == "cpu" and trained(objective)


def trained(objective: torch.nn.Module) -> set[str]:
    return {".".join(n.split(".")[:2]) for n, p in objective.named_parameters() if p.requires_grad}


def test_only_the_parts_of_a_stage_are_trained(tmp_path: Path) -> None:
    language = replace(DEBUG.language, adapter=AdapterConfig(rank=2))  # type: ignore[type-var]
    for parts, expected in (
        (("encoder", "reader"), {"tokenizer.encoder", "reader.projector", "reader.language"}),
        (("pool",), {"tokenizer.pool_norm", "tokenizer.pool_head"}),
        (("bottleneck",), {"tokenizer.quantizer"}),
    ):
        chosen = stage("2-2-fsq", parts=parts)
        objective = TokenizerRun(
            recipe(chosen, language=language), TrainingData(), tmp_path
        ).objective(chosen, None, 0)
        assert trained(objective) == expected
        names = [n for n, p in objective.named_parameters() if p.requires_grad]
        assert all("lora_" in n for n in names if ".language." in n)
        if parts == ("bottleneck",):
            assert all(".bottleneck." in n for n in names)


def test_recomputing_activations_gives_equal_gradients(tmp_path: Path) -> None:
    from test_objectives import micro

    gradients = []
    for checkpointing in (False, True):
        chosen = stage("2-2-fsq", {"rmse": 1.0}, gradient_checkpointing=checkpointing)
        objective = (
            TokenizerRun(recipe(chosen), TrainingData(), tmp_path)
            .objective(chosen, None, 0)
            .train()
        )
        assert isinstance(objective, AlignObjective)
        assert objective.tokenizer.encoder.checkpointing == checkpointing
        with torch.no_grad():  # blocks begin as the identity
            for parameter in objective.parameters():
                parameter += 0.01
        objective(micro())["rmse"].backward()
        gradients.append([p.grad for p in objective.tokenizer.encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None and plain.abs().sum() > 0
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (
            recipe(stage("1a-align", {"distill": 1.0}), tower=None),
            "needs a teacher: name a SigLIP2",
        ),
        (recipe(ALIGN, language=None), "a text loss needs a language model"),
        (recipe(stage("2-2-fsq", {"latents": 1.0})), "needs the folder of the Qwen-Image VAE"),
        (recipe(stage("1a-align", synthetic={})), "1a-align: no data: give some with --data"),
        (recipe(stage("1a-align", synthetic={"scene": 0})), "1a-align: no data"),
        (recipe(NAMED["0-teacher"], tower=None), "a tower stage needs the shape of the tower"),
        (
            recipe(
                stage("3-decoder", {"mse": 1.0, "adversarial": 1.0}, discriminator=None),
            ),
            r"no losses \['adversarial'\], only rmse, mse, psnr",
        ),
    ],
)
def test_recipes_that_cannot_run(tmp_path: Path, chosen: TokenizerRecipe, words: str) -> None:
    with pytest.raises(ViqError, match=words) as error:
        run(tmp_path, chosen)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "aline"}, {"bottleneck": "fqs"}, {"parts": ("encodr",)}, {"new": ("x",)},
        {"perceptual": "vgg"},
    ],
)  # fmt: skip
def test_misspelt_stages(changes: dict[str, Any]) -> None:
    with pytest.raises(ViqError, match=f"1a-align: {next(iter(changes))} '.*: choose from"):
        replace(ALIGN, **changes)


def test_stages_need_different_names() -> None:
    with pytest.raises(ViqError, match="need different names"):
        recipe(ALIGN, ALIGN)


def test_lanes_are_shared_by_whole_processes(tmp_path: Path) -> None:
    class Three:
        """Rank 1 of three processes, as far as sharing goes."""

        num_processes, process_index, is_main_process = 3, 1, False
        device = torch.device("cpu")

        def __getattr__(self, name: str) -> Any:
            return lambda *items, **_: items if len(items) > 1 else None

    (tmp_path / "words").mkdir()
    tiny.letters().save_pretrained(tmp_path / "words")
    running = TokenizerRun(recipe(ALIGN), TrainingData(), tmp_path, Three())
    with pytest.raises(ViqError, match="2 micro-batches a step cannot be shared by 3 processes"):
        running._stage(ALIGN, 0, None)
