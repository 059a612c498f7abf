"""A run folder belongs to its data, and beginning anew removes nothing but what runs wrote."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_mllm
from typer.testing import CliRunner

from viq.cli import app
from viq.core.locks import locked
from viq.core.types import ViqError
from viq.data.batching.generation_batches import CodePair, write_pairs
from viq.data.sources.open import open_source
from viq.data.synthetic.captions import CaptionedShapes
from viq.jobs.encode import encode
from viq.models.tokenizer.tokenizer import VisualTokenizer
from viq.recipes.generation import debug as draw_debug
from viq.recipes.mllm import debug as mllm_debug
from viq.recipes.registry import find
from viq.recipes.tokenizer import train_debug
from viq.store.rows import StoreInfo
from viq.train.generation.recipe import GenerationRecipe
from viq.train.loop import TrainingError
from viq.train.mllm.recipe import MllmRecipe
from viq.train.run_folder import begin_anew, check_data, check_recipe, contents_of, empty_model
from viq.train.tokenizer.recipe import TokenizerRecipe
from viq.weights.checkpoint import to_dict


class Main:
    is_main_process = True


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [*map(str, words)])


def refused(done: Any, *words: str) -> None:
    assert done.exit_code == 2, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("viq:")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.output


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "cache" not in path.parts
    }


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer, two data sets, stores of them, and recipes of one stage each."""
    root = tmp_path_factory.mktemp("runs")
    tokenizer = tiny_mllm.saved_tokenizer(root / "tokenizer")
    for name, count in (("a", 12), ("b", 13)):
        tiny.write_chats(root / f"{name}.jsonl", [(1, ("<image>What?", "A picture."))] * count)
        encode(tokenizer, open_source(root / f"{name}.jsonl"), root / f"{name}-store", workers=1)
        info = StoreInfo(model="x", fingerprint=tokenizer.fingerprint, levels=tokenizer.levels)
        shapes = CaptionedShapes("train", (32, 32), 0)
        drawn = [shapes.pair(number) for number in range(count)]
        codes = tokenizer.encode([pair.image for pair in drawn])
        pairs = [CodePair(caption=p.caption, codes=c) for p, c in zip(drawn, codes, strict=True)]
        write_pairs(root / f"{name}.parquet", info, pairs)
    whole = train_debug()
    one = next(stage for stage in whole.stages if stage.name == "1a-align")
    losses = {"text": 1.0}
    one = replace(one, loop=replace(one.loop, steps=2, losses=losses))
    recipes = {
        "tokenizer": replace(whole, stages=(one,), tower=None),
        "mllm": replace(
            mllm_debug(), tokenizer=str(root / "tokenizer"), stages=mllm_debug().stages[:1]
        ),
        "draw": replace(draw_debug(), tokenizer=str(root / "tokenizer")),
    }
    for name, recipe in recipes.items():
        (root / f"{name}.json").write_text(json.dumps(to_dict(recipe)))
    return {path.name: path for path in root.iterdir()}


KINDS: dict[str, tuple[list[str], str, str]] = {
    "tokenizer": (["train"], "--data", ".jsonl"),
    "mllm": (["train", "mllm"], "--codes", "-store"),
    "draw": (["train", "generation"], "--codes", ".parquet"),
}


NAMES_OF_0_1 = {
    "warmup_ratio": "warmup_share",
    "decay_ratio": "decay_share",
    "min_lr_ratio": "final_share",
    "new_module_lr": "new_learning_rate",
    "discriminator_lr": "adversary_learning_rate",
    "ema_decay": "average",
    "eval_every": "look_every",
    "gradient_accumulation": "lanes",
}


def of_0_1(value: Any) -> Any:
    """A recipe in JSON as release 0.1 wrote it."""
    if isinstance(value, list):
        return [of_0_1(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {NAMES_OF_0_1.get(name, name): of_0_1(inner) for name, inner in value.items()}


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        (TokenizerRecipe, train_debug()),
        (MllmRecipe, mllm_debug()),
        (GenerationRecipe, draw_debug()),
    ],
)
def test_recipes_of_0_1_are_read(kind: Any, recipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    old, new = of_0_1(to_dict(recipe)), to_dict(recipe)
    path.write_text(json.dumps(old))
    with pytest.warns(DeprecationWarning, match=r"recipe.json: names of release 0.1: .*"):
        assert find(str(path), {}, kind) == recipe
    with pytest.warns(DeprecationWarning, match="look_every is eval_every"):
        check_recipe(path, recipe, Main())
    assert json.loads(path.read_text()) == new  # and from now on has today's names
    loop = (old["stages"][0] if "stages" in old else old)["loop"]
    loop["eval_every"] = loop["look_every"]
    path.write_text(json.dumps(old))
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(ViqError, match=r"unknown config fields \['look_every'\]"),
    ):
        find(str(path), {}, kind)


