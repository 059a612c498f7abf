"""The nine benchmarks beside lmms-eval run as a whole: prompts, scores of rows, totals."""

import json
from pathlib import Path
from typing import Any

import pytest

from viq.data.sources.base import ImageBytes, Row, SourceError
from viq.eval.vlm.benchmarks import score_ready
from viq.eval.vlm.rows import find, identity, open_rows
from viq.eval.vlm.tasks import TASKS, Scored, named
from viq.eval.vlm.tasks.base import Task
from viq.image.open import open_image
from viq.metrics.choices import chosen_letter, open_candidates

GOLDEN = Path(__file__).parent.parent / "golden" / "benchmarks"
FIXTURES = GOLDEN / "fixtures"
WHOLE = json.loads((GOLDEN / "end_to_end.json").read_text())
METRICS = json.loads((GOLDEN / "metrics.json").read_text())["metrics"]
ROWS = [(name, row["doc_id"]) for name, task in WHOLE["tasks"].items() for row in task["rows"]]
PREDICTIONS = json.loads((FIXTURES / "predictions.json").read_text())


def row_of(name: str, number: int) -> tuple[Task, Row, dict[str, Any]]:
    task = TASKS[name]
    source = open_rows(task, find(task, FIXTURES))
    return task, source[number], WHOLE["tasks"][name]["rows"][number]


def as_messages(task: Task, row: Row, like: Any) -> list[dict[str, Any]]:
    images = task.images(row)
    content: list[dict[str, Any]] = []
    for part in task.parts(row, like):
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            image = open_image(images[part].read())
            content.append({"type": "image", "mode": image.mode, "size": list(image.size)})
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(("name", "number"), ROWS)
def test_prompts_are_those_of_lmms_eval(name: str, number: int) -> None:
    task, row, wanted = row_of(name, number)
    assert as_messages(task, row, "lmms-eval") == wanted["messages"]
    if name != "mmmu_val":
        assert as_messages(task, row, "viq") == wanted["messages"]
    assert task.text(row) == wanted["simple_text"]
    settings = wanted["generation_kwargs"]
    assert task.most_tokens == settings.get("max_new_tokens")
    assert list(task.stop) == settings["until"]


@pytest.mark.parametrize(("name", "number"), ROWS)
def test_rows_score_as_in_lmms_eval(name: str, number: int) -> None:
    task, row, wanted = row_of(name, number)
    found = task.score(row, wanted["prediction"])
    if "score" in wanted:
        assert found.value == pytest.approx(wanted["score"], abs=1e-12)
    if name == "mmmu_val":  # where the record has what was found in the answer
        (parsed,) = wanted["parsed"]
        if isinstance(parsed, list):
            assert {*map(str, open_candidates(wanted["prediction"]))} == {*map(str, parsed)}
        else:
            options = dict(zip("ABCDEFG", eval_list(row.extras["options"]), strict=False))
            assert chosen_letter(wanted["prediction"], options) == parsed


def eval_list(text: str) -> list[str]:
    return json.loads(text.replace("'", '"'))


def test_totals_are_those_of_lmms_eval() -> None:
    outcome = score_ready(FIXTURES / "predictions.json", data=FIXTURES)
    assert outcome.failed == []
    assert [result.task.name for result in outcome.results] == list(TASKS)
    for result in outcome.results:
        wanted = WHOLE["tasks"][result.task.name]["aggregate"]
        assert {n: result.totals[n] for n in wanted} == pytest.approx(wanted, abs=1e-12)
        assert result.task.metric == WHOLE["headline_metric"][result.task.name]
        low, high = result.interval
        assert 0 <= low <= result.score <= high <= 1
    scores = [result.score for result in outcome.results]
    assert outcome.as_json()["average"] == pytest.approx(100 * sum(scores) / 9)


def test_totals_of_mmstar_and_mmmu() -> None:
    for name, wanted in (("mmstar", METRICS["mmstar"]), ("mmmu_val", METRICS["mmmu"])):
        task = TASKS[name]
        scored = [
            task.score(Row(key="", extras=row, where="row"), row["prediction"])
            for row in wanted["rows"]
        ]
        assert [one.value for one in scored] == wanted["scores"]
        totals = task.totals(scored)
        if name == "mmstar":
            assert totals == pytest.approx(wanted["aggregate"], abs=1e-12)
            continue
        assert totals[task.metric] == wanted["aggregate"]
        for group, found in wanted["by_subject"].items():
            group = group.removeprefix("Overall-")
            if found["num"] and group != "Overall":
                assert totals[group] == found["acc"]


