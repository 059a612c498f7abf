"""The whole path of a recipe in seconds: what stages leave behind, and going on after a stop."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from debug_stages import ALIGN, DEBUG, FSQ, NAMED, recipe, run, same_weights

from viq.core import files
from viq.data.corpora.corpora import open_corpora
from viq.metrics.run_log import read_lines
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.models.vision.tower import VisionTower
from viq.train.checkpoints import read_state
from viq.train.loop import TrainingError
from viq.train.tokenizer.run import TrainingData
from viq.weights.checkpoint import read_weights

TIMES = {"seconds", "patches_per_second", "tokens_per_second"}


def records(out: Path, stage: str) -> list[dict[str, Any]]:
    lines = read_lines(out / stage / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


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
