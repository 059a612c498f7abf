"""Ctrl-C and SIGTERM: the first stops a job in order, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130  # exit code: 128 + SIGINT


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first signal; at a second, leave without tidying up.

    A context, or the decorator of a command. After the first signal the handlers stay, as the
    process is about to end.

    The second does not wait for threads: to tear the interpreter down while torch computes in them
    ends in an abort of C++. What is half-written then lies under a name of `viq.core.files`, and
    the next start removes it.

    Off the main thread, where Python sets no handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            leave()
        asked = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items() if not asked else ():
            signal.signal(number, handler or signal.SIG_DFL)  # None: set by C code


def leave() -> None:
    """End the process now, its output flushed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # it may be closed, or just be written to
            stream.flush()
    with suppress(OSError):
        os.write(2, b"viq: interrupted twice; ended at once\n")
    os._exit(INTERRUPTED)
