"""What `--help` shows, for every command there is: panels, examples, and one name for one thing."""

import shlex
import subprocess
import sys
from typing import Any

import pytest
import typer
from cli_runs import run, run_json

from viq.cli import app
from viq.cli.help import PANELS, split_examples
from viq.core.files import BUNDLED

ROOT: Any = typer.main.get_command(app)


def _walk(command: Any, *words: str) -> list[tuple[str, Any]]:
    if command.hidden:
        return []
    below = [_walk(inner, *words, name) for name, inner in getattr(command, "commands", {}).items()]
    return [(" ".join(words), command), *(found for inner in below for found in inner)]


ALL = dict(_walk(ROOT, "viq"))
COMMANDS = {words: command for words, command in ALL.items() if not hasattr(command, "commands")}


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and not p.hidden]


@pytest.mark.parametrize("words", ALL)
def test_every_help_has_examples_that_its_own_parser_takes(words: str) -> None:
    """A mistaken option or a missing argument of an example would end here."""
    examples = ALL[words].examples.splitlines()
    assert examples, f"{words}: end its docstring with a line `Examples:` and one or more below"
    for example in examples:
        program, *given = shlex.split(example.partition(" > ")[0])
        assert program == "viq" and example.startswith(words), example
        assert not any(option in example for option in ("--help", "-completion")), "would run here"
        context = ROOT.make_context("viq", given)
        while hasattr(context.command, "commands") and (rest := context._protected_args):
            name, inner, left = context.command.resolve_command(context, rest + context.args)
            context = inner.make_context(name, left, parent=context)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_is_in_a_panel(words: str) -> None:
    strays = [option.name for option in _options(COMMANDS[words]) if not option.rich_help_panel]
    assert not strays, f"{words}: add {strays} to viq.cli.help.PANELS"
    assert COMMANDS[words].get_help_option(typer.Context(COMMANDS[words])).rich_help_panel


def test_panels_hold_only_options_that_there_are() -> None:
    listed = [name for names in PANELS.values() for name in names]
    options = {option.name for command in COMMANDS.values() for option in _options(command)}
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) - options == {"help"}


def test_help_shows_panels_and_examples_and_no_docstring_twice() -> None:
    text = run("encode", "--help").stdout
    places = [text.index(word) for word in ("Arguments", "─ Output ─", "─ Model ─", "Examples:")]
    assert places == sorted(places)
    assert text.count("viq encode photos/ more.jpg -o codes.parquet\n") == 1
    assert "Options" not in text.partition("Arguments")[2]


def test_examples_are_what_follows_the_text() -> None:
    text = "Say it.\n\n    Twice.\n\n    Examples:\n        viq a [b]\n        viq c\n    "
    assert split_examples(text) == ("Say it.\n\nTwice.", "viq a [b]\nviq c")
    assert split_examples("Say it.") == ("Say it.", "")


def test_one_flag_replaces_and_one_prints_json() -> None:
    names = {name for command in COMMANDS.values() for o in _options(command) for name in o.opts}
    assert not names & {"--force", "--replace", "--yes", "--clobber"}
    for words, command in COMMANDS.items():
        flags = {option.name: option.opts for option in _options(command)}
        assert flags["as_json"] == ["--json"], words
        assert flags.get("overwrite", ["--overwrite"]) == ["--overwrite"], words
        assert flags.get("out", ["-o", "--out"]) == ["-o", "--out"], words


def test_json_says_its_schema(model: str, pictures: Any, tmp_path: Any) -> None:
    encoded = ("encode", pictures, "-o", tmp_path / "codes.parquet", "--model", model)
    assert run_json(*encoded)["schema_version"] == 1
    assert run_json("doctor")["schema_version"] == 1
    refused = run_json("info", "nothing-like-it", code=2)
    assert refused.keys() == {"schema_version", "error"}


def test_models_lists_what_comes_with_the_package() -> None:
    found = {model["name"]: model for model in run_json("models")["models"]}
    assert set(found) == {folder.name for folder in BUNDLED.iterdir() if folder.is_dir()}
    for name, model in found.items():
        assert model["bytes"] > 1e6 and model["parameters"] > 1e6 and model["for"]
        assert name in run("models").stdout


def test_python_m_viq_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "viq", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout[0].isdigit(), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the shell asks: by variables of the environment."""
    words = "viq enc"
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_VIQ_COMPLETE", f"complete_{shell}")
    code = "import sys; sys.argv = ['viq']; from viq.cli import app; app(prog_name='viq')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "encode" in done.stdout and "decode" not in done.stdout, done.stderr
