"""Who made the codes, in a column of its own, `viq`.

What stands in the metadata of a file is lost when another program filters, joins or rewrites it,
and is no longer true when rows of two stores are put together. So every row says it, too, as one
JSON text that is the same in all rows of a file: Parquet keeps it once for each group of rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from viq.core.types import FLOAT32, CodesError, ViqError
from viq.core.untrusted import parse_json, printable
from viq.store.columns import MAKER
from viq.store.schema import StoreInfo

if TYPE_CHECKING:
    import pyarrow as pa

_MARK = {b"viq.maker": b"1"}  # a column of this name in older files is one of the user's own
_NAMES = {"model", "fingerprint", "levels", "dtype", "entropy", "refinement", "meaning"}
_TEXT = 4096  # characters at most
_ROWS = 1 << 16  # that are read at a time


def with_maker(schema: pa.Schema, after: str = "codes") -> pa.Schema:
    """A schema of codes with the column that says who made them."""
    import pyarrow as pa

    place = schema.get_field_index(after) + 1
    return schema.insert(place, pa.field(MAKER, pa.string(), nullable=False, metadata=_MARK))


def maker_column(info: StoreInfo, rows: int) -> pa.Array:
    """The column of so many rows."""
    import pyarrow as pa

    values = {"model": info.model, "fingerprint": info.fingerprint, "levels": list(info.levels)}
    values |= {"dtype": info.dtype} if info.dtype != FLOAT32 else {}
    values |= {"entropy": info.entropy} if info.entropy else {}
    if info.refinement:
        values |= {"refinement": info.refinement, "meaning": info.meaning}
    return pa.array([json.dumps(values)] * rows, pa.string())


def is_marked(field: pa.Field) -> bool:
    """Whether a writer of ours made this column."""
    return _MARK.items() <= (field.metadata or {}).items()


def read_maker(path: Path) -> StoreInfo:
    """What the rows of a file say of who made them; its memory must have been bounded before.

    Raises:
        CodesError: they say nothing, or not all the same.
    """
    import pyarrow.parquet as pq

    found: set[str | None] = set()
    with pq.ParquetFile(path, read_dictionary=[MAKER]) as file:
        for batch in file.iter_batches(_ROWS, columns=[MAKER]):
            found |= set(batch[MAKER].unique().to_pylist())
            if len(found) > 1:
                raise CodesError(
                    f"its rows were made by several tokenizers (column {MAKER}); keep those of one"
                )
    (text,) = found or {None}
    try:
        values = parse_json(text[:_TEXT], MAKER) if isinstance(text, str) else None
        if not isinstance(values, dict) or not {"fingerprint"} <= values.keys() <= _NAMES:
            raise CodesError(f"has {printable(str(text), 80)!r}")
        return StoreInfo.checked(values)
    except ViqError as error:
        raise CodesError(
            f"column {MAKER} does not say which tokenizer made the codes ({error}); keep that "
            "column, and at least one row"
        ) from None
