"""Every kind of input as one indexable sequence of rows: `open_source`.

Training reads rows at random from many threads; a job over a whole data set reads them in order.
Both see the same `Source`, and neither ever holds all the bytes.
"""

from __future__ import annotations

import glob
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from viq.data.source_base import ImageRef, Row, Source, SourceError, because, is_url
from viq.data.source_files import FileSource, ListSource, UrlSource
from viq.data.source_json import JsonSource
from viq.data.source_tables import (
    DatasetSource,
    ParquetSource,
    holds_codes,
    is_saved_dataset,
    load_hub,
    load_saved,
    one_split,
)
from viq.data.source_tar import TarSource
from viq.image import IMAGE_SUFFIXES

__all__ = ["ImageRef", "Row", "Source", "SourceError", "concatenate", "open_source"]

_SUFFIXES = {
    **dict.fromkeys(IMAGE_SUFFIXES, "images"),
    ".txt": "lists",
    ".tar": "tar files",
    ".parquet": "Parquet files",
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON files"),
}
_REFUSED = {
    ".gz": "is compressed, which allows no reading from the middle; unpack it (gunzip)",
    ".tgz": "is compressed, which allows no reading from the middle; unpack it (gunzip)",
    ".bz2": "is compressed, which allows no reading from the middle; unpack it (bunzip2)",
    ".xz": "is compressed, which allows no reading from the middle; unpack it (unxz)",
    ".zst": "is compressed, which allows no reading from the middle; unpack it (unzstd)",
    ".zip": "is a zip archive; unpack it and pass the folder",
    ".csv": "is a CSV table; write it as Parquet, or as a .txt list of paths",
    ".tsv": "is a TSV table; write it as Parquet, or as a .txt list of paths",
    ".arrow": "is part of a saved data set; pass its folder",
}


