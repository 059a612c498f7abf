"""`viq train` and `viq report` as a user meets them."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_tracking import scalars
from typer.testing import CliRunner, Result

import viq
from viq.cli import app
from viq.core.types import ViqError
from viq.data.sources.access import Access
from viq.metrics.run_log import read_lines
from viq.recipes.registry import find_recipe
from viq.train.monitor import Journal
from viq.train.tokenizer.recipe import TokenizerRecipe
from viq.weights.checkpoint import to_dict


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object) -> str:
    """Exit code 2 and one line."""
    result = run(*arguments, code=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("viq:")]
    assert "Traceback" not in result.output
    return line


def data_of(debug_run: Path) -> list[object]:
    folder = debug_run.parent
    return ["--data", folder / "pictures", "--data", folder / "talk.jsonl"]


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A recipe file of one stage and two steps."""
    debug = find_recipe("debug")
    stage = next(stage for stage in debug.stages if stage.name == "2-2-fsq")
    loop = replace(stage.loop, steps=2, losses={"rmse": 1.0})
    recipe: TokenizerRecipe = replace(debug, name="short", stages=(replace(stage, loop=loop),))
    path = tmp_path / "short.json"
    path.write_text(json.dumps(to_dict(recipe)))
    return path


def test_what_a_run_says_at_its_end(debug_run: Path) -> None:
    said: dict[str, Any] = json.loads((debug_run.parent / "printed.json").read_text())
    assert said["model"] == str(debug_run / "model")
    assert set(said["rows"]) == {"talk"} and 8 <= said["rows"]["talk"] <= 12
    assert 8 <= said["photos"] <= 11
    assert viq.load(said["model"]).levels == (8, 8, 8, 5, 5, 5)


def test_run_again_it_says_the_same_at_once(debug_run: Path) -> None:
    result = run("train", "debug", *data_of(debug_run), "--out", debug_run, "--json")
    assert result.stdout == (debug_run.parent / "printed.json").read_text()


