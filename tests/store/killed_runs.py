"""Encoding in processes that are killed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import tiny

from viq.core.process import ALONE, Place
from viq.data.sources.files import FileSource
from viq.jobs import unfinished
from viq.jobs.encode import encode
from viq.jobs.pipeline import EncodeOptions

INPUTS, BROKEN, OPTIONS = 90, 10, EncodeOptions(shard_size=7)

# Children are forked by a server that has loaded torch but never run it, so they start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "pyarrow.parquet", "viq.jobs.encode", "tiny"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def job(
    pictures: Path, out: Path, begun: Connection, die_at: int = -1, place: Place = ALONE
) -> None:
    """Encode in a process of its own, which kills itself when a file appears: the given one."""
    tokenizer = tiny.tokenizer()
    unfinished._EVERY = 0.0  # a part for every input

    def or_die(appear: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def do(source: str, target: str) -> None:
            nonlocal die_at
            if die_at == 1:
                appear(source, target)
            if die_at in (0, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            die_at -= 2
            appear(source, target)

        return do

    if die_at >= 0:
        os.replace, os.link = or_die(os.replace), or_die(os.link)
    begun.send(True)
    encode(tokenizer, FileSource([pictures]), out, OPTIONS, place=place)


def run(pictures: Path, out: Path, *arguments: object, kill_after: float | None = None) -> int:
    """The exit code of `job`."""
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=job, args=(pictures, out, there, *arguments))
    process.start()
    here.recv()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
