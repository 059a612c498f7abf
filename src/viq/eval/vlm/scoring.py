"""Answers to scores: of each task, and the average over tasks as the paper has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.eval.vlm.tasks.base import MOST_TOKENS, Like, Scored, Task

_PERCENT = 100


@dataclass(kw_only=True)
class Result:
    """What a task comes to.

    Attributes:
        totals: figures by name, that of the task's metric first.
        interval: 95%, of the first.
        scored: by the number of the row.
        rows: that the task has.
        facts: of how it was asked.
        failed: a line for each row that has an answer and could not be scored.
    """

    task: Task
    totals: dict[str, float]
    interval: tuple[float, float]
    scored: dict[int, Scored]
    rows: int
    facts: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        return self.totals[self.task.metric]

    @property
    def unread(self) -> int:
        return sum(one.unread for one in self.scored.values())

    def headline(self) -> dict[str, Any]:
        """As `viq eval vlm --json` prints it."""
        return {
            "score": self.score,
            "metric": self.task.metric,
            "n": len(self.scored),
            "ci": list(self.interval),
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with all there is to know."""
        return {
            **self.headline(),
            "rows": self.rows,
            "unread": self.unread,
            "totals": self.totals,
            **self.facts,
        }


def score(task: Task, source: Source, answers: Mapping[int, str]) -> Result:
    """Score answers by the number of their row.

    Raises:
        ViqError: none of them can be scored.
    """
    scored: dict[int, Scored] = {}
    failed: list[str] = []
    for number in sorted(answers):
        try:
            scored[number] = task.score(source[number], answers[number])
        except ViqError as error:
            failed.append(str(error))
    if not scored:
        reason = failed[0] if failed else "there are no answers"
        raise ViqError(f"{task.name}: no row could be scored ({reason})")
    values = list(scored.values())
    return Result(
        task=task,
        totals=task.totals(values),
        interval=task.interval(values),
        scored=scored,
        rows=len(source),
        failed=failed,
    )


def average(results: Sequence[Result]) -> float | None:
    """The mean of the scores in percent, OCRBench as points / 10; None without tasks."""
    return _PERCENT * sum(r.score for r in results) / len(results) if results else None


def notes(results: Sequence[Result], like: Like, most: int, *, asked: bool) -> list[str]:
    """What a reader of the scores has to know.

    Args:
        most: tasks there are.
        asked: whether a model of this run gave the answers.
    """
    found = [note for result in results if (note := result.task.note)]
    for result in results:
        if result.task.name == "mmmu_val":
            found += _of_mmmu(result, like, asked)
        if result.task.name == "ocrbench" and len(result.scored) != 1000:
            points = result.totals["points"]
            found.append(f"ocrbench: {points:g} points of {len(result.scored)} rows; its score is "
                         "points / 1000 whatever the number of rows")  # fmt: skip
    free = [r.task.name for r in results if r.task.most_tokens is None]
    if free and asked:
        found.append(f"{', '.join(free)}: answers of at most {MOST_TOKENS} tokens, where lmms-eval "
                     "leaves it to the model")  # fmt: skip
    partly = [r.task.name for r in results if len(r.scored) < r.rows]
    if partly:
        which = "all tasks" if len(partly) == len(results) else ", ".join(partly)
        found.append(f"{which}: not of all rows, so no score to publish")
    if 0 < len(results) < most:
        found.append(f"the average is of {len(results)} of {most} tasks")
    return found


def _of_mmmu(result: Result, like: Like, asked: bool) -> list[str]:
    found = []
    if asked:
        way = "in the order of their numbers, as lmms-eval puts them" if like == "lmms-eval" else (
            "where their placeholders stand; --like lmms-eval puts them as it does"
        )  # fmt: skip
        found.append(f"mmmu_val: pictures {way}")
    if result.unread:
        found.append(
            f"mmmu_val: {result.unread} answers name no option and are wrong here, where lmms-eval "
            "draws a letter"
        )
    return found
