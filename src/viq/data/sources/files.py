"""Pictures that are files of their own: named one by one, in folders, or in a list of paths and
URLs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from viq.data.sources.access import (
    Access,
    ImageUrl,
    Names,
    is_encoded,
    is_url,
    require_scheme,
    scheme_of,
)
from viq.data.sources.base import (
    LINE_BYTES,
    ImageFile,
    Row,
    Source,
    SourceError,
    lines,
    place,
)
from viq.image.open import ImageError, find_images


class FileSource(Source):
    """Image files, and folders of them at any depth. A key is a path, as given.

    A name is the path within the folder that was given, or that of the file alone.
    """

    has_extras = False

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            self._files, self._others = find_images(paths)
        except ImageError as error:
            raise SourceError(str(error)) from error
        self._folders = {path for path in paths if path.is_dir()}

    def __len__(self) -> int:
        return len(self._files)

    def keys(self) -> Iterator[str]:
        return (file.as_posix() for file in self._files)

    def key(self, index: int) -> str:
        return self._files[index].as_posix()

    def leftovers(self) -> dict[str, int]:
        return {"files that are no pictures": self._others} if self._others else {}

    def names(self) -> Iterator[str]:
        for file in self._files:
            # Of several folders around a file, the outermost.
            around = [parent for parent in file.parents if parent in self._folders]
            yield file.relative_to(around[-1]).as_posix() if around else file.name

    def _row(self, index: int) -> Row:
        file = self._files[index]
        return Row(key=file.as_posix(), images=(ImageFile(file),), where=place(file))


class ListSource(Source):
    """A text file with a path or URL on each line; a key is such a line.

    A name is the line with a path in it made plain: `./a.png` and, where the list lies in
    `/photos`, `/photos/a.png` are called `a.png`.

    Blank lines, comments (#) and repetitions are passed over. Paths are relative to the folder of
    the list, or to `root`. The list itself stays on disk.

    Args:
        access: what its lines may open.
    """

    has_extras = False

    def __init__(
        self, path: Path, root: Path | None = None, *, access: Access | None = None
    ) -> None:
        self._path, self._folder = path, path.parent if root is None else root
        self._names = Names(self._folder, access or Access())
        self._repeated = 0
        seen: set[int] = set()  # hashes, as a long list of long URLs would fill the memory
        schemes: dict[str, str] = {}

        def keep(line: bytes) -> bool:
            if not line or line.startswith(b"#"):
                return False
            if hash(line) in seen:
                self._repeated += 1
                return False
            seen.add(hash(line))
            scheme, colon, _ = line.partition(b"://")
            if colon:
                schemes.setdefault(os.fsdecode(scheme).lower(), os.fsdecode(line))
            return True

        self._lines = lines(path, keep, LINE_BYTES)
        self.downloads = self._names.access.limits.parallel if schemes else 0
        for scheme, url in schemes.items():
            if scheme in ("http", "https", *map(str.lower, self._names.access.protocols)):
                require_scheme(scheme, place(path, url))

    def __len__(self) -> int:
        return len(self._lines)

    def keys(self) -> Iterator[str]:
        return (self._line(index) for index in range(len(self)))

    def key(self, index: int) -> str:
        return self._line(index)

    def where(self, index: int) -> str:
        return place(self._path.name, self._lines.numbers[index])

    def names(self) -> Iterator[str]:
        folder = os.path.abspath(self._folder)
        return (_plain(line, folder) for line in self.keys())

    def leftovers(self) -> dict[str, int]:
        return {"lines that come again": self._repeated} if self._repeated else {}

    def _row(self, index: int) -> Row:
        where, size = self.where(index), self._lines.sizes[index]
        if size > LINE_BYTES:
            raise SourceError(f"{where}: has {size:,} bytes; no path or URL is so long")
        line = self._line(index)
        return Row(key=line, images=(self._names.image(line, where),), where=where)

    def _line(self, index: int) -> str:
        if self._lines.sizes[index] > LINE_BYTES:
            return self.where(index)
        line = self._lines.read(index, LINE_BYTES).strip()
        return os.fsdecode(line).removeprefix("\ufeff")


def _plain(line: str, folder: str) -> str:
    """A path without detours, and relative to `folder` if it lies there; a URL as it is."""
    if is_url(line) or is_encoded(line):
        return line
    path = Path(os.path.normpath(line))
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


class UrlSource(Source):
    """Pictures at URLs that the user typed, or that lie below one. A key is a URL.

    `viq.data.sources.access` says which are taken.
    """

    has_extras = False

    def __init__(self, urls: Sequence[str], access: Access | None = None, others: int = 0) -> None:
        self._urls, self._access, self._others = urls, access or Access(), others
        self.downloads = self._access.limits.parallel
        for scheme in {scheme_of(url) for url in urls}:
            require_scheme(scheme, place(urls[0]))

    def __len__(self) -> int:
        return len(self._urls)

    def keys(self) -> Iterator[str]:
        return iter(self._urls)

    def key(self, index: int) -> str:
        return self._urls[index]

    def leftovers(self) -> dict[str, int]:
        return {"files that are no pictures": self._others} if self._others else {}

    def _row(self, index: int) -> Row:
        url = self._urls[index]
        image = ImageUrl(url, self._access, trusted=True)
        return Row(key=url, images=(image,), where=place(url))
