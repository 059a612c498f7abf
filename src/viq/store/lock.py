"""One process at a time on a store, by locks that the system drops when their holder dies."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from viq.types import ViqError

try:
    import fcntl
except ImportError:  # Windows: as on a file system without locks
    fcntl = None

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # some network file systems


@contextmanager
def locked(folder: Path, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Hold `folder` alone, or together with the other ranks of one job.

    A process alone keeps out everyone. One of several ranks keeps out processes alone and a second
    process of its rank. The lock files are removed when the block ends; after a crash they lie
    there, unlocked, and hinder nobody. Where there are no locks this does nothing: shards are
    written aside and depend on the inputs alone, so two processes waste work but spoil nothing.

    Raises:
        ViqError: somebody else is at work there.
    """
    with ExitStack() as held:
        held.enter_context(_held(folder / ".lock", alone=world == 1))
        if world > 1:
            held.enter_context(_held(folder / f".lock-{rank}", alone=True))
        yield


@contextmanager
def _held(path: Path, alone: bool) -> Iterator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while _try_lock(file, path, alone) and not _is_at(file, path):
            os.close(file)  # its last holder removed it after we opened it
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield
        finally:
            _remove_unless_shared(file, path)
    finally:
        os.close(file)


def _try_lock(file: int, path: Path, alone: bool) -> bool:
    """False where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ViqError(
            f"{path.parent}: another process is writing this store; wait until it is done"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_unless_shared(file: int, path: Path) -> None:
    try:
        _try_lock(file, path, alone=True)
    except ViqError:
        return  # other ranks hold it
    path.unlink(missing_ok=True)
