"""Work that takes its turn: a bounded queue, and a thread that does one piece after another.

One thread, as one picture keeps all cores busy. Whoever waits is told the place in the queue, and
whoever leaves or stops gives it up. A piece of work tells what happens in events, which a page
reads as they come: {"position": 2}, {"text": "a"}, {"done": ...} or {"error": "one line"}.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from viq.core.errors import ViqError, first_line
from viq.core.untrusted import printable
from viq.web.config import Limits

Event = dict[str, Any]
_KEPT = 500  # pieces of work that are done, whose events can still be read
_POLL = 0.05  # seconds between two looks at the events
_BEAT = 15.0  # seconds without an event after which a line is sent, so that leaving is noticed


class Stopped(ViqError):
    """The visitor stopped the work, or it took too long."""


class Work:
    """One piece of work."""

    def __init__(self, visitor: str, do: Callable[[Work], Event], seconds: float) -> None:
        self.id = secrets.token_urlsafe(16)
        self.visitor = visitor
        self.events: list[Event] = []
        self.ended = False
        self._do: Callable[[Work], Event] | None = do
        self._seconds = seconds
        self._stop = threading.Event()
        self._until = float("inf")

    def tell(self, **event: Any) -> None:
        """Add an event. Of pictures the last is kept."""
        if "image" in event:
            for place, old in enumerate(self.events):
                self.events[place] = {k: v for k, v in old.items() if k != "image"}
        self.events.append(event)

    def stop(self) -> None:
        """Let it end at the next `check`."""
        self._stop.set()

    @property
    def is_over(self) -> bool:
        """Whether it is to end, as it was stopped or has had its time."""
        return self._stop.is_set() or time.monotonic() > self._until

    def check(self) -> None:
        """End here if the work is to end. Raises `Stopped`."""
        if self._stop.is_set():
            raise Stopped("stopped")
        if self.is_over:
            raise Stopped(
                f"took more than {self._seconds:.0f} seconds; try a smaller picture, or start the "
                "server with a higher --max-seconds"
            )

    def run(self) -> None:
        self._until = time.monotonic() + self._seconds
        try:
            self.check()
            assert self._do is not None, "done already"
            self.tell(done=self._do(self))
        except ViqError as error:
            self.tell(error=printable(str(error), 500))
        except MemoryError:
            self.tell(error="does not fit into the memory of this machine")
        except Exception as error:  # a fault of ours: the page says so, the server goes on
            self.tell(error=f"went wrong ({type(error).__name__}: {first_line(error)})")
        finally:
            self.end()

    def end(self) -> None:
        """Let go of what it was to be done with, as an upload: only its events are read now."""
        self._do, self.ended = None, True


class Queue:
    """Pieces of work that wait, and the thread that does them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[Work] = deque()
        self._running: Work | None = None
        self._all: OrderedDict[str, Work] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._go, daemon=True, name="viq-web")
        self._thread.start()

    def add(self, visitor: str, do: Callable[[Work], Event], seconds: float | None = None) -> Work:
        """Put a piece of work at the end.

        Args:
            seconds: instead of the usual limit.

        Raises:
            ViqError: too many wait, or too many of this visitor.
        """
        work = Work(visitor, do, seconds or self._limits.seconds)
        with self._changed:
            mine = sum(other.visitor == visitor for other in self._unfinished())
            if mine >= self._limits.each:
                raise ViqError(f"{mine} things that you asked for are not done yet; wait for one")
            if len(self._waiting) >= self._limits.waiting:
                raise ViqError(f"{len(self._waiting)} others wait already; try again in a minute")
            self._waiting.append(work)
            self._all[work.id] = work
            self._forget()
            self._changed.notify()
        return work

    def get(self, name: str, visitor: str) -> Work:
        """A piece of work of this visitor. Raises `KeyError`."""
        work = self._all[name]
        if work.visitor != visitor:
            raise KeyError(name)
        return work

    def position(self, work: Work) -> int:
        """How many go before; 0 when it is its turn."""
        with self._changed:
            if work not in self._waiting:
                return 0
            return self._waiting.index(work) + (self._running is not None)

    def cancel(self, work: Work) -> None:
        """Take it out of the queue, or stop it."""
        work.stop()
        with self._changed:
            if work in self._waiting:
                self._waiting.remove(work)
                work.tell(error="stopped")
                work.end()

    def close(self) -> None:
        """End the thread, after stopping what runs."""
        with self._changed:
            self._closed = True
            for work in self._unfinished():
                work.stop()
            self._changed.notify_all()
        self._thread.join(5)

    async def events(self, work: Work, leaving_stops: bool = True) -> AsyncIterator[Event]:
        """The events of a piece of work as they come, with its place in the queue until its turn.

        Args:
            leaving_stops: stop the work when nobody listens any more.
        """
        told, place, quiet = 0, -1, time.monotonic()
        try:
            while True:
                ended = work.ended
                now = self.position(work) if not work.events and not ended else 0
                if now != place and not work.events:
                    place, quiet = now, time.monotonic()
                    yield {"position": place}
                while told < len(work.events):
                    told, quiet = told + 1, time.monotonic()
                    yield work.events[told - 1]
                if ended:
                    return
                if time.monotonic() - quiet > _BEAT:
                    quiet = time.monotonic()
                    yield {"wait": True}
                await asyncio.sleep(_POLL)
        finally:
            if leaving_stops and not work.ended:
                self.cancel(work)

    def _unfinished(self) -> list[Work]:
        return [*self._waiting, *([self._running] if self._running else [])]

    def _forget(self) -> None:
        done = [name for name, work in self._all.items() if work.ended]
        for name in done[: max(0, len(self._all) - _KEPT)]:
            del self._all[name]

    def _go(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                self._running = self._waiting.popleft()
            self._running.run()
