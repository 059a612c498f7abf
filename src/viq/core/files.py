"""Files that are whole or absent, whatever happens while they are written, and whose they are.

Every write of the project goes through here: beside the place it belongs to, into a new file (or
folder) with a name that nobody can guess and the mode 0600, which is renamed when it is whole. So
no link is ever followed, nothing half-written is ever seen, and threads and processes that write
the same file do not meet. What a killed process leaves behind has a name that only this module
makes (`ASIDE`), and nothing else is ever cleaned up.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from viq.core.errors import ViqError

BUNDLED = Path(__file__).parent.parent / "bundled"  # models that come with the package

# What is being written aside: ".NAME.16 hex digits.part"; `name` may be cut short.
ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{16})\.part", re.DOTALL)
_NAME_BYTES = 200  # of the name inside: file systems allow 255 bytes in all

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # else opening a pipe waits for its other end


DEFAULT_MODEL = "viq-transform"  # the tokenizer where none is named
DEFAULT_CHAT = "viq-transform-chat"  # the language model on its codes


def bundled(name: str | os.PathLike[str]) -> Path | None:
    """The folder of the model of this name that comes with the package, if there is one.

    A folder of that name in the working directory goes before.
    """
    given = Path(name)
    found = BUNDLED / given
    is_bare = str(name) == given.name and given.name not in ("", "..") and not given.is_dir()
    return found if is_bare and found.is_dir() else None


def cache_home() -> Path:
    """The folder of this user's caches: $XDG_CACHE_HOME/viq or ~/.cache/viq."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "viq"


# Writing


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to, flushed to disk and renamed to `path` when the block ends well.

    An older file of that name stays until the new one is whole, and hands on its mode; a new one
    gets the mode that new files have. A link at `path` is replaced, never followed. Nothing is left
    behind when the block raises. An `OSError` of the block names `path`, as that of a full disk
    names no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(_aside_name(path.name))
    try:
        os.close(os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600))
        yield aside
        file = os.open(aside, os.O_RDWR | _NO_FOLLOW)
        try:
            os.fsync(file)
            if hasattr(os, "fchmod"):  # not on Windows, which has no modes
                os.fchmod(file, _mode_of(path))
        finally:
            os.close(file)
        os.replace(aside, path)  # `path` is what the caller was told, and may, write
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)  # made above, with O_EXCL


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A new folder to fill, renamed to `folder` when the block ends well.

    `folder` must be absent or empty then; nothing in it is ever replaced. Nothing is left behind
    when the block raises.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(_aside_name(folder.name))
    aside.mkdir(mode=0o700)
    try:
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                path.chmod(new_file_mode())
        aside.chmod(new_file_mode(0o777))
        os.rename(aside, folder)  # refuses a folder that holds anything
    except OSError as error:
        error.filename = str(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # made above, by mkdir, which refuses what exists


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file, or nothing."""
    with written_aside(path) as aside:
        aside.write_bytes(data)


def write_new(path: Path, data: bytes) -> bool:
    """Write a whole file where there is none; of many processes at once, one does.

    Returns:
        Whether it was this one; else what was there is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(_aside_name(path.name))
    try:
        file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(file)
            if hasattr(os, "fchmod"):
                os.fchmod(file, new_file_mode())
        try:
            os.link(aside, path)  # refuses what exists
        except FileExistsError:
            return False
        except OSError:  # a file system without a second name for a file: nearly as good
            if os.path.lexists(path):
                return False
            os.rename(aside, path)  # there was nothing a moment ago
        return True
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)  # made above, with O_EXCL


def new_file_mode(wanted: int = 0o666) -> int:
    """The mode that a new file gets here: `wanted` less the umask, which is not touched.

    `os.umask` can only be read by changing it, for a moment and for all threads.
    """
    with suppress(OSError, ValueError, StopIteration):
        with open("/proc/self/status", "rb") as status:
            mask = next(line for line in status if line.startswith(b"Umask:"))
        return wanted & ~int(mask.split()[1], 8)
    return wanted & ~_probed_umask()


def make_readable(*files: Path) -> None:
    """Give files the mode that new ones usually have: some libraries write private ones."""
    for file in files:
        file.chmod(new_file_mode())


def remove_leftovers(folder: Path, is_ours: Callable[[str], object], older_than: float = 0) -> None:
    """Remove the files that killed processes were writing aside in `folder`.

    Args:
        is_ours: whether a file of this name is one that the caller writes. Only what
            `written_aside` was making of it is removed, and only if it is a file: neither a link
            nor a folder.
        older_than: seconds since it was last written to, where others may be writing now.
    """
    for path in folder.iterdir():
        found = ASIDE.fullmatch(path.name)
        if found and is_ours(found["name"]) and is_plain(path) and age(path) >= older_than:
            path.unlink(missing_ok=True)  # of our own making: no other name matches ASIDE


def age(path: Path) -> float:
    """Seconds since a file was last written to; 0 if it is gone, or was written in the future."""
    with suppress(OSError):
        return max(0.0, time.time() - os.lstat(path).st_mtime)
    return 0.0


def is_plain(path: Path) -> bool:
    """Whether there is a regular file, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _aside_name(name: str) -> str:
    short = os.fsdecode(os.fsencode(name)[:_NAME_BYTES])
    return f".{short}.{secrets.token_hex(8)}.part"


def _mode_of(path: Path) -> int:
    """The mode of the file that is about to be replaced, or of a new one."""
    with suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            return stat.S_IMODE(status.st_mode) & 0o777
    return new_file_mode()


def _probed_umask() -> int:
    """The umask, seen from a new empty file, where the system does not tell it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="viq-") as folder:
        probe = Path(folder, "probe")
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return 0o666 & ~stat.S_IMODE(probe.stat().st_mode)


# Reading


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes; pipes, devices and folders are refused, without waiting.

    Raises:
        OSError: it cannot be opened.
        ViqError: it is no regular file.
    """
    file = os.open(path, os.O_RDONLY | _NO_WAIT | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ViqError(f"{os.fspath(path)}: is not a regular file; copy its content into one")
    except BaseException:
        os.close(file)
        raise
    return os.fdopen(file, "rb")  # which closes it; an interrupt here must not close it once more


def require_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what a library would wait for, or read for ever: pipes, devices, folders.

    Raises:
        OSError: there is nothing, or it cannot be looked at.
        ViqError: it is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ViqError(f"{os.fspath(path)}: is not a regular file; copy its content into one")


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        OSError: it cannot be opened.
        ViqError: no regular file, or a larger one.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ViqError(f"{os.fspath(path)}: has more than {limit:,} bytes, which nothing needs")
    return data


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    state = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(2**20):
            state.update(piece)
    return state.hexdigest()
