"""A task asked of a model: questions in batches of like lengths, answers on disk as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from viq.core.types import ViqError
from viq.data.sources.base import Source
from viq.eval.vlm.models import Loaded, Model, Question, Report
from viq.eval.vlm.tasks.base import MOST_TOKENS, Like, Task
from viq.mllm.answer_lines import added_to, answer_line, read_answers


@dataclass
class Asked:
    """Answers of a task.

    Attributes:
        answers: by the number of the row.
        failed: a line for each row that could not be asked.
        fresh: answers of this run; `seconds` is what they took.
    """

    answers: dict[int, str]
    failed: list[str] = field(default_factory=list)
    fresh: int = 0
    seconds: float = 0.0


def ask(
    task: Task,
    source: Source,
    model: Model,
    file: Path,
    rows: int,
    *,
    like: Like,
    batch: int,
    report: Report,
) -> Asked:
    """Ask the first `rows` rows, but those that `file` has answers to; add theirs to it.

    Args:
        batch: questions at a time; where memory does not suffice, fewer.

    Raises:
        ViqError: `file` is no file of answers.
    """
    known, whole_bytes = read_answers(file)
    asked = Asked({n: known[key] for n in range(rows) if (key := f"{task.name}/{n}") in known})
    todo = [number for number in range(rows) if number not in asked.answers]
    if not todo:
        return asked
    most = task.most_tokens or MOST_TOKENS
    begun = time.perf_counter()
    with added_to(file, whole_bytes) as out, report(f"answering {task.name}", len(todo)) as advance:
        for window in _groups(todo, batch * model.window):
            loaded = _loaded(task, source, model, window, like, asked)
            for _ in range(len(window) - len(loaded)):
                advance()
            # Like with like, so that little of a batch is padding; the longest first, so that
            # memory runs out at once or never.
            loaded.sort(key=lambda one: one.size, reverse=True)
            for group in _groups(loaded, batch):
                for one, answer in _answered(model, group, most, task.stop):
                    if isinstance(answer, ViqError):
                        asked.failed.append(str(answer))
                    else:
                        out.write(answer_line(f"{task.name}/{one.number}", answer))
                        asked.answers[one.number] = answer
                        asked.fresh += 1
                    advance()
                out.flush()
    asked.seconds = time.perf_counter() - begun
    return asked


def question(task: Task, source: Source, number: int, like: Like) -> Question:
    """A row as it is asked. Raises `ViqError` if it is damaged or lacks a picture."""
    row = source[number]
    return Question(
        number=number, parts=task.parts(row, like), images=task.images(row), where=row.where
    )


def _loaded(
    task: Task, source: Source, model: Model, numbers: Sequence[int], like: Like, asked: Asked
) -> list[Loaded]:
    """Questions with their pictures; a line in `asked.failed` for each that has none."""
    found = []
    for number in numbers:
        try:
            found.append(model.load(question(task, source, number, like)))
        except ViqError as error:
            asked.failed.append(str(error))
    return found


def _answered(
    model: Model, group: Sequence[Loaded], most: int, stop: Sequence[str]
) -> Iterator[tuple[Loaded, str | ViqError]]:
    """Each question with its answer, or why it has none: a batch that fails is halved."""
    failure: ViqError | None = None
    answers: list[str] = []
    try:
        answers = model.answers(group, most, stop)
    except ViqError as error:
        failure = error
    except torch.OutOfMemoryError:
        failure = ViqError(f"{group[0].question.where}: does not fit into the device's memory")
    if failure is None:
        yield from zip(group, answers, strict=True)
    elif len(group) == 1:
        yield group[0], failure
    else:
        half = len(group) // 2
        yield from _answered(model, group[:half], most, stop)
        yield from _answered(model, group[half:], most, stop)


def _groups(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))
