"""Files of codes that another program wrote: DuckDB, Polars, Spark, pandas, datasets.

Each has its own types for texts, lists and whole numbers, and its own groups of rows. What means
the same is taken; values that are out of range are refused when they are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def is_like(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of type `found` can hold the values of one of ours."""
    import pyarrow as pa

    kinds = pa.types
    if kinds.is_dictionary(found):
        return is_like(found.value_type, wanted)
    if kinds.is_integer(wanted):
        return kinds.is_integer(found)
    if kinds.is_list(wanted):
        lists = (kinds.is_list, kinds.is_large_list, kinds.is_list_view, kinds.is_large_list_view)
        return any(is_one(found) for is_one in lists) and is_like(
            found.value_type, wanted.value_type
        )
    texts = ("string", "large_string", "string_view")
    return str(found) in (texts if kinds.is_string(wanted) else ("binary", "large_binary"))


def as_ours(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """The same values in a type of ours.

    Raises:
        pyarrow.ArrowInvalid: one does not fit.
    """
    import pyarrow as pa

    if array.type == wanted:
        return array
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(wanted)


def is_as_written(file: pq.ParquetFile, group: int, noted: object) -> bool:
    """Whether nobody has rewritten a file whose metadata are ours.

    Programs that keep metadata (pyarrow, pandas) choose other groups of rows, another compression
    or other rows, and the sums that are noted there no longer hold.

    Args:
        group: rows in a group of our writer.
        noted: how many rows it has written; None in files of before it noted them.
    """
    about = file.metadata
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    sizes = [part.num_rows for part in groups]
    whole = all(size == group for size in sizes[:-1]) and all(size <= group for size in sizes)
    same = noted is None or noted == about.num_rows
    return whole and same and all(part.column(0).compression == "ZSTD" for part in groups)
