"""Every kind of input as one indexable sequence of rows: `open_source`.

Training reads rows at random from many threads; a job over a whole data set reads them in order.
Both see the same `Source`, and neither ever holds all the bytes.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from viq.core.files import require_regular
from viq.core.types import ViqError
from viq.data.sources.access import Access, is_url, scheme_of
from viq.data.sources.base import (
    Damaged,
    ImageRef,
    Row,
    Source,
    SourceError,
    Wanted,
    because,
    labels,
    place,
)
from viq.data.sources.datasets import (
    DatasetSource,
    is_saved_dataset,
    load_hub,
    load_saved,
    one_split,
)
from viq.data.sources.files import FileSource, ListSource, UrlSource
from viq.data.sources.json_records import JsonSource
from viq.data.sources.patterns import expanded, matching
from viq.data.sources.remote import RemoteFile, find_remote, open_remote
from viq.data.sources.tables import ParquetSource, holds_codes
from viq.data.sources.tar import TarSource
from viq.image.open import IMAGE_SUFFIXES

__all__ = ["Access", "ImageRef", "Row", "Source", "SourceError", "concatenate", "open_source"]

_SUFFIXES = {
    **dict.fromkeys(IMAGE_SUFFIXES, "images"),
    ".txt": "lists",
    ".tar": "tar files",
    ".parquet": "Parquet files",
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON files"),
}
_REMOTE = ("images", "tar files", "Parquet files")  # kinds that are read from URLs
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
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    access: Access | None = None,
    alone: bool = True,
) -> Source:
    """Open an input of any kind; the kind is seen from what is given.

    - an image file; a folder of images, .parquet or .tar files, at any depth; the URL of an image,
      or, where it can be listed (s3://, gs://, hf://), of any of these, or of a pattern of them
    - .txt: paths or URLs, one a line
    - .tar: WebDataset shards
    - .parquet: a table with images
    - .json, .jsonl: conversations with images
    - a folder of `save_to_disk`, "hf:owner/name", "hf:owner/name:subset", or a `datasets.Dataset`
    - a pattern of files of one kind: "shard-{0000..0003}.tar", "data/*.parquet"

    The classes in `viq.data.source_*` say what becomes key, images and extras. Of several files,
    one that is damaged as a whole is one row that fails.

    Args:
        image_column: of tables and JSON: its name, several names, or () for none; default
            `image`/`images`, and in JSON the places that `viq.data.sources.json_fields` lists.
        key_column: of tables: its name, or "" to number rows; default `key`/`__key__`/`id`.
        split: of data sets of Hugging Face that have several.
        root: of lists, JSON and tables: folder that image paths are relative to; default the folder
            of the file.
        columns: of tables, JSON and tar files: the columns or fields that ride along; default all.
        drop: those that do not.
        access: what paths and URLs in the data may open; default nothing but what
            `viq.data.sources.access` says.
        alone: whether an input that is damaged as a whole is an error, not a row that fails.

    Raises:
        SourceError: it cannot be opened, is empty, or an option does not belong to its kind.
    """
    options = {
        "image_column": image_column, "key_column": key_column, "split": split, "root": root,
        "columns": columns, "drop": drop,
    }  # fmt: skip
    name = place(os.fspath(spec)) if isinstance(spec, (str, os.PathLike)) else "dataset"
    try:
        source = _open(spec, options, access, alone)
    except OSError as error:
        raise SourceError(f"{name}: cannot be read ({because(error)}); check its rights") from error
    except (ValueError, UnicodeError) as error:
        if isinstance(error, ViqError):
            raise
        raise SourceError(f"{name}: is no path there can be ({because(error)})") from error
    for option, value in options.items():
        if value is not None:
            raise SourceError(f"{name}: {option} means nothing to this kind of input; leave it out")
    if not len(source):
        raise SourceError(f"{name}: is empty; pass something with at least one sample")
    return source


def files_of(spec: str | os.PathLike[str]) -> list[Path]:
    """The files here that a text stands for that `open_source` takes; of pictures their folder.

    Those that their rows name are not among them.
    """
    text = os.fspath(spec)
    if is_url(text) or text.startswith("hf:"):
        return []
    path = Path(text)
    if path.is_dir():
        return [] if is_saved_dataset(path) else _in_folder(path)[1]
    return [path] if path.exists() else matching(text)


def concatenate(sources: Sequence[Source]) -> Source:
    """One source after the other. Keys stay as they are, so they should differ between sources."""
    return sources[0] if len(sources) == 1 else _Concatenation(sources)


class _Concatenation(Source):
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._first = list(accumulate(map(len, self._sources), initial=0))
        self.has_extras = any(source.has_extras for source in sources)
        self.downloads = max((source.downloads for source in sources), default=0)

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def shards(self) -> Sequence[int]:
        return [rows for source in self._sources for rows in source.shards]

    def keys(self) -> Iterator[str]:
        return chain.from_iterable(source.keys() for source in self._sources)

    def names(self) -> Iterator[str]:
        return chain.from_iterable(source.names() for source in self._sources)

    def key(self, index: int) -> str:
        number = self._number(index)
        return self._sources[number].key(index - self._first[number])

    def where(self, index: int) -> str:
        number = self._number(index)
        return self._sources[number].where(index - self._first[number])

    def leftovers(self) -> dict[str, int]:
        return dict(sum((Counter(s.leftovers()) for s in self._sources), Counter[str]()))

    def _row(self, index: int) -> Row:
        number = self._number(index)
        return self._sources[number][index - self._first[number]]

    def _number(self, index: int) -> int:
        """Of the source that row `index` is in."""
        return bisect_right(self._first, index) - 1


def _open(spec: Any, options: dict[str, Any], access: Access | None, alone: bool) -> Source:
    """Open `spec`, taking out of `options` those that belong to its kind."""
    if isinstance(spec, dict) or hasattr(spec, "with_format"):
        dataset = one_split(spec, options.pop("split"), "dataset")
        return DatasetSource(dataset, access=access, cached=True, **_columns(options))
    if not isinstance(spec, (str, os.PathLike)):
        raise SourceError(f"a {type(spec).__name__} is no input; pass a path or a datasets.Dataset")
    text = os.fspath(spec)
    if not text:  # as of a variable of the shell that is not set; Path takes it for `.`
        raise SourceError("the empty path is no input; pass a file, a folder or . itself")
    if text.startswith("hf:") and not is_url(text):
        dataset = load_hub(text.removeprefix("hf:"), options.pop("split"))
        return DatasetSource(dataset, text, access=access, cached=True, **_columns(options))
    if is_url(text):
        return _open_url(text, options, access, alone)
    path = Path(text)
    if is_saved_dataset(path):
        dataset = load_saved(path, options.pop("split"))
        # `.` and `..` are no names.
        name = os.path.basename(os.path.abspath(path))
        given: dict[str, Any] = {"root": path} | _columns(options)
        return DatasetSource(dataset, name, access=access, **given)
    if path.is_dir():
        kind, paths, passed = _in_folder(path)
        source = _open_files(kind, paths, options, access, alone)
        return _Folder(source, passed) if passed and kind != "images" else source
    paths = [path] if path.exists() else matching(text)
    kinds = {_kind(path) for path in paths}
    if not kinds:
        raise SourceError(f"{place(text)}: stands for no file; check its numbers")
    if len(kinds) > 1:
        raise SourceError(
            f"{place(text)}: matches {_listed(kinds)}; pass files of one kind at a time"
        )
    return _open_files(kinds.pop(), paths, options, access, alone)


def _open_url(text: str, options: dict[str, Any], access: Access | None, alone: bool) -> Source:
    """What lies at a URL: the pictures, the tar files or the Parquet files."""
    kind, is_web = _kind(Path(text)), scheme_of(text) in ("http", "https")
    if kind not in (("images",) if is_web else _REMOTE):
        raise SourceError(
            f"{place(text)}: {'pictures' if is_web else 'pictures, tar and Parquet files'} are "
            "read from URLs; copy this first"
        )
    files = find_remote(text, expanded(text), lambda url: _suffix(url) in _SUFFIXES)
    if is_web:
        return UrlSource([file.url for file in files], access)
    found: dict[str, list[RemoteFile]] = {}
    for file in files:
        found.setdefault(_SUFFIXES.get(_suffix(file.url), ""), []).append(file)
    alone = alone and len(files) == 1
    sources: list[Source] = []
    if tables := found.pop("Parquet files", []):
        given = {"access": access, **_columns(dict(options))}
        sources = open_remote(
            tables, lambda path, label: ParquetSource([path], called=[label], **given), alone
        )
    kinds = [k for k in _REMOTE if k in found] + ["Parquet files"] * bool(sources)
    if not kinds:
        raise SourceError(f"{place(text)}: no pictures, tar or Parquet files are there; check it")
    if len(kinds) > 1:
        raise SourceError(f"{place(text)}: holds {_listed(kinds)}; pass a pattern such as *.tar")
    if kinds == ["images"]:
        urls = [file.url for file in found["images"]]
        return UrlSource(urls, access, len(files) - len(urls))
    if kinds == ["tar files"]:
        wanted = _wanted(options)
        sources = open_remote(
            found["tar files"],
            lambda path, label: TarSource([path], called=[label], wanted=wanted),
            alone,
        )
    else:
        _columns(options)
    source, others = concatenate(sources), len(files) - len(sources)
    return _Folder(source, others) if others else source


def _suffix(url: str) -> str:
    return Path(url).suffix.lower()


def _open_files(
    kind: str, paths: list[Path], options: dict[str, Any], access: Access | None, alone: bool
) -> Source:
    alone = alone and len(paths) == 1
    if kind == "lists":
        root = _root(options)
        return _each(paths, alone, lambda path: ListSource(path, root, access=access))
    if kind == "tar files":
        return TarSource(paths, alone=alone, wanted=_wanted(options))
    if kind == "Parquet files":
        return ParquetSource(paths, access=access, alone=alone, **_columns(options))
    if kind == "JSON files":
        root, images = _root(options), options.pop("image_column")
        given = {"image_column": images, "wanted": _wanted(options), "access": access}
        return _each(paths, alone, lambda path: JsonSource(path, root, **given))
    for path in paths:
        if not path.is_dir():
            require_regular(path)
    return FileSource(paths)


def _each(paths: list[Path], alone: bool, opened: Callable[[Path], Source]) -> Source:
    """One file after the other; of several, a damaged one is a row that fails."""
    sources: list[Source] = []
    for path, label in zip(paths, labels(paths), strict=True):
        try:
            sources.append(opened(path))
        except (ViqError, OSError, ValueError, MemoryError) as error:
            if alone:
                raise
            text = str(error) if isinstance(error, ViqError) else because(error)
            text = text.removeprefix(f"{place(path)}: ")
            sources.append(Damaged(label, SourceError(f"{place(label)}: {text}")))
    return concatenate(sources)


def _root(options: dict[str, Any]) -> Path | None:
    root = options.pop("root")
    return None if root is None else Path(root)


def _wanted(options: dict[str, Any]) -> Wanted:
    columns, drop = options.pop("columns"), options.pop("drop")
    for name, value in (("columns", columns), ("drop", drop)):
        if isinstance(value, str):
            raise SourceError(f"{name} is one text; give a list of names, such as ['{value}']")
    return Wanted(None if columns is None else tuple(columns), tuple(drop or ()))


def _columns(options: dict[str, Any]) -> dict[str, Any]:
    """The options of tables."""
    chosen = {name: options.pop(name) for name in ("image_column", "key_column")}
    root = _root(options)
    return chosen | {"wanted": _wanted(options)} | ({} if root is None else {"root": root})


def _kind(path: Path) -> str:
    """The kind of a file by its suffix; files with an unknown suffix are taken for images."""
    suffix = path.suffix.lower()
    if suffix in _REFUSED:
        raise SourceError(f"{place(path)}: {_REFUSED[suffix]}")
    return _SUFFIXES.get(suffix, "images")


class _Folder(_Concatenation):
    """The files of one kind in a folder that also holds others."""

    def __init__(self, source: Source, others: int) -> None:
        super().__init__([source])
        self._others = others

    def leftovers(self) -> dict[str, int]:
        return {**super().leftovers(), "files of other kinds": self._others}


def _in_folder(folder: Path) -> tuple[str, list[Path], int]:
    """What a folder is a folder of: (kind, its files, how many others); itself for images."""
    found: dict[str, list[Path]] = {}
    count = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in files if not name.startswith(".")):
            count += 1
            kind = _SUFFIXES.get(path.suffix.lower())
            if kind == "images":
                found[kind] = [folder]
            elif kind in ("tar files", "Parquet files"):
                found.setdefault(kind, []).append(path)
    # Codes are often written beside what they were made of; that must not spoil the folder.
    tables = [path for path in found.pop("Parquet files", []) if not holds_codes(path)]
    found |= {"Parquet files": tables} if tables else {}
    if len(found) > 1:
        raise SourceError(
            f"{place(folder)}: holds {_listed(found)}; pass a pattern such as *.parquet"
        )
    for kind, paths in found.items():
        return kind, sorted(paths), count - len(paths)
    return "images", [folder], 0


def _listed(kinds: Iterable[str]) -> str:
    return " and ".join(sorted(kinds))
