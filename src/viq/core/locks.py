"""One process at a time in a folder, by locks that the system drops when their holder dies.

By `flock` rather than the library filelock, whose locks are exclusive only, so that ranks of a job
could not share one; which stay behind as files; and which empty, in releases of 3.x, what a user
has put at `.lock` (3.16: or what a link there leads to).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from viq.core.errors import ViqError

try:
    import fcntl
except ImportError:  # Windows: as on a file system without locks
    fcntl = None

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # some network file systems


@contextmanager
def locked(folder: Path, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Hold `folder` alone, or together with the other ranks of one job.

    A process alone keeps out everyone. One of several ranks keeps out processes alone and a second
    process of its rank. The lock files are removed when the block ends; after a crash they lie
    there, unlocked, and hinder nobody. Where there are no locks this does nothing: shards are
    written aside and depend on the inputs alone, so two processes waste work but spoil nothing.

    Raises:
        ViqError: somebody else is at work there, or the folder cannot be locked.
    """
    with ExitStack() as held:
        held.enter_context(_held(folder / ".lock", alone=world == 1))
        if world > 1:
            held.enter_context(_held(folder / f".lock-{rank}", alone=True))
        yield


@contextmanager
def _held(path: Path, alone: bool) -> Iterator[None]:
    with _one_at_the_door(path.parent):
        file = _taken(path, alone)
    try:
        yield
    finally:
        with ExitStack() as leaving:
            with suppress(ViqError):  # the folder is gone
                leaving.enter_context(_one_at_the_door(path.parent))
            leaving.callback(os.close, file)
            _remove_unless_shared(file, path)


@contextmanager
def _one_at_the_door(folder: Path) -> Iterator[None]:
    """Take and give back locks one process after another.

    A rank that leaves holds the lock alone for a moment, to see whether it is the last; without
    this another that comes just then would be sent away.
    """
    if fcntl is None:
        yield
        return
    try:
        door = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ViqError(f"{folder}: cannot be locked ({error.strerror})") from None
    try:
        with suppress(OSError):  # of file systems that lock files alone
            fcntl.flock(door, fcntl.LOCK_EX)
        yield
    finally:
        os.close(door)


def _taken(path: Path, alone: bool) -> int:
    """The lock file, opened and locked."""
    while True:
        file = _opened(path)
        try:
            if not _try_lock(file, path, alone) or _is_at(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its last holder removed it after we opened it


def _opened(path: Path) -> int:
    """A lock file of ours is empty, and no link."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666)
    except OSError as error:
        raise ViqError(f"{path}: cannot be made ({error.strerror}); remove it") from None
    facts = os.fstat(file)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size:
        os.close(file)
        raise ViqError(f"{path}: is no lock of viq; give another folder, or move it away")
    return file


def _try_lock(file: int, path: Path, alone: bool) -> bool:
    """False where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ViqError(
            f"{path.parent}: another process is writing in this folder; wait until it is done"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_unless_shared(file: int, path: Path) -> None:
    try:
        _try_lock(file, path, alone=True)
    except ViqError:
        return  # other ranks hold it
    if _is_at(file, path):
        path.unlink(missing_ok=True)  # the empty file that `_opened` made or found
