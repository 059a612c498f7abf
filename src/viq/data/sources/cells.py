"""Cells of tables as Python values, whatever type they have and however damaged they are.

What Python has no value for comes as text: times of nanoseconds, years beyond 9999, bytes that
should have been UTF-8. A column that nobody needs for the picture never costs the picture.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_PLAIN = frozenset(
    (type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal)
)


def readable(table: pa.Table) -> pa.Table:
    """The same table with columns of nanoseconds as text: as values they would need pandas."""
    import pyarrow as pa

    for place, column in enumerate(table.schema):
        kind = column.type
        if pa.types.is_duration(kind) and kind.unit == "ns":
            table = table.set_column(place, column.name, table.column(place).cast(pa.int64()))
        elif getattr(kind, "unit", "") == "ns":
            table = table.set_column(place, column.name, table.column(place).cast(pa.string()))
    return table


def record_of(row: pa.Table) -> dict[str, Any]:
    """The cells of a table of one row, by column. What has no value at all is None."""
    try:
        (record,) = row.to_pylist()
    except Exception:  # of one cell, of many types
        record = {name: value_of(row.column(name)[0]) for name in row.column_names}
    return {name: plain(value) for name, value in record.items()}


def cells_of(column: Any) -> list[Any]:
    """The cells of a column; None for those that Python cannot hold."""
    try:
        return column.to_pylist()
    except Exception:
        return [cell_of(cell) for cell in column]


def cell_of(cell: Any) -> Any:
    """A cell, or None if Python cannot hold it."""
    try:
        return cell.as_py()
    except Exception:
        return None


def value_of(cell: Any) -> Any:
    """A cell, where Python has no value for it as text, where it has no text either as None."""
    import pyarrow as pa

    try:
        return cell.as_py()
    except Exception:
        pass
    try:
        if pa.types.is_struct(cell.type):
            return {field.name: value_of(cell[field.name]) for field in cell.type}
        if pa.types.is_nested(cell.type):
            return [value_of(item) for item in cell.values]
        if hasattr(cell, "as_buffer"):
            return cell.as_buffer().to_pybytes().decode(errors="backslashreplace")
        return cell.cast(pa.string()).as_py()
    except Exception:
        return None


def plain(value: Any) -> Any:
    """A value of the types that JSON and Arrow share; others become lists or text."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        return [plain(item) for item in value]
    if kind is dict:
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)
