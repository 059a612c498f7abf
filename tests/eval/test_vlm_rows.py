"""Where the rows of a benchmark are found, and answers that come in a file."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from viq.core.types import ViqError
from viq.eval.vlm.benchmarks import score_ready
from viq.eval.vlm.ready_answers import read_ready
from viq.eval.vlm.rows import find, identity, open_rows
from viq.eval.vlm.tasks import TASKS

FIXTURES = Path(__file__).parent.parent / "golden" / "benchmarks" / "fixtures"
PREDICTIONS = json.loads((FIXTURES / "predictions.json").read_text())


def put(task: str, path: Path, rows: slice = slice(None)) -> Path:
    table = pq.read_table(FIXTURES / f"{task}.parquet")
    start, stop, _ = rows.indices(table.num_rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.slice(start, stop - start), path)
    return path


def answers(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "answers.json"
    path.write_text(text)
    return path


# Folders as the hub has them


def test_official_folders(tmp_path: Path) -> None:
    put("chartqa", tmp_path / "ChartQA/data/test-00000-of-00002.parquet", slice(0, 3))
    put("chartqa", tmp_path / "ChartQA/data/test-00001-of-00002.parquet", slice(3, 5))
    put("ai2d", tmp_path / "ChartQA/data/train-00000-of-00001.parquet")
    put("infovqa_val", tmp_path / "DocVQA/InfographicVQA/validation-00000-of-00001.parquet")
    put("docvqa_val", tmp_path / "DocVQA/DocVQA/validation-00000-of-00001.parquet")
    put("docvqa_val", tmp_path / "DocVQA/DocVQA/test-00000-of-00001.parquet")
    put("mmstar", tmp_path / "Lin-Chen/MMStar/mmstar.parquet")
    for name in ("chartqa", "infovqa_val", "docvqa_val", "mmstar"):
        task = TASKS[name]
        rows = open_rows(task, find(task, tmp_path))
        wanted = open_rows(task, find(task, FIXTURES))
        assert [task.text(row) for row in rows] == [task.text(row) for row in wanted]
    alone = TASKS["chartqa"]
    assert len(open_rows(alone, find(alone, tmp_path / "ChartQA"))) == 5


def test_saved_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset(pq.read_table(FIXTURES / "simplevqa.parquet"))
    data.save_to_disk(tmp_path / "alone" / "simplevqa")
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "split" / "SimpleVQA")
    task = TASKS["simplevqa"]
    for folder in ("alone", "split"):
        place = find(task, tmp_path / folder)
        row = open_rows(task, place)[1]
        assert task.text(row).startswith("What year is written?\n")
        assert row.open().size == (320, 160)
        assert len(identity(task, place)) == 16


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ViqError, match="has neither chartqa.parquet nor .* fetch lmms-lab-enc"):
        find(TASKS["chartqa"], tmp_path)
    with pytest.raises(ViqError, match="is no folder"):
        find(TASKS["chartqa"], tmp_path / "none")
    assert find(TASKS["infovqa_val"], None).spec == "hf:lmms-lab-encoder/DocVQA:InfographicVQA"


def test_a_missing_column_is_one_line_and_the_rest_is_done(tmp_path: Path) -> None:
    table = pq.read_table(FIXTURES / "ai2d.parquet")
    pq.write_table(table.drop_columns(["options"]), tmp_path / "ai2d.parquet")
    put("chartqa", tmp_path / "chartqa.parquet")
    found = score_ready(FIXTURES / "predictions.json", ["ai2d", "chartqa", "mmlu"], tmp_path)
    assert [result.task.name for result in found.results] == ["chartqa"]
    unknown, missing = found.failed
    assert "mmlu: no such task" in unknown and "ai2d.parquet: has no column options" in missing
    assert "the average is of 1 of 9 tasks" in found.notes


# Answers in a file


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"ai2d": ["B", "C"], "chartqa": ["1"]}),
        json.dumps({"ai2d": ["B", "C"], "chartqa": ["1"]}, indent=1),
        lines({"ai2d": ["B", "C"]}, {"chartqa": ["1"]}),
        lines({"task": "ai2d", "answer": "B"}, {"task": "chartqa", "answer": "1"},
              {"task": "ai2d", "answer": "C"}),
        lines({"task": "ai2d", "doc_id": 1, "answer": "C"}, {"task": "chartqa", "answer": "1"},
              {"task": "ai2d", "doc_id": 0, "answer": "B"}),
        lines({"key": "ai2d/1", "answer": "C"}, {"key": "ai2d/0", "answer": "B"},
              {"key": "chartqa/0", "answer": "1"}),
    ],
)  # fmt: skip
def test_forms_of_answers(text: str, tmp_path: Path) -> None:
    found = read_ready(answers(tmp_path, text))
    assert found.tasks == {"ai2d": {0: "B", 1: "C"}, "chartqa": {0: "1"}}
    assert found.failed == []


def test_a_row_without_an_answer_moves_no_other(tmp_path: Path) -> None:
    for text in (
        json.dumps({"ai2d": ["B", None, "C"]}),
        lines(*({"task": "ai2d", "answer": answer} for answer in ("B", None, "C"))),
    ):
        assert read_ready(answers(tmp_path, text)).tasks == {"ai2d": {0: "B", 2: "C"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no answers"),
        ("no JSON", "is not JSON from character 0 on"),
        ("[1]", "is not JSON from character 0 on"),
        ("{}", "holds no answers"),
        ('{"mmlu": ["A"]}', "mmlu is no task"),
        ('{"mmlu": "A"}', "is not JSON from character 9 on"),
        (lines({"answer": 1}), "answers.json:1: has no task and answer"),
        (lines({"key": "ai2d", "answer": "B"}), "answers.json:1: has no task and answer"),
    ],
)
def test_files_without_answers(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ViqError, match=said) as error:
        read_ready(answers(tmp_path, text))
    assert "\n" not in str(error.value)


def test_of_a_file_that_is_cut_off_what_is_whole_counts(tmp_path: Path) -> None:
    whole = json.dumps({"ai2d": PREDICTIONS["ai2d"], "chartqa": PREDICTIONS["chartqa"]}, indent=1)
    cut = whole[: whole.index("2,040") + 2]
    found = score_ready(answers(tmp_path, cut), data=FIXTURES)
    assert {r.task.name: len(r.scored) for r in found.results} == {"ai2d": 5, "chartqa": 3}
    torn, missing = found.failed
    assert "in chartqa: it may be cut off" in torn
    assert "has answers to 3 of 5 rows of chartqa" in missing
    every = lines(*({"task": "ai2d", "answer": answer} for answer in PREDICTIONS["ai2d"]))
    found = score_ready(answers(tmp_path, every[:-10]), data=FIXTURES)
    assert len(found.results[0].scored) == 4 and len(found.failed) == 2
    assert "answers.json:5: is not JSON" in found.failed[0]


def test_answers_to_other_data_are_refused(tmp_path: Path) -> None:
    file = answers(tmp_path, json.dumps({"ai2d": ["A"] * 6, "chartqa": ["1", 2, "3"]}))
    found = score_ready(file, ["ai2d", "chartqa", "mmstar"], FIXTURES)
    (chart,) = found.results
    assert sorted(chart.scored) == [0, 2]
    kinds = ("an answer is int", "row 5 of ai2d, but its data have 5", "2 of 5 rows", "to mmstar")
    assert len(found.failed) == 4
    assert all(any(kind in said for said in found.failed) for kind in kinds)
    with pytest.raises(ViqError, match="row 5 of ai2d"):
        score_ready(file, ["ai2d"], FIXTURES)


def test_a_limit_takes_the_first_rows() -> None:
    found = score_ready(FIXTURES / "predictions.json", ["ocrbench"], FIXTURES, limit=2)
    assert found.failed == []
    assert found.as_json()["tasks"]["ocrbench"]["n"] == 2
    assert found.results[0].score == 0.001
    assert any("1 points of 2 rows" in note for note in found.notes)
    with pytest.raises(ViqError, match="--limit 0: give at least 1"):
        score_ready(FIXTURES / "predictions.json", ["ocrbench"], FIXTURES, limit=0)
