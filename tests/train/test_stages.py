"""The whole path of a recipe in seconds: what stages leave behind, and going on after a stop."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from viq.core import files
from viq.core.types import ViqError
from viq.data.corpora.corpora import open_corpora
from viq.metrics.run_log import read_lines
from viq.models.language.vision_language import AdapterConfig
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.tower import VisionTower
from viq.recipes.tokenizer import train_debug
from viq.train.checkpoints import read_state
from viq.train.loop import TrainingError
from viq.train.tokenizer.handover import begin
from viq.train.tokenizer.objectives import AlignObjective
from viq.train.tokenizer.recipe import StageConfig, TokenizerRecipe
from viq.train.tokenizer.run import TokenizerRun, TrainingData
from viq.weights.checkpoint import read_weights

DEBUG = train_debug()
NAMED = {stage.name: stage for stage in DEBUG.stages}
TIMES = {"seconds", "patches_per_second", "tokens_per_second"}


def recipe(*stages: StageConfig, **changes: Any) -> TokenizerRecipe:
    return replace(DEBUG, stages=stages, **changes)


def stage(name: str, losses: dict[str, float] | None = None, **changes: Any) -> StageConfig:
    """A stage of `debug`, without distillation, so that it needs no teacher."""
    found = NAMED[name]
    losses = losses or {k: v for k, v in found.loop.losses.items() if k != "distill"}
    loop = {k: changes.pop(k) for k in ("steps", "ema_decay", "save_every") if k in changes}
    data = {
        k: changes.pop(k)
        for k in ("gradient_accumulation", "crops", "synthetic", "merge_size")
        if k in changes
    }
    return replace(
        found,
        loop=replace(found.loop, losses=losses, **loop),
        data=replace(found.data, **data),
        **changes,
    )


ALIGN = stage("1a-align", steps=4, save_every=2)
FSQ = stage("2-2-fsq", steps=4, save_every=2)


def run(
    out: Path, chosen: TokenizerRecipe, data: TrainingData | None = None
) -> VisualTokenizer | None:
    return TokenizerRun(chosen, data or TrainingData(), out, hidden=True).train()


def records(out: Path, stage: str) -> list[dict[str, Any]]:
    lines = read_lines(out / stage / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def same_weights(a: Path, b: Path) -> bool:
    one, other = read_weights(a), read_weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# What a whole run leaves behind


def test_every_stage_leaves_a_log_a_model_and_two_checkpoints(debug_run: Path) -> None:
    assert json.loads((debug_run / "recipe.json").read_text())["name"] == "debug"
    for name, config in NAMED.items():
        folder = debug_run / name
        assert [record["step"] for record in records(debug_run, name)] == [1, 2, 3, 4, 5, 6]
        assert all(record["stage"] == name for record in records(debug_run, name))
        terms = {f"loss/{term}" for term in config.loop.losses}
        assert all(terms < record.keys() for record in records(debug_run, name))
        assert [path.name for path in sorted(folder.glob("step-*"))] == ["step-3", "step-6"]
        assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
        if config.kind == "tower":
            assert VisionTower.from_pretrained(folder / "tower").side == 32
        else:
            kept = VisualTokenizer.from_pretrained(folder / "model").config.quantizer.bottleneck
            assert kept == ("proximal" if "proximal" in name else "fsq")
        paints = {"rmse", "mse"} & config.loop.losses.keys()
        grids = sorted(path.name for path in folder.glob("grids/*"))
        assert grids == (["step-000003.png", "step-000006.png"] if paints else [])
        assert len(read_lines(folder / "codes.jsonl")) == 2 * (
            config.kind == "align" and config.bottleneck == "fsq"
        )


def test_the_result_encodes_and_decodes(debug_run: Path) -> None:
    model = VisualTokenizer.from_pretrained(debug_run / "3-decoder" / "model")
    picture = tiny.picture(0, 30, 50)
    codes = model.encode(picture)
    assert codes[0].grid == (2, 4) and model.decode(codes)[0].size == (50, 30)
    before = VisualTokenizer.from_pretrained(debug_run / "2-2-fsq" / "model")
    assert before.encode(picture) == codes and before.fingerprint == model.fingerprint


def test_the_decoder_stage_moves_the_decoder_alone(debug_run: Path) -> None:
    before, after = (
        read_weights(debug_run / name / "model" / "model.safetensors")
        for name in ("2-2-fsq", "3-decoder")
    )
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder"}


def test_stages_hand_on_what_they_have(debug_run: Path) -> None:
    """The text stages begin with the accuracy of the reader before them, not of a new one."""
    weights = {
        name: read_weights(debug_run / name / "reader.safetensors")
        for name in ("1a-align", "1b-align", "2-1-proximal", "2-2-fsq", "3-decoder")
    }
    first = next(iter(weights.values()))
    assert any(name.startswith("projector.") for name in first)
    assert any(name.startswith("language.") for name in first)
    for before, after in zip(list(weights.values())[:-1], list(weights.values())[1:], strict=True):
        assert before.keys() == after.keys()
        for name in before:  # a few small steps away
            assert float((before[name] - after[name]).abs().max()) < 0.02
    last = ("2-2-fsq", "3-decoder")
    assert same_weights(*(debug_run / name / "reader.safetensors" for name in last))


def test_the_result_of_a_stage_is_its_moving_average(debug_run: Path) -> None:
    values = read_state(debug_run / "2-2-fsq" / "step-6")
    written = read_weights(debug_run / "2-2-fsq" / "model" / "model.safetensors")
    reader = read_weights(debug_run / "2-2-fsq" / "reader.safetensors")
    name = "encoder.patch_embed.weight"
    assert torch.equal(written[name], values["average"][f"tokenizer.{name}"])
    assert not torch.equal(written[name], values["weights"][f"tokenizer.{name}"])
    for name, weight in reader.items():
        assert torch.equal(weight, values["average"][f"reader.{name}"])


def test_bad_samples_are_listed_in_each_stage_that_meets_them(debug_run: Path) -> None:
    met: set[str] = set()
    for name, config in NAMED.items():
        reasons = {
            line["key"]: line["reason"] for line in read_lines(debug_run / name / "skipped.jsonl")
        }
        broken = {k: v for k, v in reasons.items() if k.startswith("pictures:")}
        assert len(broken) == 1 and "3.png" in next(iter(broken.values()))
        rest = reasons.keys() - broken.keys()
        if config.loop.losses.keys() & {"text", "contrast"}:
            assert all(
                "talk.jsonl:1: has more <image> placeholders" in reasons[key] for key in rest
            )
            met |= rest
        else:
            assert not rest
    assert met == {"talk:0"}


def test_run_again_it_trains_nothing(debug_run: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in debug_run.rglob("*") if path.is_file()}
    paths = [debug_run.parent / "pictures", debug_run.parent / "talk.jsonl"]
    model = run(debug_run, DEBUG, TrainingData.of(open_corpora(paths, "train"), paths))
    assert isinstance(model, VisualTokenizer)
    del files[debug_run / "recipe.json"]  # written again, with the same words
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_another_recipe_in_the_folder_is_refused(debug_run: Path) -> None:
    found = DEBUG.stages[3]
    loop = replace(found.loop, optim=replace(found.loop.optim, betas=(0, 0)))
    stages = (*DEBUG.stages[:3], replace(found, loop=loop), *DEBUG.stages[4:])
    with pytest.raises(TrainingError, match="begun with another recipe") as error:
        run(debug_run, replace(DEBUG, stages=stages, seed=1))
    assert "seed was 0, is now 1" in str(error.value)
    assert f"stages.{found.name}.loop.optim.betas was [0.9, 0.99], is now [0, 0]" in str(
        error.value
    )
    with pytest.raises(TrainingError) as error:
        run(debug_run, replace(DEBUG, stages=DEBUG.stages[1:]))
    assert "stages.0-teacher was {'name': '0-teacher'" in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


# Going on


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out, recipe(ALIGN, FSQ))
    return out


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "step"), [("1a-align", 1), ("1a-align", 3), ("2-2-fsq", 1), ("2-2-fsq", 4)]
)
def test_stopped_in_any_stage_it_goes_on_to_the_last_bit(
    whole: Path, tmp_path: Path, name: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from viq.train.monitor import Journal

    log = Journal.log

    def stop(journal: Journal, record: dict[str, Any]) -> None:
        log(journal, record)
        if (record["stage"], record["step"]) == (name, step):
            raise Interrupted

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(Journal, "log", stop)
        run(tmp_path, recipe(ALIGN, FSQ))
    run(tmp_path, recipe(ALIGN, FSQ))
    for stage in ("1a-align", "2-2-fsq"):
        assert records(tmp_path, stage) == records(whole, stage)  # each step once
        for file in ("model/model.safetensors", "reader.safetensors"):
            assert same_weights(tmp_path / stage / file, whole / stage / file)


@pytest.mark.parametrize("missing", ["model/config.json", "model", "reader.safetensors"])
def test_killed_between_the_last_checkpoint_and_the_model(
    whole: Path, tmp_path: Path, missing: str
) -> None:
    import shutil

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    path = out / "2-2-fsq" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "2-2-fsq" / "model" / "config.json").unlink(missing_ok=True)
    run(out, recipe(ALIGN, FSQ))
    for file in ("model/model.safetensors", "reader.safetensors"):
        assert same_weights(out / "2-2-fsq" / file, whole / "2-2-fsq" / file)


def test_a_text_tokenizer_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(files.os, "rename", die)
        run(tmp_path, recipe(ALIGN))
    assert not (tmp_path / "words").exists()
    run(tmp_path, recipe(ALIGN))
    assert sorted(os.listdir(tmp_path)) == ["1a-align", "data.json", "recipe.json", "words"]


def test_bad_samples_are_listed_before_the_checkpoint_that_passes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after it, nothing would draw them again."""
    tiny.write_chats(tmp_path / "talk.jsonl", [(0, ("no image", "a"))] * 20)
    data = TrainingData.of(open_corpora([tmp_path / "talk.jsonl"], "train"))
    assert data.rows and not data.skipped
    listed: list[int] = []

    def die(folder: Path, step: int, *_: object, **__: object) -> None:
        listed.append(len(read_lines(folder / "skipped.jsonl")))
        raise Interrupted

    from viq.train import checkpoints as state

    monkeypatch.setattr(state, "save", die)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", recipe(ALIGN), data)
    assert listed[0] > 0


# Parts


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
