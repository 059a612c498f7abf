"""The folder of a run of benchmarks: what was asked of which model, its answers, their scores.

run.json            the model, and of each task which data
answers/TASK.jsonl  an answer a line, as they came
scored/TASK.jsonl   each row with its answer and score
scores.json         all totals
codes/              stores of codes of the pictures, unless they are elsewhere
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from viq.core.files import is_plain, read_bytes, write_atomically
from viq.core.locks import locked
from viq.core.outputs import require_folder
from viq.core.types import ViqError
from viq.core.untrusted import CONFIG_BYTES, parse_json
from viq.eval.vlm.rows import told_from_others
from viq.eval.vlm.scoring import Result
from viq.eval.vlm.tasks import TASKS

RUN, ANSWERS, SCORED, SCORES, CODES = "run.json", "answers", "scored", "scores.json", "codes"


class RunFolder:
    """A run that is gone on with, or begun; see `opened`."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], data: dict[str, str]) -> None:
        self._folder, self._facts, self._data = folder, dict(facts), data

    def begin(self, task: str, identity: str) -> Path:
        """The file of answers to a task.

        Raises:
            ViqError: it holds answers to other data of that name.
        """
        if self._data.get(task, identity) != identity:
            raise ViqError(
                f"{self._folder}: holds answers to other data of {task}; give another -o, or "
                "--overwrite"
            )
        if task not in self._data:
            self._data[task] = identity
            self._write(RUN, {**self._facts, "data": self._data})
        return self._folder / ANSWERS / f"{task}.jsonl"

    def save(self, results: Mapping[str, Any], each: Iterator[Result], answers: Any) -> None:
        """Write all scores, and those of each row."""
        for result in each:
            said = answers[result.task.name]
            rows = (
                {"doc_id": n, "answer": said[n], "score": one.value, "group": one.group}
                for n, one in result.scored.items()
            )
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(self._folder / SCORED / f"{result.task.name}.jsonl", lines.encode())
        self._write(SCORES, {**self._facts, **results})

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        write_atomically(self._folder / name, (json.dumps(values, indent=1) + "\n").encode())


@contextmanager
def opened(folder: Path, facts: Mapping[str, Any], *, overwrite: bool) -> Iterator[RunFolder]:
    """Begin a run, or go on with one; nobody else writes it while the block runs.

    Args:
        facts: that decide the answers; those of a run that is gone on with have to be the same.
        overwrite: begin afresh where a run is; its codes stay.

    Raises:
        ViqError: the folder holds other things, or a run of another model.
    """
    require_folder(folder)
    if folder.is_dir() and not (folder / RUN).is_file():
        for path in folder.iterdir():
            if path.name != CODES and not path.name.startswith("."):
                raise ViqError(
                    f"-o {folder}: holds {path.name} and no run of benchmarks; give another folder"
                )
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if overwrite:
            _clear(folder)
        before = _read(folder)
        data = before.pop("data", {})
        if before and before != dict(facts):
            name = next(name for name in [*facts, *before] if before.get(name) != facts.get(name))
            raise ViqError(
                f"-o {folder}: holds answers with another {name} ({before.get(name)}, now "
                f"{facts.get(name)}); give another folder, or --overwrite"
            )
        yield RunFolder(folder, facts, data if isinstance(data, dict) else {})


def weights_identity(folder: Path) -> str:
    """16 hex digits that tell a folder's model from others; "" for what is no folder."""
    if not folder.is_dir():
        return ""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    state = hashlib.sha256()
    for text in told_from_others(files):
        state.update(text)
    return state.hexdigest()[:16]


def _read(folder: Path) -> dict[str, Any]:
    if not (folder / RUN).is_file():
        return {}
    found = parse_json(read_bytes(folder / RUN, CONFIG_BYTES), str(folder / RUN))
    if not isinstance(found, dict):
        raise ViqError(f"{folder / RUN}: is none of viq eval vlm; give another -o")
    return found


def _clear(folder: Path) -> None:
    """Remove what a run has written, by its names; no more."""
    for task in TASKS:
        for place in (ANSWERS, SCORED):
            _remove(folder / place / f"{task}.jsonl")
    _remove(folder / SCORES)
    _remove(folder / RUN)


def _remove(path: Path) -> None:
    if is_plain(path):
        path.unlink()  # of a run of ours, by a name that only this module writes
