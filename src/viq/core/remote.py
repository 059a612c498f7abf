"""Folders behind URLs, of any file system that fsspec knows: whole files in and out.

fsspec rather than universal-pathlib, whose paths would let every function that takes a `Path` read
and write remote files in its own way: what we do there are eight operations on whole files, each
bounded, and each with errors of one line.

Files are put only into object stores, where a file is there as a whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

from viq.core.errors import CodesError, ViqError, first_line, require
from viq.core.untrusted import printable

Location: TypeAlias = Path | str  # a path here, or a URL

# Each with the extra that brings its library; these replace an object at once.
_ATOMIC = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "data", "memory": "data"}
_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs"}


def location(text: str | os.PathLike[str]) -> Location:
    """A path, or the text of a URL; `file://` is a path."""
    name = os.fspath(text)
    if name.lower().startswith("file://"):
        return Path(unquote(name[len("file://") :]))
    return name.rstrip("/") if "://" in name else Path(name)


def suffix_of(place: Location) -> str:
    """The suffix of a path or URL, as `.parquet`."""
    return Path(str(place)).suffix


class RemoteError(CodesError):
    """A file behind a URL cannot be fetched, written or listed; others may go the same way."""


class RemoteFolder:
    """A folder behind a URL. Names are those of files in it, relative, with slashes.

    Raises:
        ViqError: a chain of file systems, or its library is not installed.
        RemoteError: from all methods, where something fails; one line that names the URL.
    """

    def __init__(self, url: str) -> None:
        self.url, self.scheme = url.rstrip("/"), url.partition("://")[0].lower()
        if "::" in url and self.scheme not in ("http", "https"):
            raise ViqError(f"{printable(url, 200)}: is a chain of file systems; copy it first")
        with require("fsspec", "data", url):
            from fsspec.core import url_to_fs
        extra = _ATOMIC.get(self.scheme, "data")
        with require(_LIBRARIES.get(extra, self.scheme), extra, url), self._reported(""):
            self._opened, root = url_to_fs(self.url)
        self._root, self._process = root.rstrip("/"), os.getpid()

    @property
    def _fs(self) -> Any:
        """The file system; another one after a fork, where connections of ours cannot be used."""
        if self._process != os.getpid():
            from fsspec.core import url_to_fs

            self._opened, self._process = url_to_fs(self.url)[0], os.getpid()
        return self._opened

    def sizes(self, *, deep: bool = False) -> dict[str, int]:
        """Bytes of the files in it, by name; `deep` below it."""
        self._fs.invalidate_cache()
        with self._reported("", "listed"):
            try:
                found: Any = (
                    self._fs.find(self._root, detail=True).values()
                    if deep
                    else self._fs.ls(self._root, detail=True)
                )
            except FileNotFoundError:
                return {}
            head = len(self._root.strip("/")) + 1
            return {
                facts["name"].strip("/")[head:]: int(facts["size"] or 0)
                for facts in found
                if facts["type"] == "file" and facts["name"].strip("/")[head:]
            }

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        self._fs.invalidate_cache()
        with self._reported(name), suppress(FileNotFoundError):
            return int(self._fs.info(self._path(name))["size"])
        return None

    def read(self, name: str, limit: int) -> bytes | None:
        """A file of at most `limit` bytes; None if there is none."""
        with self._reported(name):
            try:
                with self._fs.open(self._path(name), "rb") as file:
                    data = file.read(limit + 1)
            except FileNotFoundError:
                return None
        if len(data) > limit:
            raise RemoteError(f"{self.url}/{name}: has more than {limit:,} bytes")
        return data

    @property
    def has_ranges(self) -> bool:
        """Whether parts of files can be had: of a plain web server one does not know."""
        return self.scheme in _ATOMIC

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` to `stop`, without it, where `has_ranges`."""
        with self._reported(name):
            data: bytes = self._fs.cat_file(self._path(name), start=start, end=stop)
        if len(data) != stop - start:
            raise RemoteError(f"{self.url}/{name}: has fewer bytes than were expected")
        return data

    def get(self, name: str, to: Path, limit: int | None = None) -> None:
        """Fetch a file of at most `limit` bytes."""
        from fsspec.callbacks import Callback

        class Limited(Callback):
            def call(self, *_: Any, **__: Any) -> None:
                if limit is not None and self.value > limit:
                    raise CodesError(f"it has more than the {limit:,} bytes that were expected")

        with self._reported(name):
            self._fs.get_file(self._path(name), str(to), callback=Limited())

    def token(self, name: str) -> str:
        """What tells this version of a file from others."""
        with self._reported(name):
            return str(self._fs.ukey(self._path(name)))

    # Writing

    def require_writable(self) -> None:
        """Refuse file systems in which half a file can be seen. Raises `ViqError`."""
        if self.scheme not in _ATOMIC:
            raise ViqError(
                f"{self.url}: viq writes to s3://, gs:// and hf:// alone, which take files "
                "as a whole; write here and copy"
            )

    def put(self, path: Path, name: str) -> None:
        """Store a file of this machine, in place of one of that name."""
        with self._reported(name, "written"):
            self._fs.put_file(str(path), self._path(name))

    @contextmanager
    def put_when_whole(self, name: str) -> Iterator[Path]:
        """A temporary file of this machine that is stored under `name` if the block ends well."""
        with tempfile.TemporaryDirectory(prefix="viq-") as folder:
            path = Path(folder, "file")
            yield path
            self.put(path, name)

    def write(self, name: str, data: bytes) -> None:
        """Store bytes, in place of a file of that name."""
        with self._reported(name, "written"):
            self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Store bytes where there is no such file; whether it was this call that did.

        Of several at once one does, on file systems that can tell (S3, Google Cloud).
        """
        if self.size(name) is not None:
            return False
        with self._reported(name, "written"):
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except TypeError:  # a file system that knows no modes
                self._fs.pipe_file(self._path(name), data)
        return True

    def remove(self, name: str) -> None:
        """Remove a file; nothing if there is none."""
        with self._reported(name, "removed"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))  # of a name that the caller has looked at

    def _path(self, name: str) -> str:
        """`name` is one of ours, one that was checked, or of the user's URL."""
        return f"{self._root}/{name}"

    @contextmanager
    def _reported(self, name: str, done: str = "fetched") -> Iterator[None]:
        """Every failure as one line; which library raises what, fsspec does not say."""
        try:
            yield
        except ImportError:
            raise
        except FileNotFoundError:
            raise RemoteError(f"{self.url}: has no {name or 'such place'}") from None
        except Exception as error:
            reason = " ".join(first_line(error).split())
            raise RemoteError(
                f"{self.url}: {name or 'it'} cannot be {done} ({type(error).__name__}: {reason})"
            ) from None