def test_a_run_that_0_1_began_goes_on(places: dict[str, Path], tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "run" / "recipe.json"
    command = [
        "train",
        "generation",
        places["draw.json"],
        "--codes",
        places["a.parquet"],
        "--out",
        run,
    ]
    assert call(*command).exit_code == 0
    model = (run / "model" / "model.safetensors").read_bytes()
    log = (run / "draw" / "log.jsonl").read_bytes()
    shutil.rmtree(run / "model")  # as if killed before it was written
    path.write_text(json.dumps(of_0_1(json.loads(path.read_text()))))
    with pytest.warns(DeprecationWarning, match="lanes is gradient_accumulation"):
        done = call(*command)
    assert done.exit_code == 0, done.output
    assert (run / "model" / "model.safetensors").read_bytes() == model
    assert (run / "draw" / "log.jsonl").read_bytes() == log  # no step was done again
    loop = of_0_1(json.loads(path.read_text()))
    loop["loop"]["average"] = 0.25
    path.write_text(json.dumps(loop))
    with pytest.warns(DeprecationWarning):
        refused(call(*command), "another recipe", "loop.ema_decay was 0.25")


@pytest.mark.parametrize("kind", KINDS)
def test_other_data_are_refused_and_moved_ones_are_not(
    kind: str, places: dict[str, Path], tmp_path: Path
) -> None:
    """Finished or begun; with --overwrite the run begins anew."""
    words, option, suffix = KINDS[kind]
    out = tmp_path / "run"
    line = [*words, places[f"{kind}.json"], "--out", out]
    done = call(*line, option, places[f"a{suffix}"])
    assert done.exit_code == 0, done.output
    before = snapshot(out)
    refused(
        call(*line, option, places[f"b{suffix}"]), " was a", "is now b", "begun with other data"
    )
    assert snapshot(out) == before
    moved = tmp_path / "elsewhere" / f"a{suffix}"
    moved.parent.mkdir()
    copy = shutil.copytree if places[f"a{suffix}"].is_dir() else shutil.copy
    copy(places[f"a{suffix}"], moved)
    if kind == "tokenizer":
        for picture in places["a.jsonl"].parent.glob("a-*.png"):
            shutil.copy(picture, moved.parent)
    done = call(*line, option, moved)
    assert done.exit_code == 0, done.output
    (out / "data.json").unlink()  # as release 0.1 left it
    done = call(*line, option, moved)
    assert done.exit_code == 0 and "begun before its data were recorded" in done.output
    refused(call(*line, option, places[f"b{suffix}"]), "begun with other data")
    (out / "notes.txt").write_text("mine")
    done = call(*line, option, places[f"b{suffix}"], "--overwrite")
    assert done.exit_code == 0, done.output
    assert "notes.txt stay" in done.output and (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "data.json").read_text()) != json.loads(before["data.json"])
    changed = {n for n, v in snapshot(out).items() if n in before and v != before[n]}
    assert any(name.endswith("model.safetensors") for name in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_in_one_folder_are_not_at_work_at_once(
    kind: str, places: dict[str, Path], tmp_path: Path
) -> None:
    words, option, suffix = KINDS[kind]
    line = [*words, places[f"{kind}.json"], "--out", tmp_path, option, places[f"a{suffix}"]]
    with locked(tmp_path):
        refused(call(*line), "another process is writing in this folder")
        refused(call(*line, "--overwrite"), "another process is writing in this folder")
    assert list(tmp_path.iterdir()) == []


def test_where_and_sizes_belong_to_it(tmp_path: Path) -> None:
    data: dict[str, Any] = {"data": [], "where": {}, "sizes": [10]}
    said: list[str] = []
    check_data(tmp_path, data, Main(), said.append)
    check_data(tmp_path, data, Main(), said.append)
    check_data(tmp_path, {"data": [], "where": {}}, Main(), said.append)  # tells less
    for changed in ({"where": {"a": "b"}}, {"sizes": [11]}):
        with pytest.raises(TrainingError, match="begun with other data") as error:
            check_data(tmp_path, data | changed, Main(), said.append)
        assert "\n" not in str(error.value)
    assert not said
    (tmp_path / "data.json").write_text("[" * 10**5)
    with pytest.raises(ViqError, match="nested too deeply"):
        check_data(tmp_path, data, Main(), said.append)


def test_another_file_of_the_same_size_is_other_data(tmp_path: Path) -> None:
    """Also a large one, of which only pieces are read, its ends among them."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "d.jsonl"
    for size in (10, 2**16, 5 * 2**16 + 1, 2**23):
        found = set()
        for place in (None, 0, size // 2, size - 1):
            data = bytearray(b"a" * size)
            if place is not None:
                data[place] = ord("b")
            path.write_bytes(data)
            found |= {*contents_of([path]), *contents_of([tmp_path / "folder"])}
        assert len(found) == (4 if size < 2**22 else 3)
    assert contents_of([tmp_path / "nowhere", "hf:a/b"]) == [None, None]
    check_data(tmp_path, {"contents": ["0123"]}, Main(), print)
    with pytest.raises(TrainingError, match="begun with other data"):
        check_data(tmp_path, {"contents": ["4567"]}, Main(), print)


def test_beginning_anew_removes_what_runs_wrote_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    own = [
        "recipe.json", "data.json", "words/tokenizer.json", "s1/log.jsonl", "s1/step-4/state.json",
        "s1/step-4/state.safetensors", "s1/step-2/state.pt", "s1/grids/step-000002.png",
        "s1/model/config.json", "s1/model/model-00001-of-00002.safetensors",
        "s1/tensorboard/events.out.tfevents.1.host", "model/config.json", "model/vae/config.json",
        "codes/part-00000.parquet", "codes/_index.json", "codes.parquet", "draw/log.jsonl",
        "model/language/tokenizer.json",
    ]  # fmt: skip
    kept = [
        "notes.txt", "s1/mine.png", "s1/grids/photo.png", "other/log.jsonl", "codes/photo.png",
        "step-4/state.json", ".git/config", "words2/tokenizer.json", "cache/x.arrow",
    ]  # fmt: skip
    for name in [*own, *kept]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    (tmp_path / "elsewhere" / "model" / "config.json").write_text("mine")
    (out / "s2").symlink_to(tmp_path / "elsewhere")
    (out / "s1" / "model" / "generation_config.json").symlink_to(out / "notes.txt")
    names = ["s1", "s2", "../elsewhere", "/etc", 3]
    recipe = json.dumps({"stages": [{"name": name} for name in names]})
    (out / "recipe.json").write_text(recipe)
    said: list[str] = []
    with pytest.raises(ViqError, match=r"cannot replace s1/model/generation_config\.json"):
        begin_anew(out, said.append, extra_stages=["draw"])  # a link, which no run makes
    assert all((out / name).exists() for name in own)
    (out / "s1" / "model" / "generation_config.json").unlink()
    with pytest.raises(ViqError, match="which --overwrite empties"):
        begin_anew(out, said.append, reads=[None, "viq-tiny", out / "codes"])
    assert all((out / name).exists() for name in own)
    begin_anew(out, said.append, extra_stages=["draw"])
    assert not any((out / name).exists() for name in own)
    assert all((out / name).read_text() == "x" for name in kept)
    assert (tmp_path / "elsewhere" / "model" / "config.json").read_text() == "mine"
    assert len(said) == 1 and "stay, as no run wrote them" in said[0]
    begin_anew(out, said.append)  # no recipe: no run
    assert len(said) == 1


def test_a_model_of_somebody_else_is_not_in_the_way_for_hours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("torn")
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(ViqError, match=r"photo\.png: is in the way"):
        empty_model(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "photo.png"]
    (tmp_path / "photo.png").unlink()
    empty_model(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_model_that_no_run_made_is_not_replaced(places: dict[str, Path], tmp_path: Path) -> None:
    VisualTokenizer.from_pretrained(places["tokenizer"]).save_pretrained(tmp_path / "model")
    before = snapshot(tmp_path)
    done = call("train", places["tokenizer.json"], "--data", places["a.jsonl"], "--out", tmp_path)
    refused(done, "model: exists, but no run was begun")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "model", "words", "a/b", ".hidden", "a\n", ""])
def test_names_of_stages_are_names_of_folders(name: str) -> None:
    recipe = train_debug()
    with pytest.raises(ViqError):
        replace(recipe, stages=(replace(recipe.stages[0], name=name),))
