"""The rows of a file of codes of which some are damaged: those that can be read, and why not.

A file is read as any other until its first damage; from there on group by group of rows, and a
group that does not fit its checksum counts as damaged as a whole, since nobody knows which of its
rows it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from viq.core.codes import Codes
from viq.core.types import CodesError, ViqError
from viq.store.arrays import checksum, coder_of, decompressed
from viq.store.rows import NUMBERS, ROWS_PER_GROUP, CodeRow, CodesReader

if TYPE_CHECKING:
    import pyarrow as pa


def keys_and_places(reader: CodesReader) -> list[tuple[str | None, int]]:
    """(key, image_index) of every row, without codes; None as the key of a row without a whole one.

    A file without `image_index` holds one image a row: 0.
    """
    names = [name for name in ("key", "image_index") if name in reader.columns]
    found: list[tuple[str | None, int]] = []
    for count, table in _groups(reader, names):
        if isinstance(table, Exception):
            found += [(None, 0)] * count
            continue
        keys = table["key"].to_pylist()
        places = table["image_index"].to_pylist() if len(names) > 1 else [0] * count
        found += [
            (key, place) if isinstance(place, int) else (None, 0)
            for key, place in zip(keys, places, strict=True)
        ]
    return found


def rows_or_reasons(reader: CodesReader) -> Iterator[CodeRow | CodesError]:
    """For every row of a file, in order: the row without extras, or why it cannot be read."""
    done = 0
    try:
        for row in reader.rows(columns=()):
            done += 1
            yield row
    except CodesError:
        yield from _one_by_one(reader, done)
        return
    for _ in range(len(reader) - done):
        yield CodesError(f"{reader.path}: ends after {done} of {len(reader)} rows")


def _one_by_one(reader: CodesReader, done: int) -> Iterator[CodeRow | CodesError]:
    """As `rows_or_reasons`, from row `done` on."""
    sums = reader.sums
    first = 0
    for count, table in _groups(reader, reader.columns):
        start, first = first, first + count
        if first <= done:
            continue
        if isinstance(table, Exception) or not _fits(table, start, sums):
            wrong = table if isinstance(table, Exception) else CodesError("not what was written")
            for _ in range(max(start, done), first):
                yield _reason(reader, start, first, wrong)
            continue
        for number in range(max(start, done), first):
            try:
                row: CodeRow | CodesError = _row(reader, table.slice(number - start, 1))
            except Exception as error:  # what damage makes the code behind raise is anyone's guess
                row = _reason(reader, number, number + 1, error)
            yield row


def _fits(table: pa.Table, start: int, sums: Any) -> bool:
    """Whether a group has the checksum that was noted for it; true in files of other writers."""
    if not isinstance(sums, list):
        return True
    place, rest = divmod(start, ROWS_PER_GROUP)  # groups of ours begin at whole ones
    try:
        return not rest and checksum(table, NUMBERS) in sums[place : place + 1]
    except Exception:  # as above
        return False


def _row(reader: CodesReader, table: pa.Table) -> CodeRow:
    (batch,) = table.combine_chunks().to_batches()
    batch = reader.as_ours(batch)
    if any(column.null_count for column in batch.columns):
        raise CodesError("values are missing")
    numbers = {name: int(batch[name][0].as_py()) for name in NUMBERS if name in batch.schema.names}
    coder = coder_of(reader.info.entropy, reader.path.parent)
    codes = decompressed(batch, coder, reader.info.meaning) if coder else batch["codes"]
    ids = codes.flatten().to_numpy()  # unlike `values`, of this row alone
    key, size = batch["key"][0].as_py(), (numbers["height"], numbers["width"])
    (counted,) = reader._counted(batch)
    made: Codes | None = reader._codes(key, ids, size, numbers.get("tile", 0), counted)
    return CodeRow(key, made, numbers.get("image_index", 0))


def _groups(reader: CodesReader, names: list[str]) -> Iterator[tuple[int, pa.Table | Exception]]:
    """Every group of rows with the number of its rows, or why it cannot be read."""
    for group in range(reader._file.num_row_groups):
        count = reader._file.metadata.row_group(group).num_rows
        found: pa.Table | Exception
        try:
            reader._bounds.require_group(group, names)
            table = reader._file.read_row_group(group, columns=names)
            short = table.num_rows != count
            found = CodesError(f"has {table.num_rows} of {count} rows") if short else table
        except Exception as error:  # as above
            found = error
        yield count, found


def _reason(reader: CodesReader, start: int, stop: int, error: Exception) -> CodesError:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    where = f"row {start}" if stop == start + 1 else f"rows {start} to {stop - 1}"
    if isinstance(error, ViqError) and said.startswith(str(reader.path)):
        return CodesError(said)
    return CodesError(f"{reader.path}: {where}: {said}")
