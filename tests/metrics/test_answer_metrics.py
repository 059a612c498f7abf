"""Answers counted as lmms-eval counts them: every case of its own functions, and intervals."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq.metrics import normal_form as normal
from viq.metrics.answers import (
    anls,
    normal_match,
    ocr_hit,
    option_match,
    relaxed_match,
    vqa_accuracy,
)
from viq.metrics.choices import (
    _PHRASES,
    chosen_letter,
    numbers_in,
    open_candidates,
    open_match,
    stated_letter,
)
from viq.metrics.intervals import bootstrap, wilson
from viq.metrics.text import edit_distance

GOLDEN = Path(__file__).parent.parent / "golden" / "benchmarks"
METRICS = json.loads((GOLDEN / "metrics.json").read_text())["metrics"]
TABLES = json.loads((GOLDEN / "tables.json").read_text())
SCORES = {
    "anls": lambda case: anls(case["prediction"], case["references"]),
    "textvqa_accuracy": lambda case: vqa_accuracy(case["prediction"], case["references"]),
    "simplevqa_exact_match": lambda case: normal_match(case["prediction"], case["reference"]),
    "ocrbench": lambda case: ocr_hit(
        case["prediction"], case["references"], formula=case["dataset"] == "HME100k"
    ),
    "ai2d": lambda case: option_match(case["prediction"], case["reference"]),
    "chartqa_relaxed": lambda case: relaxed_match(case["prediction"], case["reference"]),
}


def cases(*metrics: str) -> list[Any]:
    return [
        pytest.param(metric, case, id=f"{metric}-{number}")
        for metric in metrics
        for number, case in enumerate(METRICS[metric]["cases"])
    ]


@pytest.mark.parametrize(("metric", "case"), cases(*SCORES))
def test_scores(metric: str, case: dict[str, Any]) -> None:
    assert SCORES[metric](case) == pytest.approx(case["score"], abs=1e-12)


@pytest.mark.parametrize(("metric", "case"), cases("evalai_normalize"))
def test_normal_form(metric: str, case: dict[str, Any]) -> None:
    assert normal.normal_form(case["text"]) == case["normalized"]


@pytest.mark.parametrize(("metric", "case"), cases("mcq_letter"))
def test_stated_letter(metric: str, case: dict[str, Any]) -> None:
    assert stated_letter(case["prediction"]) == case["letter"]


@pytest.mark.parametrize(("metric", "case"), cases("mmmu_choice"))
def test_chosen_letter(metric: str, case: dict[str, Any]) -> None:
    options = METRICS["mmmu_choice"]["options"]
    if isinstance(options, list):
        options = dict(zip("ABCDEFGH", options, strict=False))
    assert chosen_letter(case["prediction"], options) == case["letter"]


@pytest.mark.parametrize(("metric", "case"), cases("mmmu_open"))
def test_open_answers(metric: str, case: dict[str, Any]) -> None:
    found = open_candidates(case["prediction"])
    named = sorted("NaN" if value != value else str(value) for value in found)
    assert named == sorted(map(str, case["candidates"]))
    assert open_match(case["reference"], found) is case["correct"]


@pytest.mark.parametrize(("metric", "case"), cases("mmmu_extract_numbers"))
def test_numbers(metric: str, case: dict[str, Any]) -> None:
    assert numbers_in(case["text"]) == case["numbers"]


def test_tables_are_those_of_the_tool() -> None:
    assert normal._CONTRACTIONS == TABLES["contractions"]
    assert normal._NUMBERS == TABLES["numbers"]
    assert sorted(normal._ARTICLES) == TABLES["articles"]
    assert list(normal._PUNCTUATION) == TABLES["punctuation"]
    assert list(_PHRASES) == TABLES["mcq_phrases"]


@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_levenshtein_is_a_distance(first: str, second: str) -> None:
    found = edit_distance(first, second)
    assert found == edit_distance(second, first)
    assert abs(len(first) - len(second)) <= found <= max(len(first), len(second))
    assert (found == 0) == (first == second)
    assert edit_distance(first + "c", second) <= found + 1


def test_no_references_are_wrong() -> None:
    assert anls("x", []) == vqa_accuracy("x", []) == ocr_hit("x", []) == 0


def test_intervals() -> None:
    low, high = wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1, 5)[1] == 1 and 0.5 < wilson(1, 5)[0] < 0.6
    assert wilson(0, 0) == (0, 1)
    values = [0.0, 1.0] * 50
    low, high = bootstrap(lambda rows: sum(values[i] for i in rows) / len(rows), len(values))
    assert 0.38 < low < 0.42 and 0.58 < high < 0.62
