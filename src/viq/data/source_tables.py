"""Tables with columns of images: Parquet files, and data sets of Hugging Face `datasets`.

A cell of an image column holds encoded bytes, a struct {bytes, path}, a path or URL, or a list of
these; nothing is decoded here. Several image columns give several images, in the order named.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from viq.data.source_base import (
    ImageBytes,
    ImageRef,
    Row,
    Source,
    SourceError,
    because,
    image_at,
    labels,
    missing,
)

IMAGE_COLUMNS = ("image", "images")
KEY_COLUMNS = ("key", "__key__", "id")
_KEYS_AT_ONCE = 4096


@dataclass(frozen=True)
class Columns:
    """Which columns are what."""

    images: tuple[str, ...]
    key: str | None  # None: rows are numbered

    @classmethod
    def choose(
        cls, names: Sequence[str], images: str | Sequence[str] | None, key: str | None, where: str
    ) -> Columns:
        """Take the columns asked for, or those of `IMAGE_COLUMNS` and `KEY_COLUMNS` found first."""
        if images is None:
            wanted = tuple(name for name in IMAGE_COLUMNS if name in names)[:1]
            if not wanted:
                raise SourceError(
                    f"{where}: has no column image or images; name the image column, one of"
                    f" {', '.join(names)}"
                )
        else:
            wanted = (images,) if isinstance(images, str) else tuple(images)
        if key is None:
            key = next((name for name in KEY_COLUMNS if name in names), None)
        for name in (*wanted, *([key] if key else [])):
            if name not in names:
                raise SourceError(f"{where}: has no column {name}, but {', '.join(names)}")
        return cls(wanted, key or None)

    def row(self, record: dict[str, Any], name: str, number: int, root: Path) -> Row:
        """A row of the table `name`; paths of images are relative to `root`."""
        key = self.key_of(record[self.key] if self.key else None, name, number)
        where = key if key == f"{name}:{number}" else f"{name}:{key}"
        images: list[ImageRef] = []
        for column in self.images:
            cell = record[column]
            cells = cell if isinstance(cell, list) else [cell]
            images += [_image(c, root, f"{where}, column {column}") for c in cells if c is not None]
        used = {self.key, *self.images}  # a path may be both
        extras = {column: value for column, value in record.items() if column not in used}
        return Row(key=key, images=tuple(images), extras=extras, where=where)

    @staticmethod
    def key_of(value: Any, name: str, number: int) -> str:
        return f"{name}:{number}" if value is None else str(value)


def _image(cell: Any, root: Path, where: str) -> ImageRef:
    match cell:
        case bytes(data) | {"bytes": bytes(data)}:
            return ImageBytes(data)
        case str(place) | {"path": str(place)} if place:
            return image_at(place, root)
    raise SourceError(
        f"{where}: holds {type(cell).__name__}, not images; give bytes, a struct of bytes and path,"
        " or a path"
    )


def _record(row: Any, where: str) -> dict[str, Any]:
    """The cells of a table of one row. Raises `SourceError` if Python has no value for one."""
    try:
        (record,) = row.to_pylist()
    except Exception as error:  # text that is no UTF-8, dates beyond the year 9999: of many types
        raise SourceError(
            f"{where}: a cell cannot be read ({because(error)}); mend or remove the row"
        ) from error
    return record


def _cells(column: Any) -> list[Any]:
    """The cells of a column; None for those that `_record` refuses."""
    try:
        return column.to_pylist()
    except Exception:
        return [_cell(cell) for cell in column]


def _cell(cell: Any) -> Any:
    try:
        return cell.as_py()
    except Exception:
        return None


class Cache:
    """Tables by key: the last ones used, up to `limit` bytes; each is loaded once, by one thread.

    Others that ask for a table being loaded wait for it; those that ask for another do not.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._tables: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        with self._lock:
            future = self._tables.get(key)
            is_new = future is None
            if future is None:
                future = self._tables[key] = Future()
            self._tables.move_to_end(key)
        if is_new:
            try:
                future.set_result(load())
            except BaseException as error:
                future.set_exception(error)
            with self._lock:
                self._trim()
        return future.result()

    @property
    def nbytes(self) -> int:
        """Bytes of the tables at hand."""
        with self._lock:
            return sum(map(_size, self._tables.values()))

    def _trim(self) -> None:
        """Forget failed loads, and the oldest tables above the limit, but never the newest."""
        total = 0
        for age, (key, future) in enumerate(reversed(list(self._tables.items()))):
            total += _size(future)
            if (future.done() and future.exception()) or (age and total > self._limit):
                del self._tables[key]


def _size(future: Future[Any]) -> int:
    return future.result().nbytes if future.done() and not future.exception() else 0


# One for all sources, as a data set may come as thousands of files that are opened one by one.
_SHARED = Cache(limit=256 * 2**20)