def test_from_nothing_to_a_model(short: Path, tmp_path: Path) -> None:
    """No data, no names: drawn pictures, a line every step, and where the model is."""
    out = tmp_path / "run"
    result = run("train", short, "--out", out)
    lines = [line for line in result.stderr.splitlines() if line.startswith("2-2-fsq")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all("loss" in line and "PSNR" in line and "left" in line for line in lines)
    assert str(out / "model") in result.stdout.replace("\n", "")
    model = viq.load(str(out / "model"))
    assert model.encode(Image.new("RGB", (20, 20)))[0].grid == (2, 2)


def test_the_old_option_of_tensorboard_warns(short: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    done = run("train", short, "--out", tmp_path / "run", "--tensorboard", "--json")
    found = scalars(tmp_path / "run" / "2-2-fsq" / "tensorboard")
    lines = read_lines(tmp_path / "run" / "2-2-fsq" / "log.jsonl")
    assert found["loss"] == [(line["step"], line["loss"]) for line in lines]
    assert found.keys() >= {"loss/rmse", "psnr", "learning_rate", "codes/perplexity"}
    assert "--tensorboard is of release 0.1: give --track tensorboard" in done.stderr


def test_trackers_are_asked_for_before_training(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = tmp_path / "run"
    for name, words in (("wandb", "pip install wandb"), ("comet", "choose from tensorboard,")):
        for command in ((short,), ("mllm", "debug"), ("generation", "debug")):
            done = run("train", *command, "--out", out, "--track", name, code=2)
            assert words in done.stderr.replace("\n", " ")
    assert not (out / "recipe.json").exists()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("command", [("train",), ("train", "mllm"), ("train", "generation")])
def test_asked_to_stop_it_saves_and_ends_with_a_code_of_its_own(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """143, as a shell reports for a process that SIGTERM ended; 2 is for what cannot run."""
    log = Journal.log

    def ask(journal: Journal, record: dict[str, Any]) -> None:
        log(journal, record)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Journal, "log", ask)
    result = run(*command, "debug", "--out", tmp_path / "run", code=143)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("viq:")]
    assert "asked to stop; saved at step 2 of" in line and "run the same command to go on" in line
    assert [path.name for path in tmp_path.glob("run/*/step-*")] == ["step-2"]


def test_printed_recipes_are_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(run("train", "g", "--teacher", "T", "--scale", 0.5, "--print").stdout)
    recipe, base = find_recipe(str(path)), find_recipe("g")
    assert recipe.teacher == "T"
    assert recipe.stages[0].loop.steps == base.stages[0].loop.steps // 2
    assert run("train", path, "--print").stdout == path.read_text()


@pytest.mark.parametrize("kind", ["tokenizer", "mllm", "generation"])
def test_every_kind_of_training_can_be_scaled(kind: str) -> None:
    def steps(*options: object) -> list[int]:
        recipe = json.loads(run("train", kind, "debug", "--print", *options).stdout)
        return [stage["loop"]["steps"] for stage in recipe.get("stages", [recipe])]

    assert steps("--scale", 3) == [3 * count for count in steps()]
    assert "--scale nan: give a number above 0" in refused(
        "train", kind, "debug", "--scale", "nan", "--print"
    )


def test_steps_of_drawing_are_given_once() -> None:
    recipe = json.loads(run("train", "generation", "debug", "--steps", 7, "--print").stdout)
    assert recipe["loop"]["steps"] == 7
    assert "give one of them" in refused("train", "generation", "debug", "--steps", 7, "--scale", 2)


@pytest.mark.parametrize("option", [("--print",), ("--where", "a=b"), ("--scale", "3")])
def test_entropy_takes_no_option_of_tokenizers(option: tuple[str, ...], tmp_path: Path) -> None:
    result = run("train", "entropy", "--model", tmp_path / "none", *option, code=2)
    assert f"No such option: {option[0]}" in result.stderr


def test_entropy_is_still_found_where_it_was(tmp_path: Path) -> None:
    words = ("--model", tmp_path / "none", "--data", tmp_path, "--threads", 1, "--overwrite")
    now = refused("train", "entropy", *words)
    assert str(tmp_path / "none") in now
    assert refused("train", "tokenizer", "entropy", *words) == now
    line = refused("train", "tokenizer", "--data", tmp_path, "entropy")
    assert line == "viq: entropy is a command, not a recipe: viq train entropy --model MODEL"


def test_another_recipe_for_the_same_folder(debug_run: Path) -> None:
    line = refused("train", "debug", *data_of(debug_run), "--out", debug_run, "--scale", 2)
    assert "begun with another recipe" in line
    assert "stages.0-teacher.loop.steps was 6, is now 12" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--where", "licence"), "--where licence: give COLUMN=VALUE"),
        (("--data", "{data}/talk.jsonl", "--where", "licence=cc0"), "no row of the data passes"),
        (("--data", "{data}/none.parquet"), "none.parquet: does not exist"),
    ],
)
def test_bad_options(
    debug_run: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    filled = [argument.format(data=debug_run.parent) for argument in arguments]
    assert words in refused("train", "debug", *filled, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    line = refused("train", "debug", "--out", tmp_path / "run")
    assert line == "viq: training needs accelerate: pip install 'viq[train]'"


@pytest.mark.parametrize(
    "command",
    [
        ["train", "debug"],
        ["train", "entropy"],
        ["eval", "understanding", "viq-tiny"],
        ["eval", "features"],
    ],
)
def test_what_data_may_open_is_an_option_wherever_data_are_opened(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the errors say that tell of it."""
    seen: list[dict[str, Any]] = []

    def opened(*given: Any, **options: Any) -> Any:
        seen.append(options)
        raise ViqError("enough")

    monkeypatch.setattr("viq.data.corpora.corpora.open_source", opened)
    monkeypatch.setattr("viq.train.entropy.open_source", opened)
    if command[1] == "entropy":
        viq.load("viq-tiny").save_pretrained(tmp_path / "model")
        command = [*command, "--model", str(tmp_path / "model"), "--overwrite"]
    given = ["--root", tmp_path, "--allow-absolute", "--allow-private-network"]
    result = CliRunner().invoke(
        app, [*map(str, [*command, "--data", "d.jsonl", *given]), "--allow-protocol", "s3,gs"]
    )
    assert result.exit_code == 2, result.output
    access = Access(protocols=("s3", "gs"), absolute=True, private_network=True)
    assert (seen[0]["root"], seen[0]["access"]) == (tmp_path, access)


@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_report_of_a_run(debug_run: Path, tmp_path: Path, name: str) -> None:
    run("report", debug_run, "--out", tmp_path / name)
    if name.endswith("png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300
    else:
        page = (tmp_path / name).read_text()
        assert all(stage.name in page for stage in find_recipe("debug").stages)
        assert "http://" not in page and "https://" not in page


def test_report_of_no_run(tmp_path: Path) -> None:
    assert str(tmp_path) in refused("report", tmp_path)
