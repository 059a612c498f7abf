"""`viq eval vlm` as a user meets it: JSON, tables, exit codes, one line an error."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner, Result

from viq.cli import app

GOLDEN = Path(__file__).parent.parent / "golden" / "benchmarks"
FIXTURES = GOLDEN / "fixtures"
READY = ("--answers", FIXTURES / "predictions.json", "--data", FIXTURES)
WHOLE = json.loads((GOLDEN / "end_to_end.json").read_text())


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["eval", "vlm", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def errors(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("viq:")]


def test_ready_answers_as_json() -> None:
    found = json.loads(run(*READY, "--json").stdout)
    assert found.pop("schema_version") == 1
    assert list(found) == ["tasks", "average"] and len(found["tasks"]) == 9
    for name, task in found["tasks"].items():
        assert list(task) == ["score", "metric", "n", "ci"]
        metric = WHOLE["headline_metric"][name]
        assert task["metric"] == metric and task["n"] == 5
        wanted = WHOLE["tasks"][name]["aggregate"][metric]
        assert task["score"] == pytest.approx(wanted, abs=1e-12)
        assert task["ci"][0] <= task["score"] <= task["ci"][1]


def test_ready_answers_as_a_table(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = run(*READY, "--tasks", "ocrbench,chartqa", "-o", out).stdout.splitlines()
    assert shown[1].split()[:3] == ["ocrbench", "ocrbench_accuracy", "4.0"]
    assert shown[2].split()[:3] == ["chartqa", "relaxed_overall", "60.0"]
    assert shown[3].split() == ["average", "30.2"]
    assert "the average is of 2 of 9 tasks" in shown
    saved = json.loads((out / "scores.json").read_text())
    assert saved["tasks"]["chartqa"]["totals"]["relaxed_human_split"] == 1


def test_the_bundled_model_goes_on_where_it_was(tmp_path: Path) -> None:
    model = ("--model", "viq-tiny-chat", "--data", FIXTURES, "-o", tmp_path / "run", "--json")
    few = json.loads(run(*model, "--tasks", "chartqa", "--limit", 2).stdout)
    assert few["tasks"]["chartqa"]["n"] == 2
    answers = tmp_path / "run" / "answers" / "chartqa.jsonl"
    before = answers.read_bytes()
    every = json.loads(run(*model, "--tasks", "chartqa", "--tasks", "ai2d").stdout)
    assert every["tasks"]["chartqa"]["n"] == 5 == every["tasks"]["ai2d"]["n"]
    assert answers.read_bytes().startswith(before)
    again = ("--answers", answers, "--data", FIXTURES, "--json")
    assert json.loads(run(*again).stdout)["tasks"]["chartqa"] == every["tasks"]["chartqa"]
    (line,) = errors(run(*model, "--like", "lmms-eval", code=2))
    assert "holds answers with another like (viq, now lmms-eval)" in line


def test_what_cannot_be_done_is_a_line_each(tmp_path: Path) -> None:
    result = run(*READY, "--tasks", "mmlu,chartqa", code=3)
    (line,) = errors(result)
    assert "--tasks mmlu: no such task" in line and "60.0" in result.stdout
    assert errors(run(*READY, "--tasks", "mmlu", code=2)) == [line.replace("failed: ", "")]
    torn = tmp_path / "torn.json"
    torn.write_text((FIXTURES / "predictions.json").read_text()[:200])
    result = run("--answers", torn, "--data", FIXTURES, "--json", code=3)
    assert "mmstar" in json.loads(result.stdout)["tasks"]
    assert any("may be cut off" in line for line in errors(result))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --model M to ask one, or --answers FILE"),
        (("--model", "viq-tiny-chat", *READY), "give --model M to ask one, or --answers FILE"),
        (("--model", "viq-tiny-chat"), "-o OUT: give a folder"),
        ((*READY, "--like", "mine"), "--like mine: give one of viq, lmms-eval"),
        ((*READY, "--limit", "0"), "--limit 0: give at least 1"),
        (("--answers", "none.json"), "--answers none.json: cannot be read"),
        (("--model", "none/at-all", "-o", "run", "--data", "none"), "none/at-all: "),
    ],
)
def test_options_that_do_not_fit(
    arguments: tuple[object, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Read when the library is imported, so the variable of that name would come too late.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (line,) = errors(run(*arguments, code=2))
    assert said in line