class ParquetSource(Source):
    """The rows of Parquet files, in order.

    Row groups are read whole, and the last ones used are kept, 256 MiB of them over all sources:
    going through in order reads each once, while access at random to more than that reads a group
    for most rows. Files meant for it should have small row groups.

    A key is the cell of the key column, or "photos.parquet:12" (row of the file, from 0) where
    there is none.

    Args:
        image_column: name or names; by default `image` or `images`; () for none.
        key_column: by default `key`, `__key__` or `id` where there is one; "" numbers the rows.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        image_column: str | Sequence[str] | None = None,
        key_column: str | None = None,
        cache: Cache = _SHARED,
    ) -> None:
        import pyarrow.parquet as pq

        self._files = list(zip(paths, labels(paths), strict=True))
        self._columns: list[Columns] = []  # of each file
        self._file_rows = array("Q", [0])  # rows before each file, then all
        self._group_rows = array("Q", [0])  # rows before each row group, then all
        self._groups: list[tuple[int, int]] = []  # (file, number within it)
        for file, (path, label) in enumerate(self._files):
            try:
                metadata = pq.read_metadata(path)
                names = metadata.schema.to_arrow_schema().names
            except (OSError, ValueError) as error:
                raise SourceError(
                    f"{path}: cannot be read as Parquet ({because(error)}); fetch or write it again"
                ) from error
            self._columns.append(Columns.choose(names, image_column, key_column, label))
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                self._group_rows.append(self._group_rows[-1] + rows)
                self._groups.append((file, group))
            self._file_rows.append(self._group_rows[-1])
        self._cache = cache

    def __len__(self) -> int:
        return self._group_rows[-1]

    def keys(self) -> Iterator[str]:
        return self._called([label for _, label in self._files])

    def names(self) -> Iterator[str]:
        """As keys; but rows without one are "FILE:12" even where file names are not unique."""
        return self._called([path.name for path, _ in self._files])

    def _called(self, files: Sequence[str]) -> Iterator[str]:
        """The cells of the key columns, or what each file is called and the row in it."""
        import pyarrow.parquet as pq

        for file, ((path, _), columns, label) in enumerate(
            zip(self._files, self._columns, files, strict=True)
        ):
            if columns.key is None:
                rows = self._file_rows[file + 1] - self._file_rows[file]
                yield from (columns.key_of(None, label, number) for number in range(rows))
                continue
            number = 0
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(_KEYS_AT_ONCE, columns=[columns.key]):
                    for value in _cells(batch.column(0)):
                        yield columns.key_of(value, label, number)
                        number += 1

    def _row(self, index: int) -> Row:
        place = bisect_right(self._group_rows, index) - 1
        file = self._groups[place][0]
        path, label = self._files[file]
        table = self._cache.get((self, place), lambda: self._read_group(place))
        number = index - self._file_rows[file]
        record = _record(table.slice(index - self._group_rows[place], 1), f"{label}:{number}")
        return self._columns[file].row(record, label, number, path.parent)

    def _read_group(self, place: int) -> Any:
        import pyarrow.parquet as pq

        file, group = self._groups[place]
        path, label = self._files[file]
        try:
            with pq.ParquetFile(path) as parquet:  # its own, as they must not be shared by threads
                return parquet.read_row_group(group)
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{label}: row group {group} cannot be read ({because(error)}); fetch or write the"
                " file again"
            ) from error


def holds_codes(path: Path) -> bool:
    """Whether a Parquet file holds codes rather than images."""
    import pyarrow.parquet as pq

    try:
        return b"viq.fingerprint" in (pq.read_schema(path).metadata or {})
    except (OSError, ValueError):
        return False


class DatasetSource(Source):
    """A `datasets.Dataset`. Options as for `ParquetSource`; `name` begins keys that are numbers."""

    def __init__(
        self,
        dataset: Any,
        name: str = "dataset",
        *,
        root: Path = Path(),
        image_column: str | Sequence[str] | None = None,
        key_column: str | None = None,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
            raise SourceError(
                f"{name}: a {type(dataset).__name__} has no rows by number; pass a"
                " datasets.Dataset, loaded without streaming"
            )
        self._columns = Columns.choose(dataset.column_names, image_column, key_column, name)
        self._rows = dataset.with_format("arrow")  # as stored: images stay encoded
        self._name, self._root = name, root

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> Iterator[str]:
        columns = self._columns
        if columns.key is None:
            yield from (columns.key_of(None, self._name, number) for number in range(len(self)))
            return
        keys = self._rows.select_columns([columns.key])
        for start in range(0, len(self), _KEYS_AT_ONCE):
            values = _cells(keys[start : start + _KEYS_AT_ONCE].column(0))
            for number, value in enumerate(values, start):
                yield columns.key_of(value, self._name, number)

    def _row(self, index: int) -> Row:
        record = _record(self._rows[index : index + 1], f"{self._name}:{index}")
        return self._columns.row(record, self._name, index, self._root)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    if (folder / "dataset_dict.json").exists():
        return True
    return (folder / "dataset_info.json").exists() and (folder / "state.json").exists()


def load_saved(folder: Path, split: str | None) -> Any:
    """The data set in a folder of `save_to_disk`. Raises `SourceError`."""
    datasets = _datasets(str(folder))
    try:
        loaded = datasets.load_from_disk(os.fspath(folder))
    except Exception as error:  # of many types
        raise SourceError(
            f"{folder}: cannot be read as a saved data set ({because(error)}); write it again"
        ) from error
    return one_split(loaded, split, str(folder))


def load_hub(name: str, split: str | None) -> Any:
    """The data set "owner/name" or "owner/name:subset" of the hub. Raises `SourceError`."""
    datasets = _datasets(f"hf:{name}")
    repository, _, subset = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, subset or None)
    except Exception as error:  # of many types
        raise SourceError(
            f"hf:{name}: cannot be loaded ({because(error)}); check the name and the connection"
        ) from error
    return one_split(loaded, split, f"hf:{name}")


def one_split(loaded: Any, split: str | None, where: str) -> Any:
    """`split` of a dict of data sets, which may be None if there is but one."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise SourceError(f"{where}: has no splits; leave out split={split}")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        given = "give split" if split is None else f"has no split {split}"
        raise SourceError(f"{where}: {given}, one of {', '.join(loaded)}")
    return loaded[split]


def _datasets(where: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing("datasets", where) from error
    return datasets
