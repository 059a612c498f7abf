"""The finished inputs of a file of codes that is not finished yet, kept for the next start.

`viq encode -o codes.parquet` writes one file, which appears when it is whole. Beside it grows a
hidden folder, `.codes.parquet.job`, of the inputs that are done: a store of small shards, of which
a part holds as many as were done in a few seconds and has the number of the first. The same command
again reads it first; it goes away with the last row.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from viq.core.files import remove_leftovers
from viq.core.names import shortened
from viq.core.types import CodesError, ViqError
from viq.jobs.pipeline import Encoded, Task
from viq.store.columns import Extras
from viq.store.folder import JOB, Index, shard_name
from viq.store.job import SHARD_SIZE, Facts, Failure, Job, clear, open_job, read_job
from viq.store.rows import ROWS_PER_GROUP, CodeRow

_EVERY = 5.0  # seconds of work that a kill may cost, and that hide the time a part takes to write
_PARTS = 10_000  # at most about so many: each is a file
_FILE = "file"  # the option that tells such a folder from a store
_REPLACES = "overwrite"  # the option of a job that may replace the file that is there


class Unfinished:
    """The finished inputs of one file, which are always its first ones. Holds a lock.

    Args:
        out: the file that is being made.
        index, extras: what it is made with.
        overwrite: whether to begin afresh: inputs that were finished are thrown away.

    Raises:
        ViqError: the file was begun with another model, other options or other inputs, somebody
            else writes it, or something else has the name of the folder.
    """

    def __init__(self, out: Path, index: Index, extras: Extras, overwrite: bool) -> None:
        self.folder = folder_of(out)
        self._size = 1 + index.inputs // _PARTS
        options = {**index.options, SHARD_SIZE: self._size, _FILE: out.name}
        if overwrite or replaces(out):
            options[_REPLACES] = True
        # Parts are plain: what is read again soon need not be small.
        wanted = replace(index, options=options, info=replace(index.info, entropy=""))
        self._held: list[Encoded] = []
        self._since = time.monotonic()
        self._lock = ExitStack()
        _make(self.folder)
        if overwrite and (self.folder / JOB).exists():
            _remove(self.folder)  # made, or looked at, by `_make`
            _make(self.folder)
        is_new = not (self.folder / JOB).exists()
        try:
            self._job: Job = self._lock.enter_context(open_job(self.folder, wanted, extras))
            # The lock is held, so these are of runs that were killed.
            remove_leftovers(out.parent, lambda name: name == out.name)
            self._parts = list(_in_sequence(self._job))
        except CodesError as error:
            self._lock.close()
            raise self._damaged(error) from None
        except ViqError as error:  # another job, or somebody else at work; speaks of the folder
            said = str(error).removeprefix(f"-o {self.folder}: ")
            raise ViqError(f"-o {out}: {said}; its finished inputs are in {self.folder}") from None
        except BaseException:  # a signal: whoever makes this cannot yet close it
            self._lock.close()
            if is_new:
                with suppress(ViqError):  # somebody else has begun it meanwhile
                    _remove(self.folder)
            raise

    @property
    def done(self) -> int:
        """How many inputs are finished and safe."""
        return self._parts[-1].inputs[1] if self._parts else 0

    def inputs(self) -> Iterator[Encoded]:
        """What became of the finished inputs, as if they had just been encoded."""
        for facts in self._parts[:]:
            try:
                number = facts.inputs[0] // self._size
                kept: dict[int, list[CodeRow]] = dict(self._job.kept(number))
            except (CodesError, ValueError) as error:
                raise self._damaged(error) from None
            failed = {failure.input: failure for failure in facts.failures}
            shrunk = facts.shrunk  # of the part; which of its inputs it were makes no difference
            for place in range(*facts.inputs):
                task = Task(0, place)
                if place in failed:
                    yield Encoded(task, failed[place].key, [], 0, failed[place].reason)
                else:
                    yield Encoded(task, kept[place][0].key, kept[place], shrunk)
                    shrunk = 0

    def add(self, item: Encoded) -> None:
        """Keep the next input; it is safe a few seconds later, or after `flush`."""
        self._held.append(item)
        full = len(self._held) >= max(ROWS_PER_GROUP, self._job.index.inputs // (_PARTS // 2))
        patience = _EVERY * max(1.0, 1000 * len(self._parts) / _PARTS)
        if full or time.monotonic() - self._since >= patience:
            self.flush()

    def flush(self) -> None:
        """Make safe what was added; of many thousand inputs, all but the last few."""
        number, count = self.done // self._size, len(self._held) // self._size * self._size
        if count:
            with self._job.writing(number) as part:
                part.facts.inputs = (self.done, self.done + count)
                for item in self._held[:count]:
                    if item.reason:
                        part.fail(Failure(item.task.input, item.key, item.reason))
                    else:
                        part.add(item.rows, item.shrunk)
            self._parts.append(self._job.whole[number])
            self._held = self._held[count:]
        self._since = time.monotonic()

    def _damaged(self, error: Exception) -> CodesError:
        return CodesError(f"{error}; remove {self.folder} to begin afresh")

    def close(self, *, finished: bool) -> None:
        """Give the lock back; if all is `finished`, or nothing is, the folder goes as well."""
        self._lock.close()
        if finished or not self._parts:
            _remove(self.folder)


def folder_of(out: Path) -> Path:
    """Where the finished inputs of a file lie."""
    return out.with_name(f".{shortened(out.name, out.name)}.job")


def replaces(out: Path) -> bool:
    """Whether a job was begun that is to replace the file `out`, and waits to be gone on with."""
    folder = folder_of(out)
    if not _is_mine(folder):
        return False
    try:
        return read_job(folder).options.get(_REPLACES) is True
    except ViqError:
        return False


def _is_mine(folder: Path) -> bool:
    """Whether it is a folder, no link to one, and this user's."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    is_mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return stat.S_ISDIR(status.st_mode) and is_mine


def _make(folder: Path) -> None:
    """Make the folder, or see that it is one that only this user can have made."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_mine(folder):
        raise ViqError(
            f"{folder}: viq keeps finished inputs in a folder of this name; move away what is there"
        )
    if (folder / JOB).exists() and _FILE not in read_job(folder).options:
        raise ViqError(f"{folder}: is a store of its own; move it away")


def _remove(folder: Path) -> None:
    """Remove a folder that `_make` has seen: the files of its job, and it if nothing is left."""
    if (folder / JOB).exists():
        clear(folder)  # only what a store consists of, under a name that `folder_of` gave
    with suppress(OSError):
        folder.rmdir()  # refuses a folder that still holds something


def _in_sequence(job: Job) -> Iterator[Facts]:
    """The parts from the first one on, each beginning where the one before ends."""
    number, done, size = 0, 0, job.index.options[SHARD_SIZE]
    while number in job.whole:
        facts = job.whole[number]
        first, last = facts.inputs
        if first != done or not first < last <= job.index.inputs or last % size:
            raise CodesError(f"{job.folder / shard_name(number)}: is no part of this file")
        yield facts
        number, done = last // size, last