def mmmu(question: str, options: list[str], images: int) -> Row:
    extras: dict[str, Any] = {
        "id": "validation_Art_Theory_1", "question": question, "options": str(options),
        "answer": "A", "question_type": "multiple-choice" if options else "open",
    }  # fmt: skip
    for number in range(1, 8):
        data = {"bytes": bytes([number]), "path": None} if number <= images else None
        extras[f"image_{number}"] = data
    return Row(key="", extras=extras, where="mmmu:0")


def test_pictures_of_mmmu_stand_where_their_placeholders_do() -> None:
    task = TASKS["mmmu_val"]
    row = mmmu("Is <image 2> like <image 1>, and <image 2>?", ["yes", "<image 3>"], 3)
    tail = "\n\nAnswer with the option's letter from the given choices directly."
    assert task.images(row) == tuple(ImageBytes(bytes([number])) for number in (1, 2, 3))
    parts = ("Is ", 1, " like ", 0, ", and ", 1, "?\nA. yes\nB. ", 2, tail)
    assert task.parts(row) == parts
    # As lmms-eval has it: in the order of their numbers; the text between surplus ones is lost.
    parts = ("Is", 0, "like", 1, ", and", 2, tail.strip())
    assert task.parts(row, "lmms-eval") == parts
    with pytest.raises(SourceError, match="image_3 holds no bytes"):
        task.images(mmmu("<image 3>", [], 2))


def test_an_answer_to_mmmu_without_a_letter_is_wrong_and_counted() -> None:
    task, row = TASKS["mmmu_val"], mmmu("Which?", ["one", "two"], 0)
    assert task.score(row, "neither") == Scored(0.0, "Art_Theory", unread=True)
    assert task.score(row, "A") == Scored(1.0, "Art_Theory")
    assert task.parts(mmmu("Which?", [], 0), "lmms-eval") == (task.text(mmmu("Which?", [], 0)),)


@pytest.mark.parametrize(
    ("name", "column", "value", "match"),
    [
        ("chartqa", "answer", None, "column answer holds nothing instead of text"),
        ("ai2d", "answer", "7", "column answer is no number of one of 4 options"),
        ("ai2d", "options", [], "has 0 options"),
        ("docvqa_val", "answers", [1], "holds list instead of a list of texts"),
        ("mmmu_val", "options", "__import__('os')", "holds no list"),
        ("mmmu_val", "options", "[" * 100_000, "holds no list"),
    ],
)
def test_a_damaged_row_is_one_line(name: str, column: str, value: Any, match: str) -> None:
    task, row, _ = row_of(name, 0)
    row.extras[column] = value
    with pytest.raises(SourceError, match=match) as error:
        task.score(row, "A")
    assert f"{name}.parquet:0" in str(error.value) and "\n" not in str(error.value)


def test_names_of_tasks() -> None:
    assert [task.name for task in named(["all"])[0]] == list(WHOLE["headline_metric"])
    tasks, unknown = named(["ai2d", "mmlu", "ai2d", "mmlu"])
    assert [task.name for task in tasks] == ["ai2d"]
    assert len(unknown) == 1 and "--tasks mmlu: no such task; give all or some of" in unknown[0]
    assert [task.title for task in named(["all"])[0]][:2] == ["MMStar", "MMMU"]


def test_rows_tell_data_apart(tmp_path: Path) -> None:
    task = TASKS["chartqa"]
    (tmp_path / "chartqa.parquet").write_bytes((FIXTURES / "chartqa.parquet").read_bytes())
    here, there = find(task, FIXTURES), find(task, tmp_path)
    assert identity(task, here) == identity(task, there)
    (tmp_path / "chartqa.parquet").write_bytes((FIXTURES / "ai2d.parquet").read_bytes())
    assert identity(task, here) != identity(task, there)
