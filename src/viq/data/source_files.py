"""Pictures that are files of their own: named one by one, in folders, or in a list of paths and
URLs.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from viq.data.source_base import (
    ImageFile,
    Row,
    Source,
    SourceError,
    because,
    image_at,
    is_url,
    lines,
    missing,
)
from viq.image import ImageError, list_images


class FileSource(Source):
    """Image files, and folders of them at any depth. A key is a path, as given.

    A name is the path within the folder that was given, or that of the file alone.
    """

    has_extras = False

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            self._files = list_images(paths)
        except ImageError as error:
            raise SourceError(str(error)) from error
        self._folders = {path for path in paths if path.is_dir()}

    def __len__(self) -> int:
        return len(self._files)

    def keys(self) -> Iterator[str]:
        return (file.as_posix() for file in self._files)

    def names(self) -> Iterator[str]:
        for file in self._files:
            # Of several folders around a file, the outermost.
            around = [parent for parent in file.parents if parent in self._folders]
            yield file.relative_to(around[-1]).as_posix() if around else file.name

    def _row(self, index: int) -> Row:
        file = self._files[index]
        return Row(key=file.as_posix(), images=(ImageFile(file),), where=str(file))


class ListSource(Source):
    """A text file with a path or URL on each line; a key is such a line.

    A name is the line with a path in it made plain: `./a.png` and, where the list lies in
    `/photos`, `/photos/a.png` are called `a.png`.

    Blank lines, comments (#) and repetitions are passed over. Paths are relative to the folder of
    the list. The list itself stays on disk.
    """

    has_extras = False

    def __init__(self, path: Path) -> None:
        self._path = path
        seen: set[int] = set()  # hashes, as a long list of long URLs would fill the memory
        schemes: dict[str, str] = {}

        def keep(line: bytes) -> bool:
            if not line or line.startswith(b"#") or hash(line) in seen:
                return False
            seen.add(hash(line))
            scheme, colon, _ = line.partition(b"://")
            if colon:
                schemes.setdefault(os.fsdecode(scheme), os.fsdecode(line))
            return True

        self._lines = lines(path, keep)
        for scheme, url in schemes.items():
            _require_scheme(scheme, f"{path}: {url}")

    def __len__(self) -> int:
        return len(self._lines)

    def keys(self) -> Iterator[str]:
        return (self._line(index) for index in range(len(self)))

    def names(self) -> Iterator[str]:
        folder = os.path.abspath(self._path.parent)
        return (_plain(line, folder) for line in self.keys())

    def _row(self, index: int) -> Row:
        line = self._line(index)
        return Row(
            key=line,
            images=(image_at(line, self._path.parent),),
            where=f"{self._path.name}:{self._lines.numbers[index]}",
        )

    def _line(self, index: int) -> str:
        return os.fsdecode(self._lines.read(index).strip()).removeprefix("\ufeff")


def _plain(line: str, folder: str) -> str:
    """A path without detours, and relative to `folder` if it lies there; a URL as it is."""
    if is_url(line):
        return line
    path = Path(os.path.normpath(line))
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


class UrlSource(Source):
    """One picture at a URL."""

    has_extras = False

    def __init__(self, url: str) -> None:
        _require_scheme(url.partition("://")[0], url)
        self._url = url

    def __len__(self) -> int:
        return 1

    def keys(self) -> Iterator[str]:
        return iter([self._url])

    def _row(self, index: int) -> Row:
        return Row(key=self._url, images=(image_at(self._url, Path()),), where=self._url)


def _require_scheme(scheme: str, where: str) -> None:
    """Raise `SourceError` now, rather than at every row, if no URL of `scheme` can be fetched."""
    try:
        fsspec = importlib.import_module("fsspec")
    except ImportError as error:
        raise missing("fsspec", where) from error
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise SourceError(f"{where}: needs one more library ({because(error)})") from error
    except ValueError as error:
        raise SourceError(f"{where}: {because(error)}; check the URL") from error
