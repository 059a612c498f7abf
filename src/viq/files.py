"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"  # models that come with the package


def bundled(name: str | os.PathLike[str]) -> Path | None:
    """The folder of the model of this name that comes with the package, if there is one.

    A folder of that name in the working directory goes before.
    """
    given = Path(name)
    found = BUNDLED / given
    is_bare = str(name) == given.name and not given.is_dir()
    return found if is_bare and found.is_dir() else None


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to, flushed to disk and renamed to `path` when the block ends well.

    An older file of that name stays until the new one is whole. Nothing is left behind when the
    block raises. An `OSError` of the block names `path`, as that of a full disk names no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        make_readable(aside)
        os.replace(aside, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def make_readable(*files: Path) -> None:
    """Give files the mode that new ones usually have: some libraries write private ones."""
    mask = os.umask(0)  # the only way to read it
    os.umask(mask)
    for file in files:
        file.chmod(0o666 & ~mask)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file, or nothing."""
    with written_aside(path) as aside:
        aside.write_bytes(data)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            state.update(piece)
    return state.hexdigest()
