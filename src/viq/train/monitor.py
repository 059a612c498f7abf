"""What a run tells while it trains: its log, how codes are used, pictures, and a bar.

A stage's folder, which `viq report` reads:

    log.jsonl                    one line every few steps
    codes.jsonl                  how the codebook is used, every so often
    grids/step-000200.png        originals above what their codes give back
    skipped.jsonl                samples that could not be used, and why
    tensorboard/, trackers.json  of trackers, which have the numbers of log.jsonl and codes.jsonl
                                 again, if asked for
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from viq.core.files import write_atomically
from viq.core.notebook import NotebookBar, in_notebook
from viq.core.terminal import raw
from viq.core.untrusted import printable
from viq.metrics.codebook import collapse_warning, summarize_counts
from viq.metrics.run_log import CODES, GRIDS, LOG, SKIPPED, _parsed, clock, read_lines
from viq.models.tokenizer.fsq import FSQ
from viq.train.tracking import Trackers


def print_line(line: str) -> None:
    """One line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)


# Codes


def count_codes(ids: Tensor, fsq: FSQ) -> Tensor:
    """How often each code occurs in ids of any shape: int64 (codebook size), on their device.

    Counts of batches and of processes add up to the counts of all.
    """
    # Unlike bincount, which asks a GPU for the largest id, this waits for nothing.
    flat = ids.flatten()
    counts = torch.zeros(fsq.codebook_size, dtype=torch.int64, device=ids.device)
    return counts.scatter_add_(0, flat, torch.ones_like(flat))


def code_use(counts: Tensor, fsq: FSQ) -> dict[str, Any]:
    """What `count_codes` counted, as `viq.metrics.codebook.summarize_counts` words it.

    Raises:
        ViqError: counts of another codebook, or no codes at all.
    """
    return summarize_counts(counts.cpu().numpy(), fsq.levels)


# Pictures


# The log


class Journal:
    """The files of lines in one stage's folder, and trackers beside them.

    Args:
        report_to: names of trackers that get the numbers, too (`train/tracking.py`).
        warn: called with a line that the user should see.
    """

    def __init__(
        self,
        folder: Path,
        *,
        report_to: Sequence[str] = (),
        warn: Callable[[str], None] = print_line,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._warn, self._from_step = folder, warn, 0
        self._report_to = report_to
        self._trackers: Trackers | None = None
        self._skipped = {record.get("key") for record in read_lines(folder / SKIPPED)}

    def cut(self, step: int) -> None:
        """Before going on from `step`: drop lines of later steps, which will be done again.

        Call it at every start, with 0 if there is no checkpoint: then each step stands once in
        the files, and no torn line is in the way of the next one.
        """
        for name in (LOG, CODES, SKIPPED):
            path = self.folder / name
            if path.exists():
                kept = (line for line, record in _parsed(path) if record.get("step", 0) <= step)
                write_atomically(path, b"".join(kept))
        self.close()
        self._from_step = step

    def log(self, record: Mapping[str, Any]) -> None:
        """Numbers of the steps since the last line."""
        self._append(LOG, record)
        self._scalars(record, "")

    def codes(self, step: int, record: Mapping[str, Any]) -> None:
        """A `code_use` record; warns if codes collapse."""
        self._append(CODES, {"step": step, **record})
        self._scalars({"step": step, **record}, "codes/")
        if warning := collapse_warning(record):
            self._warn(f"step {step:,}: {warning}")

    def skip(self, key: str, reason: str) -> None:
        """A sample that cannot be used; each key is written once."""
        if key not in self._skipped:
            self._skipped.add(key)
            self._append(SKIPPED, {"key": key, "reason": reason})

    def grid_path(self, step: int) -> Path:
        """Where the picture grid of a step belongs."""
        return self.folder / GRIDS / f"step-{step:06d}.png"

    def close(self) -> None:
        if self._trackers:
            self._trackers.close()
            self._trackers = None

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _scalars(self, record: Mapping[str, Any], prefix: str) -> None:
        if self._report_to and self._trackers is None:
            self._trackers = Trackers(self._report_to, self.folder, self._from_step)
        if self._trackers:
            self._trackers.log(record, prefix)


# The bar


class Bar:
    """Progress of one stage on stderr: a bar on a terminal or in a notebook, else a line every
    `log_every` steps.

        with Bar("fsq", steps=2400, start=200) as bar:
            bar.update(201)
            bar.update(210, {"loss": 0.14, "tokens_per_second": 1800.0})

    Args:
        start: steps that were done before; they do not count for the time that is left.
        hidden: show nothing, as in all processes but the first.
    """

    def __init__(
        self,
        stage: str,
        steps: int,
        *,
        start: int = 0,
        log_every: int = 10,
        hidden: bool = False,
        stream: IO[str] | None = None,
    ) -> None:
        self.stage, self.steps, self.start, self.log_every = stage, steps, start, log_every
        self.stream = stream or sys.stderr
        terminal = self.stream.isatty()
        self._in_notebook = not hidden and not terminal and stream is None and in_notebook()
        self._lines = not (hidden or terminal or self._in_notebook)
        self._progress = _progress(self.stream) if terminal and not hidden else None
        self._below_cell: NotebookBar | None = None
        self._record: dict[str, Any] = {}
        self._begun, self._task = time.perf_counter(), None

    def __enter__(self) -> Bar:
        self._begun = time.perf_counter()
        if self._progress:
            self._progress.start()
            self._task = self._progress.add_task(
                self.stage, total=self.steps, completed=self.start, numbers=""
            )
        if self._in_notebook:
            self._below_cell = NotebookBar(self.stage, self.steps, self.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()
        if self._below_cell:
            self._below_cell.close()

    def update(self, step: int, record: Mapping[str, Any] | None = None) -> None:
        """Steps done so far, and the newest numbers, which stay until there are newer ones."""
        self._record |= record or {}
        if self._progress:
            self._progress.update(self._task, completed=step, numbers=_numbers(self._record))
        elif self._below_cell:
            self._below_cell.to(step, self.steps, _numbers(self._record))
        elif self._lines and (step % self.log_every == 0 or step == self.steps):
            head = f"{self.stage} {step:,}/{self.steps:,}"
            left = (time.perf_counter() - self._begun) / max(1, step - self.start)
            left *= self.steps - step
            self.print_line(
                "  ".join(filter(None, [head, _numbers(self._record), f"{clock(left)} left"]))
            )

    def print_line(self, line: str) -> None:
        """A line above the bar, or among the lines."""
        line = printable(line)
        if self._progress:
            self._progress.console.print(line, markup=False, highlight=False)
        elif self._below_cell:
            self._below_cell.print_line(line)
        else:
            print(line, file=self.stream, flush=True)


def _progress(stream: IO[str]) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
        console=Console(file=raw(stream)),
        refresh_per_second=2,  # the processor is for training
    )


def _numbers(record: Mapping[str, Any]) -> str:
    words = []
    if "loss" in record:
        words.append(f"loss {record['loss']:.4f}")
    if "psnr" in record:
        words.append(f"PSNR {record['psnr']:.2f} dB")
    for what in ("tokens", "patches"):
        if f"{what}_per_second" in record:
            words.append(f"{record[f'{what}_per_second']:,.0f} {what}/s")
            break
    return "  ".join(words)
