"""How far a job is, on stderr: a bar on a terminal or in a notebook, else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from viq.core.notebook import NotebookBar, in_notebook
from viq.core.terminal import raw

LINE_EVERY = 30.0  # seconds, where there is no terminal to draw a bar on


class Advance:
    """How far a job is; called once for each input that is done.

    Jobs that know it also tell of pixels (`viq.jobs.pipeline.Watch`), from any thread. How many
    there will be is not known until all inputs were opened, so it is guessed from those that were.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.megapixels = 0.0
        self._opened, self._passed_over, self._in_opened = 0, 0, 0.0
        self._guard = threading.Lock()

    def __call__(self, count: int = 1) -> None:
        with self._guard:
            self.done += count
            self._passed_over = max(self._passed_over, self.done - self._opened)
        self.changed()

    def expect(self, total: int) -> None:
        """There are so many inputs: for jobs that know it only when they have begun."""
        self.total = total

    def opened(self, pixels: int, inputs: int = 1) -> None:
        with self._guard:
            self._opened += inputs
            self._in_opened += pixels / 1e6

    def encoded(self, pixels: int) -> None:
        with self._guard:
            self.megapixels += pixels / 1e6
        self.changed()

    def changed(self) -> None:
        """Show it."""

    @property
    def expected(self) -> float:
        """Megapixels in all, if the inputs to come are like those that were opened; or 0."""
        left = self.total - self._passed_over  # by an earlier run, or not to be read
        return self._in_opened * max(1.0, left / self._opened) if self._opened else 0.0

    def place(self) -> tuple[float, float]:
        """Where a bar stands, and its length, 0 if unknown: a picture of many tiles moves it with
        each of them."""
        seen, whole = (self.megapixels, self.expected) if self.expected else (self.done, self.total)
        return min(seen, whole or seen), whole

    def __str__(self) -> str:
        text = f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,}"
        if self._opened:
            about = "" if self._opened >= self.total - self.done else "about "
            text += f", {self.megapixels:,.1f} of {about}{self.expected:,.1f} megapixels"
        return text


class _Below(Advance):
    """Shown below the cell of a notebook."""

    def __init__(self, total: int, bar: NotebookBar) -> None:
        super().__init__(total)
        self._bar = bar

    def changed(self) -> None:
        self._bar.to(*self.place(), str(self))


@contextmanager
def progress(what: str, total: int, *, hidden: bool) -> Iterator[Advance]:
    """Show how far a job is: a bar on a terminal or in a notebook, else a line every 30 seconds."""
    if hidden:
        yield Advance(total)
    elif sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    elif in_notebook():
        bar = NotebookBar(what, total)
        try:
            yield _Below(total, bar)
        finally:
            bar.close()
    else:
        advance, over = Advance(total), threading.Event()

        def tell() -> None:
            begun = time.monotonic()
            while not over.wait(LINE_EVERY):
                seconds = round(time.monotonic() - begun)
                print(f"{what}: {advance}, {seconds} s", file=sys.stderr, flush=True)

        teller = threading.Thread(target=tell, name="viq-progress", daemon=True)
        teller.start()
        try:
            yield advance
        finally:
            over.set()
            teller.join()


@contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Shown(Advance):
        def changed(self) -> None:
            seen, whole = self.place()
            bar.update(task, completed=seen, total=whole or None, at=str(self))

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[at]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(file=raw(sys.stderr)), transient=True) as bar:
        task = bar.add_task(what, total=total or None, at="")
        yield Shown(total)
