"""The queue: one after another, places told, bounds held."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from viq.core.errors import ViqError
from viq.web.config import Limits
from viq.web.work import Queue, Work


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue(Limits(waiting=3, each=2, seconds=30))
    yield made
    made.close()


class Held:
    """Work that goes on until it is let go, or told to end."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()

    def __call__(self, work: Work) -> dict[str, Any]:
        self.begun.set()
        while not self.free.wait(0.01):
            work.check()
        return {"well": True}


def events(queue: Queue, work: Work, most: int = 100) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        found = []
        async for event in queue.events(work):
            found.append(event)
            if len(found) == most:
                break
        return found

    return asyncio.run(read())


def ended(work: Work) -> None:
    """Wait until a piece of work has ended."""
    for _ in range(1000):
        if work.ended:
            return
        time.sleep(0.01)
    raise AssertionError("it goes on")


def test_places_are_told_and_bounds_held(queue: Queue) -> None:
    held = Held()
    first = queue.add("a", held)
    assert held.begun.wait(10)
    second, third = queue.add("b", Held()), queue.add("c", Held())
    assert [queue.position(work) for work in (first, second, third)] == [0, 1, 2]
    queue.add("a", Held())
    with pytest.raises(ViqError, match="2 things that you asked for"):
        queue.add("a", Held())
    with pytest.raises(ViqError, match="3 others wait"):
        queue.add("d", Held())
    queue.cancel(second)
    assert queue.position(third) == 1
    assert events(queue, second) == [{"error": "stopped"}]
    held.free.set()
    ended(first)  # else its place may be told once more
    assert events(queue, first) == [{"done": {"well": True}}]


def test_what_runs_can_be_stopped(queue: Queue) -> None:
    held = Held()
    work = queue.add("a", held)
    assert held.begun.wait(10)
    queue.cancel(work)
    assert events(queue, work)[-1] == {"error": "stopped"}
    other = Held()
    other.free.set()
    assert events(queue, queue.add("a", other))[-1] == {"done": {"well": True}}  # the thread lives


def test_who_leaves_gives_up_the_work(queue: Queue) -> None:
    held = Held()
    work = queue.add("a", held)
    assert held.begun.wait(10)
    assert len(events(queue, work, most=1)) == 1  # listens no longer

    ended(work)
    assert work.events == [{"error": "stopped"}]


def test_time_is_bounded(queue: Queue) -> None:
    work = queue.add("a", Held(), seconds=0.05)
    (last,) = events(queue, work)[-1:]
    assert "took more than" in last["error"] and "--max-seconds" in last["error"]


def test_a_fault_is_one_line_and_the_queue_goes_on(queue: Queue) -> None:
    def fails(work: Work) -> dict[str, Any]:
        raise RuntimeError("first\nsecond")

    assert events(queue, queue.add("a", fails))[-1] == {"error": "went wrong (RuntimeError: first)"}

    def full(work: Work) -> dict[str, Any]:
        raise MemoryError

    assert "memory" in events(queue, queue.add("a", full))[-1]["error"]
    assert events(queue, queue.add("a", lambda work: {"n": 1}))[-1] == {"done": {"n": 1}}


def test_only_the_visitor_gets_the_work(queue: Queue) -> None:
    work = queue.add("a", lambda work: {})
    assert queue.get(work.id, "a") is work
    for name, visitor in ((work.id, "b"), ("none", "a")):
        with pytest.raises(KeyError):
            queue.get(name, visitor)


def test_old_work_is_forgotten() -> None:
    queue = Queue(Limits(waiting=10_000, each=10_000))
    try:
        many = [queue.add("a", lambda work: {}) for _ in range(700)]
        while not many[-1].ended:
            time.sleep(0.01)
        queue.add("a", lambda work: {})
        with pytest.raises(KeyError):
            queue.get(many[0].id, "a")
        assert queue.get(many[-1].id, "a") is many[-1]
    finally:
        queue.close()


def test_done_work_holds_nothing(queue: Queue) -> None:
    """An upload is let go when it is done, failed or stopped, though its events can be read."""

    class Upload:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def __call__(self, work: Work) -> dict[str, Any]:
            if self.fails:
                raise ViqError("no picture")
            return {"well": True}

    held = Held()
    queue.add("a", held)
    assert held.begun.wait(10)
    uploads = [Upload(False), Upload(True), Upload(False)]
    works = [queue.add(who, upload) for who, upload in zip("bcd", uploads, strict=True)]
    kept = [weakref.ref(upload) for upload in uploads]
    del uploads
    assert all(upload() is not None for upload in kept)
    queue.cancel(works[2])
    held.free.set()
    for work in works:
        ended(work)
    gc.collect()
    assert [upload() for upload in kept] == [None] * 3
    assert [list(events(queue, work)[-1]) for work in works] == [["done"], ["error"], ["error"]]


def test_of_pictures_the_last_is_kept(queue: Queue) -> None:
    def draw(work: Work) -> dict[str, Any]:
        for number in range(5):
            work.tell(image=f"data:{number}", stage=f"patch {number}")
        return {}

    work = queue.add("a", draw)
    ended(work)
    told = events(queue, work)
    assert [event["stage"] for event in told[:5]] == [f"patch {n}" for n in range(5)]
    assert [event.get("image") for event in told[:5]] == [None] * 4 + ["data:4"]
