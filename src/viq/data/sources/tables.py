"""Tables with columns of images: Parquet files, and what they share with other tables.

A cell of an image column holds encoded bytes, a struct {bytes, path}, a path, URL, data: URI or
base64 text, or a list of these; nothing is decoded here. Several image columns give several images,
in the order named. Only the columns that are wanted are read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from viq.core.files import require_regular
from viq.data.sources.access import Access, Names
from viq.data.sources.base import (
    ROW_IMAGES,
    ImageBytes,
    ImageRef,
    Row,
    Source,
    SourceError,
    Wanted,
    because,
    labels,
    place,
)
from viq.data.sources.cells import cell_of, cells_of, readable, record_of

IMAGE_COLUMNS = ("image", "images")
KEY_COLUMNS = ("key", "__key__", "id")

# What a row group may unpack to, by the bytes it has in the file; pictures hardly shrink.
_GROUP_BYTES, _GROUP_LEAST, _GROUP_RATIO = 8 * 2**30, 512 * 2**20, 64
_ROWS_PER_BYTE = 100_000  # of a file: more are not believed
_BATCH = 65_536  # rows that are unpacked at a time
_FAILURES = 16  # damaged tables that are remembered
_VALUE = 16  # bytes of a number or of a place in a list


@dataclass(frozen=True)
class Columns:
    """Which columns are what.

    Attributes:
        names: of all that are read, in the order of the table.
        key: None: rows are numbered.
        left_out: how many are not read as they share their name with another.
    """

    names: tuple[str, ...]
    images: tuple[str, ...]
    key: str | None
    left_out: int = 0

    @classmethod
    def choose(
        cls,
        names: Sequence[str],
        images: str | Sequence[str] | None,
        key: str | None,
        where: str,
        wanted: Wanted | None = None,
    ) -> Columns:
        """Take the columns asked for, or those of `IMAGE_COLUMNS` and `KEY_COLUMNS` found first.

        Raises:
            SourceError: there is no such column, or there are two of that name.
        """
        listed, wanted = place(", ".join(names)), wanted or Wanted()
        if images is None:
            chosen = tuple(name for name in IMAGE_COLUMNS if name in names)[:1]
            if not chosen:
                raise SourceError(
                    f"{where}: has no column image or images; name the image column, one of"
                    f" {listed}"
                )
        else:
            chosen = (images,) if isinstance(images, str) else tuple(images)
        if key is None:
            key = next((name for name in KEY_COLUMNS if name in names), None)
        needed = (*chosen, *([key] if key else []))
        for name in (*needed, *(wanted.columns or ()), *wanted.drop):
            if name not in names:
                raise SourceError(f"{where}: has no column {place(name)}, but {listed}")
        counts = Counter(names)
        for name in needed:
            if counts[name] > 1:
                raise SourceError(f"{where}: has two columns {place(name)}; rename one")
        read = (n for n in names if counts[n] == 1 and (n in needed or n in wanted))
        twice = sum(count for count in counts.values() if count > 1)
        return cls(tuple(read), chosen, key or None, twice)

    def row(self, table: Any, name: str, number: int, within: Names) -> Row:
        """The row of a table of one; `name` is that of the whole table."""
        record = record_of(table) if self.names else {}
        key = self.key_of(cell_of(table.column(self.key)[0]) if self.key else None, name, number)
        where = place(key) if key == f"{name}:{number}" else place(name, key)
        images: list[ImageRef] = []
        for column in self.images:
            cell = record[column]
            cells = cell if isinstance(cell, list) else [cell]
            at = f"{where}, column {place(column)}"
            if len(cells) > ROW_IMAGES:
                raise SourceError(f"{at}: {len(cells):,} images, the limit is {ROW_IMAGES:,}")
            images += [_image(c, within, at) for c in cells if c is not None]
        used = {self.key, *self.images}  # a path may be both
        extras = {column: value for column, value in record.items() if column not in used}
        return Row(key=key, images=tuple(images), extras=extras, where=where)

    @staticmethod
    def key_of(value: Any, name: str, number: int) -> str:
        return f"{name}:{number}" if value is None else str(value)

    def leftovers(self) -> Counter[str]:
        """As those of a source."""
        return +Counter({"columns that share a name": self.left_out})


def _image(cell: Any, names: Names, where: str) -> ImageRef:
    match cell:
        case bytes(data) | {"bytes": bytes(data)}:
            return ImageBytes(data)
        case str(text) | {"bytes": str(text)} | {"path": str(text)} if text:
            return names.image(text, where)
    raise SourceError(
        f"{where}: holds {type(cell).__name__}, not images; give bytes, a struct of bytes and path,"
        " or a path"
    )


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
        """Forget the oldest tables above the limit, but never the newest, and most failed loads.

        The last damaged ones are remembered, or each row of them would read them again.
        """
        total = 0
        for age, (key, future) in enumerate(reversed(list(self._tables.items()))):
            total += _size(future)
            failed = future.exception() if future.done() else None
            forget = age >= _FAILURES or not isinstance(failed, SourceError)
            if (failed and forget) or (age and total > self._limit):
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
    there is none. A file that is damaged as a whole is one row that fails; its key is its name.

    Args:
        called: what to call each file; by default its name, or path.
        image_column: name or names; by default `image` or `images`; () for none.
        key_column: by default `key`, `__key__` or `id` where there is one; "" numbers the rows.
        wanted: of the other columns, those to bring.
        root: folder that paths of images are relative to; by default that of each file.
        access: what paths and URLs in the cells may open.
        alone: whether it is an error if all files are damaged as a whole.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        called: Sequence[str] | None = None,
        image_column: str | Sequence[str] | None = None,
        key_column: str | None = None,
        wanted: Wanted | None = None,
        root: Path | None = None,
        access: Access | None = None,
        alone: bool = True,
        cache: Cache = _SHARED,
    ) -> None:
        self._files: list[_File] = []
        self._file_rows = array("Q", [0])  # rows before each file, then all
        self._group_rows = array("Q", [0])  # rows before each row group, then all
        self._groups: list[tuple[int, int]] = []  # (file, number within it)
        names = Names(Path(), access or Access())
        errors: list[SourceError] = []
        for number, (path, label) in enumerate(zip(paths, called or labels(paths), strict=True)):
            within = Names(path.parent if root is None else root, names.access)
            try:
                columns, rows = _footer(path, label, (image_column, key_column, wanted))
                self._files.append(_File(path, label, columns, within))
            except SourceError as error:
                errors.append(error)
                self._files.append(_File(path, label, Columns((), (), None), within, str(error)))
                rows = [1]
            for group, count in enumerate(rows):
                self._group_rows.append(self._group_rows[-1] + count)
                self._groups.append((number, group))
            self._file_rows.append(self._group_rows[-1])
        if alone and errors and len(errors) == len(paths):
            raise errors[0]
        self._cache = cache

    def __len__(self) -> int:
        return self._group_rows[-1]

    def keys(self) -> Iterator[str]:
        return self._called([file.label for file in self._files])

    def names(self) -> Iterator[str]:
        """As keys; but rows without one are "FILE:12" even where file names are not unique."""
        return self._called([file.path.name for file in self._files])

    def key(self, index: int) -> str:
        at, file, number = self._find(index)
        if file.error:
            return file.label
        value = None
        if file.columns.key:
            try:
                column = self._cache.get((self, at, "keys"), lambda: self._group_keys(at))
                value = cell_of(column[index - self._group_rows[at]])
            except SourceError:
                pass
        return file.columns.key_of(value, file.label, number)

    def where(self, index: int) -> str:
        _, file, number = self._find(index)
        return place(file.label) if file.error else place(file.label, number)

    def leftovers(self) -> dict[str, int]:
        return dict(sum((file.columns.leftovers() for file in self._files), Counter[str]()))

    def _called(self, called: Sequence[str]) -> Iterator[str]:
        """The cells of the key columns, or what each file is called and the row in it."""
        for at, (number, _) in enumerate(self._groups):
            file, label = self._files[number], called[number]
            first, end = self._group_rows[at], self._group_rows[at + 1]
            if file.error:
                yield label
                continue
            values: Sequence[Any] = ()
            if file.columns.key:
                try:
                    values = cells_of(self._group_keys(at))
                except SourceError:  # each of its rows will say so
                    pass
            for row in range(end - first):
                value = values[row] if row < len(values) else None
                yield file.columns.key_of(value, label, first + row - self._file_rows[number])

    def _find(self, index: int) -> tuple[int, _File, int]:
        """The place of the row group of a row among all, its file, and the row within the file."""
        at = bisect_right(self._group_rows, index) - 1
        number = self._groups[at][0]
        return at, self._files[number], index - self._file_rows[number]

    def _row(self, index: int) -> Row:
        at, file, number = self._find(index)
        if file.error:
            raise SourceError(file.error)
        try:
            table = self._cache.get((self, at), lambda: self._read_group(at))
        except SourceError as error:
            raise SourceError(f"{self.where(index)}: {error}") from error
        return file.columns.row(
            table.slice(index - self._group_rows[at], 1), file.label, number, file.within
        )

    def _read_group(self, at: int) -> Any:
        number, group = self._groups[at]
        return _read_group(self._files[number].path, group, self._files[number].columns.names)

    def _group_keys(self, at: int) -> Any:
        number, group = self._groups[at]
        file = self._files[number]
        return _read_group(file.path, group, (file.columns.key or "",)).column(0)


@dataclass(frozen=True)
class _File:
    path: Path
    label: str
    columns: Columns
    within: Names
    error: str = ""  # why it is of no use


def _footer(path: Path, label: str, chosen: tuple[Any, Any, Any]) -> tuple[Columns, list[int]]:
    """The columns of a Parquet file, and the rows of each row group."""
    import pyarrow.parquet as pq

    try:
        require_regular(path)
        metadata = pq.read_metadata(path)
        names = metadata.schema.to_arrow_schema().names
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) > path.stat().st_size * _ROWS_PER_BYTE:
            raise ValueError(f"it claims {sum(rows):,} rows")
    except Exception as error:  # damage makes Arrow raise anything
        raise SourceError(
            f"{place(path)}: cannot be read as Parquet ({because(error)}); fetch or write it again"
        ) from error
    images, key, wanted = chosen
    return Columns.choose(names, images, key, place(label), wanted), rows


def _read_group(path: Path, group: int, names: Sequence[str]) -> Any:
    """These columns of a row group, as `readable` gives them. Raises `SourceError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not names:
        return pa.table({})
    try:
        with pq.ParquetFile(path) as parquet:  # its own, as they must not be shared by threads
            limit, batch = _bounds(parquet.metadata.row_group(group), names)
            found, total = [], 0
            options: dict[str, Any] = {"row_groups": [group], "columns": list(names)}
            for rows in parquet.iter_batches(batch, **options):
                found.append(rows)
                total += rows.nbytes
                _within(total, limit)
        table = pa.Table.from_batches(found).select(list(names))
        return readable(table)
    except (SourceError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(
            f"row group {group} cannot be read ({because(error)}); fetch or write the file again"
        ) from error


def _bounds(group: Any, names: Sequence[str]) -> tuple[int, int]:
    """Bytes that a row group may unpack to, and how many rows to unpack at a time.

    A repeated cell takes next to nothing in the file and even by the file's own account, but is
    no larger than all that the file says of its column. So not even so many of them pass the limit.
    """
    columns = [group.column(number) for number in range(group.num_columns)]
    wanted = tuple(f"{name}." for name in names)
    columns = [c for c in columns if f"{c.path_in_schema}.".startswith(wanted)]
    stored = sum(column.total_compressed_size for column in columns)
    limit = min(_GROUP_BYTES, max(_GROUP_LEAST, _GROUP_RATIO * stored))
    _within(sum(column.total_uncompressed_size for column in columns), limit)
    _within(sum(column.num_values for column in columns), limit)
    widest = 0
    for column in columns:
        is_text = column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        widest += max(_VALUE, column.total_uncompressed_size if is_text else 0)
    return limit, max(1, min(_BATCH, limit // max(1, widest)))


def _within(size: int, limit: int) -> None:
    if size > limit:
        raise SourceError(
            f"its row group unpacks to {size:,} bytes or more, the limit here is {limit:,}; write"
            " the file with smaller row groups"
        )


def holds_codes(path: Path) -> bool:
    """Whether a Parquet file holds codes rather than images."""
    import pyarrow.parquet as pq

    try:
        require_regular(path)
        return b"viq.fingerprint" in (pq.read_schema(path).metadata or {})
    except Exception:  # damage makes Arrow raise anything; it is met again when it is opened
        return False
