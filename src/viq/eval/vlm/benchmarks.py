"""The nine benchmarks of the paper: asked of a model, or of its ready answers, and scored.

What cannot be done, an unknown task, a missing column, a picture that cannot be read, is a line of
`Outcome.failed`; the rest is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viq.core.types import ViqError
from viq.core.untrusted import printable
from viq.eval.vlm.ready_answers import read_ready, require_fits
from viq.eval.vlm.rows import find, identity, open_rows
from viq.eval.vlm.run_folder import RunFolder
from viq.eval.vlm.scoring import Result, average, notes, score
from viq.eval.vlm.tasks import ALL, TASKS, Like, Task, named

if TYPE_CHECKING:
    from viq.eval.vlm.models import Model, Report

_PERCENT, _POINTS = 100, 1000
# What says how large the pictures were to a model, and its heading.
_SIZES = {"codes_per_picture": ["codes a picture"], "tokens_per_prompt": ["tokens a prompt"]}


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        results: of the tasks that could be scored.
        answers: by task and number of the row.
        failed: a line for all that could not be done.
        notes: what a reader of the scores has to know.
    """

    results: list[Result] = field(default_factory=list)
    answers: dict[str, Mapping[int, str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """What `viq eval vlm --json` prints: score, metric, rows and interval of each task."""
        tasks = {result.task.name: result.headline() for result in self.results}
        return {"tasks": tasks, "average": average(self.results)}

    def as_dict(self) -> dict[str, Any]:
        """All there is to know, as `scores.json` has it."""
        tasks = {result.task.name: result.as_dict() for result in self.results}
        return {
            "tasks": tasks,
            "average": average(self.results),
            "notes": self.notes,
            "failed": self.failed,
        }

    def save(self, run: RunFolder) -> None:
        """Write it into the folder of its run."""
        run.save(self.as_dict(), iter(self.results), self.answers)


def evaluate(
    model: Model,
    run: RunFolder,
    tasks: Sequence[str] = (ALL,),
    data: Path | None = None,
    *,
    like: Like = "viq",
    limit: int | None = None,
    batch: int = 8,
    report: Report,
) -> Outcome:
    """Ask a model, and score its answers.

    Args:
        run: keeps answers as they come; what it has is not asked again.
        tasks: names of lmms-eval, or "all".
        data: folder of the data; None for the hub.
        like: how pictures of MMMU are placed.
        limit: rows of each task at most, the first.
        batch: questions at a time.

    Raises:
        ViqError: none of the tasks can be done.
    """
    from viq.eval.vlm.asking import ask  # transformers takes seconds; ready answers need none

    require_positive(limit=limit, batch=batch)

    def answers_of(task: Task, outcome: Outcome) -> tuple[Mapping[int, str], dict[str, Any]]:
        place = find(task, data)
        source = open_rows(task, place)
        told = identity(task, place)
        file, rows = run.begin(task.name, told), min(len(source), limit or len(source))
        model.prepare(task, told, source, rows, report)
        asked = ask(task, source, model, file, rows, like=like, batch=batch, report=report)
        outcome.failed += asked.failed
        speed = round(asked.fresh / asked.seconds, 2) if asked.fresh else None
        facts = {"pictures": model.pictures, **model.facts(), "examples_per_second": speed}
        return asked.answers, facts

    return _scored(tasks, data, answers_of, like, asked=True)


def score_ready(
    file: Path,
    tasks: Sequence[str] = (),
    data: Path | None = None,
    *,
    limit: int | None = None,
) -> Outcome:
    """Score the answers in a file; see `viq.eval.vlm.ready_answers` for its form.

    Args:
        tasks: by default those of the file.

    Raises:
        ViqError: it holds no answers, or none of the tasks can be done.
    """
    require_positive(limit=limit)
    ready = read_ready(file)

    def answers_of(task: Task, outcome: Outcome) -> tuple[Mapping[int, str], dict[str, Any]]:
        answers = ready.tasks.get(task.name)
        if answers is None:
            raise ViqError(f"{file}: has no answers to {task.name}; leave it out of --tasks")
        rows = len(open_rows(task, find(task, data), pictures=False))
        require_fits(file, task.name, list(answers), rows)
        wanted = range(min(rows, limit or rows))
        found = {number: answers[number] for number in wanted if number in answers}
        if len(found) < len(wanted):
            outcome.failed.append(
                f"{file}: has answers to {len(found)} of {len(wanted)} rows of {task.name}; the "
                "others are left out"
            )
        return found, {}

    wanted = tasks or [name for name in TASKS if name in ready.tasks]
    outcome = _scored(wanted, data, answers_of, "viq", asked=False)
    outcome.failed = [*ready.failed, *outcome.failed]
    return outcome


def lines(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table: scores in percent, of OCRBench in points."""
    size = next((n for r in outcome.results for n in _SIZES if n in r.facts), "")
    rows = [_cells(result, size) for result in outcome.results]
    mean = average(outcome.results)
    rows.append(["average", "", "-" if mean is None else f"{mean:.1f}"])
    headings = ["task", "metric", "score", "95%", "rows", "examples/s", *_SIZES.get(size, ())]
    return headings, [[*cells, *[""] * (len(headings) - len(cells))] for cells in rows]


def require_positive(**numbers: int | None) -> None:
    """Refuse options below 1. Raises `ViqError`."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ViqError(f"--{name} {number}: give at least 1")


def _cells(result: Result, size: str) -> list[str]:
    factor = _POINTS if result.task.name == "ocrbench" else _PERCENT
    low, high = (factor * end for end in result.interval)
    speed, pictures = result.facts.get("examples_per_second"), result.facts.get(size)
    return [
        result.task.name,
        result.task.metric,
        f"{factor * result.score:.1f}",
        f"{low:.1f} to {high:.1f}",
        f"{len(result.scored):,}",
        "-" if speed is None else f"{speed:.2f}",
        *(["-" if pictures is None else f"{pictures:,.0f}"] if size else []),
    ]


def _scored(
    names: Sequence[str],
    data: Path | None,
    answers_of: Callable[[Task, Outcome], tuple[Mapping[int, str], dict[str, Any]]],
    like: Like,
    *,
    asked: bool,
) -> Outcome:
    """Every task, one after another; `answers_of` gives answers, and facts beside the score."""
    tasks, unknown = named(names)
    outcome = Outcome(failed=unknown)
    for task in tasks:
        try:
            answers, facts = answers_of(task, outcome)
            source = open_rows(task, find(task, data), pictures=False)
            result = score(task, source, answers)
        except ViqError as error:
            outcome.failed.append(_told(task, str(error)))
            continue
        result.facts = facts
        outcome.failed += result.failed
        outcome.results.append(result)
        outcome.answers[task.name] = answers
    if not outcome.results:
        raise ViqError(outcome.failed[0] if outcome.failed else "--tasks: names no task")
    outcome.notes = notes(outcome.results, like, len(TASKS), asked=asked)
    return outcome


def _told(task: Task, reason: str) -> str:
    return printable(reason if task.name in reason else f"{task.name}: {reason}")