def open_source(
    spec: str | os.PathLike[str] | Any,
    *,
    image_column: str | Sequence[str] | None = None,
    key_column: str | None = None,
    split: str | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Source:
    """Open an input of any kind; the kind is seen from what is given.

    - an image file; a folder of images, .parquet or .tar files, at any depth; the URL of an image
    - .txt: paths or URLs, one a line
    - .tar: WebDataset shards
    - .parquet: a table with images
    - .json, .jsonl: conversations with images
    - a folder of `save_to_disk`, "hf:owner/name", "hf:owner/name:subset", or a `datasets.Dataset`
    - a pattern of files of one kind: "shard-{0000..0003}.tar", "data/*.parquet"

    The classes in `viq.data.source_*` say what becomes key, images and extras.

    Args:
        image_column: of tables: its name, several names, or () for none; default `image`/`images`.
        key_column: of tables: its name, or "" to number rows; default `key`/`__key__`/`id`.
        split: of data sets of Hugging Face that have several.
        root: of JSON: folder that image paths are relative to; default the folder of the file.

    Raises:
        SourceError: it cannot be opened, is empty, or an option does not belong to its kind.
    """
    options = {
        "image_column": image_column, "key_column": key_column, "split": split, "root": root
    }  # fmt: skip
    name = os.fspath(spec) if isinstance(spec, (str, os.PathLike)) else "dataset"
    try:
        source = _open(spec, options)
    except OSError as error:
        raise SourceError(f"{name}: cannot be read ({because(error)}); check its rights") from error
    for option, value in options.items():
        if value is not None:
            raise SourceError(f"{name}: {option} means nothing to this kind of input; leave it out")
    if not len(source):
        raise SourceError(f"{name}: is empty; pass something with at least one sample")
    return source


def concatenate(sources: Sequence[Source]) -> Source:
    """One source after the other. Keys stay as they are, so they should differ between sources."""
    return sources[0] if len(sources) == 1 else _Concatenation(sources)


class _Concatenation(Source):
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._first = list(accumulate(map(len, self._sources), initial=0))
        self.has_extras = any(source.has_extras for source in sources)

    def __len__(self) -> int:
        return self._first[-1]

    def keys(self) -> Iterator[str]:
        return chain.from_iterable(source.keys() for source in self._sources)

    def names(self) -> Iterator[str]:
        return chain.from_iterable(source.names() for source in self._sources)

    def key(self, index: int) -> str:
        number = self._number(index)
        return self._sources[number].key(index - self._first[number])

    def _row(self, index: int) -> Row:
        number = self._number(index)
        return self._sources[number][index - self._first[number]]

    def _number(self, index: int) -> int:
        """Of the source that row `index` is in."""
        return bisect_right(self._first, index) - 1


def _open(spec: Any, options: dict[str, Any]) -> Source:
    """Open `spec`, taking out of `options` those that belong to its kind."""
    if isinstance(spec, dict) or hasattr(spec, "with_format"):
        dataset = one_split(spec, options.pop("split"), "dataset")
        return DatasetSource(dataset, **_columns(options))
    if not isinstance(spec, (str, os.PathLike)):
        raise SourceError(f"a {type(spec).__name__} is no input; pass a path or a datasets.Dataset")
    text = os.fspath(spec)
    if text.startswith("hf:"):
        dataset = load_hub(text.removeprefix("hf:"), options.pop("split"))
        return DatasetSource(dataset, text, **_columns(options))
    if is_url(text):
        if _kind(Path(text)) != "images":
            raise SourceError(f"{text}: only images are read from URLs; download it first")
        return UrlSource(text)
    path = Path(text)
    if is_saved_dataset(path):
        dataset = load_saved(path, options.pop("split"))
        # `.` and `..` are no names.
        return DatasetSource(
            dataset, os.path.basename(os.path.abspath(path)), root=path, **_columns(options)
        )
    if path.is_dir():
        return _open_files(*_in_folder(path), options)
    paths = [path] if path.exists() else _matching(text)
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise SourceError(f"{text}: matches {_listed(kinds)}; pass files of one kind at a time")
    return _open_files(kinds.pop(), paths, options)


def _open_files(kind: str, paths: list[Path], options: dict[str, Any]) -> Source:
    if kind == "lists":
        return concatenate([ListSource(path) for path in paths])
    if kind == "tar files":
        return TarSource(paths)
    if kind == "Parquet files":
        return ParquetSource(paths, **_columns(options))
    if kind == "JSON files":
        root = options.pop("root")
        return concatenate([JsonSource(p, None if root is None else Path(root)) for p in paths])
    return FileSource(paths)


def _columns(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options.pop(name) for name in ("image_column", "key_column")}


def _kind(path: Path) -> str:
    """The kind of a file by its suffix; files with an unknown suffix are taken for images."""
    suffix = path.suffix.lower()
    if suffix in _REFUSED:
        raise SourceError(f"{path}: {_REFUSED[suffix]}")
    return _SUFFIXES.get(suffix, "images")


def _in_folder(folder: Path) -> tuple[str, list[Path]]:
    """What a folder is a folder of: (kind, its files), the folder itself for images."""
    found: dict[str, list[Path]] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in files if not name.startswith(".")):
            kind = _SUFFIXES.get(path.suffix.lower())
            if kind == "images":
                found[kind] = [folder]
            elif kind in ("tar files", "Parquet files"):
                found.setdefault(kind, []).append(path)
    # Codes are often written beside what they were made of; that must not spoil the folder.
    tables = [path for path in found.pop("Parquet files", []) if not holds_codes(path)]
    found |= {"Parquet files": tables} if tables else {}
    if len(found) > 1:
        raise SourceError(f"{folder}: holds {_listed(found)}; pass a pattern such as *.parquet")
    return next(((kind, sorted(paths)) for kind, paths in found.items()), ("images", [folder]))


def _matching(pattern: str) -> list[Path]:
    """The files that a pattern with {a,b}, {000..123}, * or ? stands for. Raises `SourceError`."""
    paths: list[Path] = []
    for text in _expanded(pattern):
        found = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not found:
            raise SourceError(f"{text}: does not exist; check the path")
        paths += map(Path, found)
    return paths


def _expanded(pattern: str) -> Iterator[str]:
    """Replace {a,b} and {000..123}, the first braces varying slowest."""
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not braces:
        yield pattern
        return
    first, last, words = braces.groups()
    if words is None:
        choices = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    else:
        choices = words.split(",")
    for choice in choices:
        yield from _expanded(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _listed(kinds: Iterable[str]) -> str:
    return " and ".join(sorted(kinds))
